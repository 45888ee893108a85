"""A stratified draw for several steps at once, dealt out so that every batch is stratified too.

Per batch the law is that of a stratified draw of its own. Together the batches of a window have
less variance than independent ones, as successive batches of a shuffled epoch have.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from gradsift.records import Draw


def deal(drawn: Draw, batches: int, generator: torch.Generator) -> list[Draw]:
    """Batches out of one draw: each takes one out of every ``batches`` neighbours, at random.

    The draw has ``K·b`` slots, one uniform number in each. Of K successive slots, which cover
    ``1/b`` of the probability, every batch gets one, each with probability ``1/K``: what it gets
    has the law of one slot of a stratified draw of b, so its weights are unbiased as they are,
    and an example comes at most ``⌊b p⌋ + 2`` times.

    Args:
        drawn: K·b examples in the order of their slots, with the weights of a draw.
        batches: K.
        generator: of the dealing.

    Example:
        >>> positions = torch.tensor([4, 5, 6, 7])
        >>> drawn = Draw(positions, torch.ones(4, dtype=torch.float64), size=4)
        >>> first, second = deal(drawn, 2, torch.Generator().manual_seed(0))
        >>> first.positions, second.positions, first.size
        (tensor([4, 6]), tensor([5, 7]), 2)
    """
    size = len(drawn.positions) // batches
    return dealt(drawn, torch.rand(size, batches, generator=generator).argsort(1))


def dealt(drawn: Draw, order: Int64[Tensor, "size batches"]) -> list[Draw]:
    """Batch k takes the example at ``order[j, k]`` of the j-th run of neighbours.

    Args:
        drawn: ``size·batches`` examples.
        order: every row is a permutation of ``0 … batches − 1``.
    """
    size, batches = order.shape
    positions, weights = (
        part.view(size, batches).gather(1, order).T.contiguous()
        for part in (drawn.positions, drawn.weights)
    )
    return [Draw(positions[k], weights[k], size) for k in range(batches)]
