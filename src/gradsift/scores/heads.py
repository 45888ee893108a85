"""Accurate gradients for any loss that ends in a softmax or a sigmoid.

Autograd computes ``∂ℓ/∂z`` of cross-entropy as ``p − y`` and of binary cross-entropy as
``σ(z) − y``. Both cancel to exactly zero once an example is fitted (see `residuals`). While
`AccurateHeads` is active, PyTorch's own functions for these two losses have the same values and
the accurate derivatives, wherever in a user's loss they are called.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradsift.scores.residuals import balanced


class _LogSoftmax(torch.autograd.Function):
    """Log-softmax over dimension 1, whose input gradient keeps small entries."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        result = torch.log_softmax(logits, 1)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (result,) = ctx.saved_tensors
        probability = result.exp()
        naive = gradient - probability * gradient.sum(1, keepdim=True)
        return balanced(naive, probability)


def log_softmax(logits: Tensor, dim: int | None = None, *rest: Any, **options: Any) -> Tensor:
    """`torch.log_softmax` with an accurate derivative, for floating input of two dimensions up."""
    dimension = -1 if dim is None else dim
    if dim is None or rest or options or logits.dim() < 2 or not logits.is_floating_point():
        return F.log_softmax(logits, dim, *rest, **options)
    return _LogSoftmax.apply(logits.movedim(dimension, 1)).movedim(1, dimension)  # pyright: ignore[reportOptionalMemberAccess]


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy` for hard labels, with an accurate derivative.

    Smoothed and soft labels keep PyTorch's own: their gradient does not vanish on fitted examples
    (a soft label that is in truth one-hot is the exception, and is handled).
    """
    plain = size_average is None and reduce is None and label_smoothing == 0.0
    if logits.dim() < 2 or not plain:
        return F.cross_entropy(
            logits, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
        )
    logarithms = log_softmax(logits, 1)
    if not target.is_floating_point():
        return F.nll_loss(
            logarithms, target, weight, ignore_index=ignore_index, reduction=reduction
        )
    if weight is not None:
        target = target * weight.view(-1, *[1] * (target.dim() - 2))
    losses = -(target * logarithms).sum(1)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def binary_cross_entropy_with_logits(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """``a·y·softplus(−z) + (1 − y)·softplus(z)``: the derivative keeps σ(−z) by itself."""
    if size_average is not None or reduce is not None or target.shape != logits.shape:
        return F.binary_cross_entropy_with_logits(
            logits, target, weight, size_average, reduce, reduction, pos_weight
        )
    positive = target * F.softplus(-logits)
    if pos_weight is not None:
        positive = pos_weight * positive
    losses = positive + (1 - target) * F.softplus(logits)
    if weight is not None:
        losses = weight * losses
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.cross_entropy: cross_entropy,
    F.log_softmax: log_softmax,
    torch.log_softmax: log_softmax,
    Tensor.log_softmax: log_softmax,
    F.binary_cross_entropy_with_logits: binary_cross_entropy_with_logits,
}


class AccurateHeads(TorchFunctionMode):
    """While active, cross-entropy and binary cross-entropy have accurate derivatives.

    Example:
        >>> import torch
        >>> z = torch.tensor([[40.0, 0.0]], requires_grad=True)
        >>> with AccurateHeads():
        ...     loss = torch.nn.functional.cross_entropy(z, torch.tensor([0]))
        >>> torch.autograd.grad(loss, z)[0]
        tensor([[-4.2484e-18,  4.2484e-18]])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls the accurate twin of ``func`` where there is one."""
        del types
        return _REPLACEMENTS.get(func, func)(*args, **_renamed(func, kwargs or {}))


def _renamed(func: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """PyTorch calls the first argument ``input``; the twins call it ``logits``."""
    if func in _REPLACEMENTS and "input" in options:
        return {"logits" if name == "input" else name: value for name, value in options.items()}
    return options
