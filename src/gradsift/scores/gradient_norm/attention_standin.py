"""A stand-in for `torch.nn.MultiheadAttention`, whose projections show themselves.

It computes what the module computes, in pieces that a backward pass can be watched at. Nothing has
to be repeated then.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F

from gradsift.scores.gradient_norm.attention import (
    Sides,
    arguments_of,
    combined_mask,
    projected,
)
from gradsift.scores.gradient_norm.graph import edges
from gradsift.scores.gradient_norm.rules import widened


@dataclass(frozen=True, eq=False)
class Seen:
    """One call: the context before the last projection, and gradients of the first ones.

    Attributes:
        edges: where a backward pass has to arrive.
        context: ``[batch, places, features]``, detached.
        shapes: of queries, keys and values.
        gradients: of each; a place without one gets none.
    """

    edges: tuple[GradientEdge, ...]
    context: Tensor
    shapes: list[torch.Size]
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def read(self) -> tuple[list[Tensor], Tensor]:
        """The gradients of the three projections, and the context, in float32 or better."""
        context = widened(self.context)
        found = [
            widened(self.gradients[place]) if place in self.gradients else context.new_zeros(shape)
            for place, shape in enumerate(self.shapes)
        ]
        return found, context


@dataclass(frozen=True, eq=False)
class AttentionStandin:
    """The forward pass of an attention module while gradsift scores.

    Example:
        >>> layer, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.ones(1, 3, 4)
        >>> found, _ = AttentionStandin(layer)(x, x, x, need_weights=False)
        >>> torch.testing.assert_close(found, layer(x, x, x, need_weights=False)[0])
    """

    layer: nn.MultiheadAttention
    calls: list[Seen] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own forward pass; what the stand-in cannot do goes there."""
        layer, given = self.layer, arguments_of(self.layer, args, kwargs)
        query = given["query"]
        if given["need_weights"] or query.dim() != 3 or not self._plain():
            return nn.MultiheadAttention.forward(layer, *args, **kwargs)
        turn = (lambda x: x) if layer.batch_first else (lambda x: x.transpose(0, 1))
        sides = Sides(*(turn(given[name]) for name in ("query", "key", "value")))
        parts = [part.contiguous() for part in projected(layer, sides)]
        parts = [part if part.requires_grad else part.requires_grad_() for part in parts]
        heads = [part.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for part in parts]
        mask = combined_mask(given, len(sides.query), layer.num_heads, heads[1], heads[0])
        context = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        context = context.transpose(1, 2).flatten(2)
        seen = Seen(edges(parts), context.detach(), [part.shape for part in parts])
        for place, part in enumerate(parts):
            part.register_hook(lambda gradient, place=place: _keep(seen, place, gradient))
        self.calls.append(seen)
        weight, bias = layer.out_proj.weight.detach(), layer.out_proj.bias
        found = F.linear(context, weight, None if bias is None else bias.detach())
        return turn(found), None

    def _plain(self) -> bool:
        layer = self.layer
        extra = layer.bias_k is not None or layer.add_zero_attn
        return not (extra or (layer.training and layer.dropout > 0))

    def taken(self) -> Seen | None:
        """What was seen of the last call, if the stand-in made it."""
        return self.calls.pop() if self.calls else None


def _keep(seen: Seen, place: int, gradient: Tensor) -> None:
    seen.gradients[place] = gradient.detach()
