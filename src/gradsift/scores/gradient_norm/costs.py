"""Which form of a squared norm is cheapest, by counted operations and numbers moved.

A gradient of shape ``o x i`` that is a sum of T outer products has the squared norm
``Σ_{t,s} ⟨l_t, l_s⟩⟨r_t, r_s⟩``: its Gram form. T = 1 needs two norms. Written out, the gradient
takes ``2·T·o·i`` operations and is moved twice. A count decides, so the choice is the same on
every run and machine.
"""

MOVE = 24
"""Operations that a processor does while it moves one number: 20 to 30 measured on CPUs."""

MOST_NUMBERS = 2**22
"""Numbers of per-example gradients that exist at one time, unless one example has more."""


def direct_cost(terms: int, rows: int, columns: int) -> int:
    """Of one example's gradient, written out and squared.

    Example:
        >>> direct_cost(2, 3, 4)
        960
    """
    return 2 * terms * rows * columns + MOVE * (2 * rows * columns + terms * (rows + columns))


def gram_cost(terms: int, rows: int, columns: int) -> int:
    """Of one example's Gram form: two ``T x T`` matrices, their product and its sum.

    Example:
        >>> gram_cost(2, 3, 4)
        680
    """
    return 2 * terms**2 * (rows + columns) + MOVE * (3 * terms**2 + terms * (rows + columns))


def taps_cost(positions: int, rows: int, columns: int, taps: int) -> int:
    """Of one example's convolution gradient, one ``rows x columns`` product for each tap.

    Example:
        >>> taps_cost(64, 128, 128, 9) > pixel_cost(64, 100, 1, 128, 128, 9)
        True
    """
    return taps * (2 * positions * rows * columns + 2 * MOVE * rows * columns)


def pixel_cost(positions: int, pixels: int, phases: int, rows: int, columns: int, taps: int) -> int:
    """Of the Gram form of a convolution, from inner products of pixels instead of patches.

    Example:
        >>> taps_cost(1024, 16, 16, 9) < pixel_cost(1024, 1156, 1, 16, 16, 9)
        True
    """
    operations = 2 * positions**2 * rows + 2 * phases * pixels**2 * columns
    return operations + MOVE * ((2 * taps + 3) * positions**2 + phases * pixels**2)
