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
        probabilities: positive, with sum one up to rounding; the last cumulated one is forced to 1.
        uniforms: independent uniform numbers in [0, 1).

    Example:
        >>> import torch
        >>> p = torch.tensor([0.25, 0.75], dtype=torch.float64)
        >>> multinomial_positions(p, torch.tensor([0.0, 0.25, 0.9], dtype=torch.float64)).tolist()
        [0, 1, 1]
    """
    cumulated = _cumulated(probabilities, 1.0)
    return torch.searchsorted(cumulated, uniforms, right=True).clamp(max=len(probabilities) - 1)


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
    inclusion: Float64[Tensor, " n"], offset: float | int
) -> Int64[Tensor, " drawn"]:
    """Walks along the cumulated inclusion probabilities in steps of one, from ``offset``.

    Position ``i`` is taken where ``floor(C_i − u)`` jumps, so with probability ``π_i``. An example
    with ``π_i = 1`` is always taken; taking it out of the walk leaves the law of the others
    unchanged. The number taken is ``Σ π`` for every offset and every rounding, without
    duplicates: where rounding makes two steps end in one example, the later moves to the next.

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
        cumulated = _cumulated(inclusion[open_positions], float(size))
        steps = torch.arange(size)
        found = torch.searchsorted(cumulated, steps + torch.tensor(offset).double(), right=True)
        # Strictly ascending and inside, whatever was rounded; without collisions it is `found`.
        spaced = (found - steps).cummax(0).values.clamp(max=len(open_positions) - size) + steps
        taken[open_positions[spaced]] = True
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


def _cumulated(values: Float64[Tensor, " n"], total: float) -> Float64[Tensor, " n"]:
    """Prefix sums that end at ``total`` exactly and never pass it."""
    cumulated = values.cumsum(0).clamp(max=total)
    cumulated[-1] = total
    return cumulated
