"""Affine maps, of vectors and of sequences: ``G_i = Σ_t δ_it x_itᵀ``."""

from collections.abc import Mapping

from torch import nn

from gradsift.scores.gradient_norm.contributions import AbstractContribution, Outer, Whole
from gradsift.scores.gradient_norm.rules import Use, register_rule


@register_rule(nn.Linear, reads_outputs=False)
def linear(use: Use) -> Mapping[str, AbstractContribution]:
    """Two norms for a vector, Gram form or written out for a sequence (Goodfellow 2015).

    Reference:
        Goodfellow, *Efficient Per-Example Gradient Computations*, 2015,
        https://arxiv.org/abs/1510.01799.
    """
    gradient, inputs = use.by_example(use.gradient), use.by_example(use.input)
    left = gradient.reshape(use.count, -1, gradient.shape[-1])
    found: dict[str, AbstractContribution] = {}
    if "weight" in use.wanted:
        right = inputs.reshape(use.count, -1, inputs.shape[-1]).to(left.dtype)
        found["weight"] = Outer(left, right)
    if "bias" in use.wanted:
        found["bias"] = Whole(left.sum(1))
    return found
