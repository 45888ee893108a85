"""`torch.nn.MultiheadAttention`, one rule for the whole module.

Its projections do not run as layers, so no hook sees them. The rule projects the inputs again,
repeats the attention, and takes the gradients of the projections from that: each is then a linear
map of a sequence.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.scores.gradient_norm.contributions import (
    AbstractContribution,
    Outer,
    Stacked,
    Whole,
)
from gradsift.scores.gradient_norm.repeat import check_repeated, with_random_state
from gradsift.scores.gradient_norm.rules import Use, register_rule, widened

_SIGNATURE = inspect.signature(nn.MultiheadAttention.forward)


@dataclass(frozen=True, eq=False)
class Sides:
    """Query, key and value: ``[batch, places, features]`` each."""

    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def same(self) -> bool:
        """Whether all three are one tensor."""
        first, *rest = ((x.data_ptr(), x.shape, x.stride()) for x in self)
        return all(first == other for other in rest)

    def __iter__(self) -> Any:
        return iter((self.query, self.key, self.value))


@register_rule(nn.MultiheadAttention)
def attention(use: Use) -> Mapping[str, AbstractContribution]:
    """Self- and cross-attention, masks, ``bias_k``, ``bias_v``, ``add_zero_attn``, dropout."""
    layer = use.layer
    given = arguments_of(layer, use.args, use.kwargs)
    sides = Sides(*(_first(layer, widened(given[name])) for name in ("query", "key", "value")))
    for side in sides:
        use.by_example(side)
    if use.record is not None:
        found, context = use.record.read()
        return _contributions(use, sides, found, (_first(layer, use.gradient), context))
    leaves = [part.requires_grad_() for part in projected(layer, sides)]
    extra = [
        widened(bias.detach()).expand(use.count, 1, -1).clone().requires_grad_()
        for bias in (layer.bias_k, layer.bias_v)
        if bias is not None
    ]
    with torch.enable_grad():
        context, weights = _attend(use, leaves, extra, given)
        if weights is not None and given["average_attn_weights"]:
            weights = weights.mean(1)
    gradient = _first(layer, use.gradient)
    back = _through(layer.out_proj, gradient, context)
    pairs = [(context, back)]
    if weights is not None and len(use.gradients) > 1 and use.gradients[1] is not None:
        pairs.append((weights, widened(use.gradients[1])))
    outputs, gradients = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, [*leaves, *extra], gradients)
    context = context.detach()
    return _contributions(use, sides, list(found), (gradient, context))


def arguments_of(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``forward`` by name, with its defaults."""
    bound = _SIGNATURE.bind(layer, *args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _first(layer: Any, values: Tensor) -> Tensor:
    """With the examples in the first dimension."""
    return values if layer.batch_first or values.dim() < 3 else values.transpose(0, 1)


def projected(layer: Any, sides: Sides) -> list[Tensor]:
    """Queries, keys and values after their projections, whose parameters are constants here."""
    if layer._qkv_same_embed_dim:
        weights = layer.in_proj_weight.detach().chunk(3)
    else:
        weights = [
            w.detach() for w in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        ]
    biases: Any = (None, None, None)
    if layer.in_proj_bias is not None:
        biases = layer.in_proj_bias.detach().chunk(3)
    if sides.same and layer._qkv_same_embed_dim:
        bias = layer.in_proj_bias
        both = F.linear(
            sides.query,
            layer.in_proj_weight.detach().to(sides.query),
            None if bias is None else bias.detach().to(sides.query),
        )
        return list(both.chunk(3, -1))
    return [
        F.linear(side, weight.to(side), None if bias is None else bias.to(side))
        for side, weight, bias in zip(sides, weights, biases, strict=True)
    ]


def _through(projection: Any, gradient: Tensor, context: Tensor) -> Tensor:
    return gradient @ projection.weight.detach().to(context)


def _attend(
    use: Use, projected: list[Tensor], extra: list[Tensor], given: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """The context of every place, and the attention weights where they are needed."""
    layer, heads = use.layer, use.layer.num_heads
    query, key, value = projected
    if extra:
        key, value = torch.cat([key, extra[0]], 1), torch.cat([value, extra[1]], 1)
    if layer.add_zero_attn:
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    query, key, value = (
        side.unflatten(2, (heads, -1)).transpose(1, 2) for side in (query, key, value)
    )
    mask = combined_mask(given, use.count, heads, key, query)
    drops = layer.training and layer.dropout > 0
    if not drops and (len(use.gradients) == 1 or use.gradients[1] is None):
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return context.transpose(1, 2).flatten(2), None
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(2, 3)
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    if drops:
        with with_random_state(use.random_state):
            weights = F.dropout(weights, layer.dropout)
    context = (weights @ value).transpose(1, 2).flatten(2)
    if drops:
        bias = layer.out_proj.bias
        out = context.detach() @ layer.out_proj.weight.detach().to(context).T
        check_repeated(use, _first(layer, use.outputs[0]), out if bias is None else out + bias)
    return context, weights


def combined_mask(
    given: Mapping[str, Any], count: int, heads: int, key: Tensor, query: Tensor
) -> Tensor | None:
    """Both masks as one that is added to the scores."""
    total: Tensor | None = None
    attending, padding = given["attn_mask"], given["key_padding_mask"]
    if attending is not None:
        attending = _additive(attending, query.dtype)
        if attending.dim() == 3:
            attending = attending.view(count, heads, *attending.shape[1:])
        total = attending
    if padding is not None:
        padding = _additive(padding, query.dtype).view(count, 1, 1, -1)
        total = padding if total is None else total + padding
    if total is None:
        return None
    return F.pad(total, (0, key.shape[2] - total.shape[-1]))


def _additive(mask: Tensor, kind: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=kind, device=mask.device).masked_fill(mask, -math.inf)
    return mask.to(kind)


def _contributions(
    use: Use, sides: Sides, found: list[Tensor], last: tuple[Tensor, Tensor]
) -> dict[str, AbstractContribution]:
    gradient, context = last
    first, extra = found[:3], found[3:]
    named: dict[str, AbstractContribution] = {
        "out_proj.weight": Outer(gradient, context),
        "out_proj.bias": Whole(gradient.sum(1)),
        "in_proj_bias": Whole(torch.cat([part.sum(1) for part in first], 1)),
    }
    blocks = [Outer(part, side) for part, side in zip(first, sides, strict=True)]
    for name, block in zip(
        ("q_proj_weight", "k_proj_weight", "v_proj_weight"), blocks, strict=True
    ):
        named[name] = block
    if use.layer._qkv_same_embed_dim:
        same = sides.same
        named["in_proj_weight"] = (
            Outer(torch.cat(first, 2), sides.query) if same else Stacked(tuple(blocks))
        )
    for name, part in zip(("bias_k", "bias_v"), extra, strict=False):
        named[name] = Whole(part.flatten(1))
    return {name: named[name] for name in use.wanted if name in named}
