"""From uniform numbers to positions: one pure function per draw.

Nothing here is random. The draws pass uniform numbers of their generator; the tests integrate
over the same numbers exactly.
"""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def multinomial_positions(
    probabilities: Float64[Tensor, " n"], uniforms: Float64[Tensor, " drawn"]
) -> Int64[Tensor, " drawn"]:
    """Inverts the cumulated probabilities: position ``i`` where ``F_(i−1) <= u < F_i``.

    Args:
        probabilities: positive, with sum one up to rounding. Where the sum stays below one, the
            numbers above it belong to the last candidate.
        uniforms: independent uniform numbers in [0, 1).

    Example:
        >>> import torch
        >>> p = torch.tensor([0.25, 0.75], dtype=torch.float64)
        >>> multinomial_positions(p, torch.tensor([0.0, 0.25, 0.9], dtype=torch.float64)).tolist()
        [0, 1, 1]
    """
    found = torch.searchsorted(probabilities.cumsum(0), uniforms, right=True)
    return found.clamp(max=len(probabilities) - 1)


def stratified_positions(
    probabilities: Float64[Tensor, " n"], uniforms: Float64[Tensor, " drawn"]
) -> Int64[Tensor, " drawn"]:
    """Inverts the cumulated probabilities once in each of ``b`` equal slots, at ``(j + u_j)/b``.

    Args:
        probabilities: positive, with sum one up to rounding.
        uniforms: one independent uniform number in [0, 1) per slot; their count is ``b``.

    Example:
        >>> import torch
        >>> p = torch.full((4,), 0.25, dtype=torch.float64)
        >>> stratified_positions(p, torch.tensor([0.9, 0.1], dtype=torch.float64)).tolist()
        [1, 2]
    """
    slots = torch.arange(len(uniforms), dtype=torch.float64)
    return multinomial_positions(probabilities, (slots + uniforms) / len(uniforms))


def systematic_positions(
    inclusion: Float64[Tensor, " n"], offset: float
) -> Int64[Tensor, " drawn"]:
    """Walks along the cumulated inclusion probabilities in steps of one, from ``offset``.

    Position ``i`` is taken where ``floor(C_i − u)`` jumps, so with probability ``π_i``. An example
    with ``π_i = 1`` is always taken; taking it out of the walk leaves the law of the others
    unchanged. The number taken is ``Σ π`` for every offset, without duplicates. Sums that are
    rounded left to right allow none; `spread` keeps that for any order of rounding.

    Args:
        inclusion: in (0, 1], with an integer sum up to rounding, in the order of the walk.
        offset: one uniform number in [0, 1).

    Returns:
        Ascending positions in that order.

    Example:
        >>> import torch
        >>> inclusion = torch.tensor([0.5, 1.0, 0.25, 0.25], dtype=torch.float64)
        >>> systematic_positions(inclusion, 0.2).tolist()
        [0, 1]
        >>> systematic_positions(inclusion, 0.8).tolist()
        [1, 3]
    """
    taken = inclusion >= 1
    open_positions = (~taken).nonzero().flatten()
    size = round(float(inclusion.sum())) - int(taken.sum())
    if size:
        steps = torch.arange(size, dtype=torch.float64) + offset
        found = torch.searchsorted(inclusion[open_positions].cumsum(0), steps, right=True)
        taken[open_positions[spread(found, len(open_positions))]] = True
    return taken.nonzero().flatten()


def poisson_positions(
    inclusion: Float64[Tensor, " n"], uniforms: Float64[Tensor, " n"]
) -> Int64[Tensor, " drawn"]:
    """Takes each position on its own where ``u_i < π_i``.

    Args:
        inclusion: in (0, 1].
        uniforms: one independent uniform number in [0, 1) per position.

    Example:
        >>> import torch
        >>> inclusion = torch.tensor([0.5, 1.0, 0.1], dtype=torch.float64)
        >>> poisson_positions(inclusion, torch.full((3,), 0.4, dtype=torch.float64)).tolist()
        [0, 1]
    """
    return (uniforms < inclusion).nonzero().flatten()


def spread(found: Int64[Tensor, " drawn"], count: int) -> Int64[Tensor, " drawn"]:
    """Moves ascending positions apart until none repeats, each by as little as it needs.

    Positions that already differ and lie below ``count`` are returned as they are. There are at
    most ``count`` of them.

    Example:
        >>> import torch
        >>> spread(torch.tensor([0, 2, 2, 5]), 5).tolist()
        [0, 2, 3, 4]
    """
    steps = torch.arange(len(found))
    return (found - steps).cummax(0).values.clamp(max=count - len(found)) + steps
