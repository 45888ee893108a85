"""Where the backward pass starts: gradients of the losses with respect to the outputs."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.nested import tensors
from gradsift.records import LossFunction
from gradsift.scores.base import in_full_precision, losses_of
from gradsift.scores.heads import AccurateHeads
from gradsift.scores.precision import autocast
from gradsift.scores.residuals import row_norm

Pair = tuple[Tensor, Tensor]
"""An output of the model, and the gradient of the summed losses with respect to it."""


def output_gradients(
    loss_fn: LossFunction, outputs: Any, targets: Any
) -> tuple[list[Pair], int, torch.dtype]:
    """Pairs of outputs and gradients, the number of losses, and their type.

    The losses are computed in float32 or better, with derivatives that keep fitted examples
    (`scores.heads`).

    Raises:
        UsageError: when ``loss_fn`` does not return one loss per example.

    Example:
        >>> outputs = torch.ones(2, 3, requires_grad=True)
        >>> pairs, count, _ = output_gradients(lambda z, y: (z * y).sum(1), outputs, 2.0)
        >>> pairs[0][1], count
        (tensor([[2., 2., 2.],
                [2., 2., 2.]]), 2)
    """
    copies = in_full_precision(outputs)
    sources = [value.requires_grad for value in tensors(outputs)]
    leaves = [
        leaf.requires_grad_()
        for leaf, used in zip(tensors(copies), sources, strict=True)
        if used and leaf.is_floating_point()
    ]
    with torch.enable_grad(), autocast(copies, "float32"), AccurateHeads():
        losses = losses_of(loss_fn, copies, targets)
        if not (losses.requires_grad and leaves):
            return [], len(losses), losses.dtype
        found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    used = [value for value in tensors(outputs) if value.requires_grad]
    pairs = [
        (output, gradient)
        for output, gradient in zip(used, found, strict=True)
        if gradient is not None
    ]
    return pairs, len(losses), losses.dtype


def scaled_to_one(pairs: list[Pair], count: int) -> tuple[list[Tensor], Float[Tensor, " batch"]]:
    """Gradients of norm one for each example, in the outputs' own types, and what they were.

    Norms are linear in the loss, so the factor comes back at the end. In between no small gradient
    is rounded to zero, in whatever precision the model computes.

    Example:
        >>> pair = torch.zeros(1, 2), torch.tensor([[3e-30, 4e-30]])
        >>> scaled_to_one([pair], 1)
        ([tensor([[0.6000, 0.8000]])], tensor([5.0000e-30]))
    """
    rows = [_examples_first(gradient, count) for _, gradient in pairs]
    sizes = row_norm(torch.stack([row_norm(part) for part in rows], 1))
    factors = torch.where(sizes > 0, sizes, 1.0)
    scaled: list[Tensor] = []
    for (output, gradient), row in zip(pairs, rows, strict=True):
        shape = [count, *[1] * (row.dim() - 1)]
        part = row / factors.view(shape)
        scaled.append((part if row is gradient else part.transpose(0, 1)).to(output.dtype))
    return scaled, sizes


def _examples_first(gradient: Tensor, count: int) -> Tensor:
    if gradient.dim() > 0 and gradient.shape[0] == count:
        return gradient
    if gradient.dim() > 2 and gradient.shape[1] == count:
        return gradient.transpose(0, 1)
    raise UsageError(
        f"the loss depends on an output of shape {list(gradient.shape)}, which belongs to no "
        f"single example, expected a first dimension of {count}: add such a term outside "
        "loss_fn"
    )
