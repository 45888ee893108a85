"""Inclusion probabilities for draws without replacement: proportional, but never above one."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.sampling.quarantine import clean


def capped_inclusion(scores: Float[Tensor, " n"], size: float) -> Float64[Tensor, " n"]:
    """``π_i = min(1, c · s_i)`` with ``Σ π = size``, the constant ``c`` solved exactly.

    Among all inclusion probabilities with that sum these minimise ``Σ s_i²/π_i``, the second
    moment of a draw without replacement whose scores are gradient norms. The capped examples are
    the ``k`` largest scores, with the smallest ``k`` for which
    ``(size − k) · s_(k+1) <= Σ_{j>k} s_(j)``. One sort and one prefix sum decide it, in float64:
    O(n log n), without iteration.

    Scores are cleaned first, so every probability is above zero. Their scale does not matter.

    Args:
        scores: at least one score, each >= 0.
        size: the sum of the probabilities: the size of a batch, or any real number in (0, n] for
            the share of a population.

    Raises:
        UsageError: when the size is not in (0, n].

    Example:
        >>> import torch
        >>> capped_inclusion(torch.tensor([1.0, 1.0, 2.0, 100.0]), 2).tolist()
        [0.25, 0.25, 0.5, 1.0]
    """
    check_size(size, len(scores))
    values = clean(scores).values
    ascending, order = (values / values.max()).sort()
    below = ascending.cumsum(0)
    capped_above = len(values) - torch.arange(1, len(values) + 1, dtype=torch.float64)
    fits = (size - capped_above) * ascending <= below
    free = int(fits.nonzero()[-1]) + 1
    shares = ascending[:free]
    room = size - (len(values) - free)
    inclusion = torch.ones_like(values)
    inclusion[order[:free]] = (shares * (room / shares.sum())).clamp(max=1.0)
    return inclusion


def check_size(size: float, count: int) -> None:
    """Raises a `UsageError` unless ``0 < size <= count``.

    Example:
        >>> check_size(5, 3)
        Traceback (most recent call last):
        gradsift.errors.UsageError: cannot draw 5 of 3 candidates: draw at most 3, or score more
    """
    if size > count:
        raise UsageError(
            f"cannot draw {size} of {count} candidates: draw at most {count}, or score more"
        )
    if not size > 0:
        raise UsageError(
            f"cannot draw {size} of {count} candidates: expected a size of at least 1; "
            "pass the batch size"
        )
