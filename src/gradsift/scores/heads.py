"""Accurate gradients for any loss that ends in a softmax or a sigmoid.

Autograd computes ``∂ℓ/∂z`` of cross-entropy as ``p − y`` and of binary cross-entropy as
``σ(z) − y``. Both cancel to exactly zero once an example is fitted (see `residuals`). While
`AccurateHeads` is active, PyTorch's own functions for these two losses have the same values and
the accurate derivatives, wherever in a user's loss they are called. A softmax that a loss writes
out by hand keeps PyTorch's derivative: its fitted examples score up to 30 % too low, a sigmoid's
zero.
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


def log_softmax(
    logits: Tensor, dim: int | None = None, *rest: Any, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    """`torch.log_softmax` with an accurate derivative, for floating input.

    A third positional argument is the type for some of PyTorch's variants and the level of a
    warning for others.
    """
    kinds = [kind for kind in (*rest, dtype) if isinstance(kind, torch.dtype)]
    logits = logits.to(kinds[-1]) if kinds else logits
    if dim is None or logits.dim() == 0 or not logits.is_floating_point():
        return F.log_softmax(logits, dim)
    if logits.dim() == 1:
        return log_softmax(logits.unsqueeze(0), dim + 1 if dim >= 0 else dim).squeeze(0)
    return _LogSoftmax.apply(logits.movedim(dim, 1)).movedim(1, dim)  # pyright: ignore[reportOptionalMemberAccess]


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
    """`torch.nn.functional.cross_entropy`, with an accurate derivative.

    Label smoothing keeps PyTorch's own: its gradient does not vanish on fitted examples. So does
    every call that PyTorch refuses, which keeps its message.
    """
    plain = size_average is None and reduce is None and label_smoothing == 0.0
    if not (plain and reduction in _REDUCTIONS and _fits(logits, target, weight, ignore_index)):
        return F.cross_entropy(
            logits, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
        )
    if logits.dim() == 1:
        losses = cross_entropy(
            logits.unsqueeze(0),
            target.unsqueeze(0),
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        return losses.squeeze(0)
    logarithms = log_softmax(logits, 1)
    if not target.is_floating_point():
        return F.nll_loss(
            logarithms, target, weight, ignore_index=ignore_index, reduction=reduction
        )
    if weight is not None:
        target = target * weight.view(-1, *[1] * (target.dim() - 2))
    return _REDUCTIONS[reduction](-(target * logarithms).sum(1))


def _fits(logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> bool:
    """Labels, or probabilities of one shape with the logits and as many weights as classes."""
    if logits.dim() == 0 or target.is_floating_point() != (target.shape == logits.shape):
        return False
    classes = logits.shape[0] if logits.dim() == 1 else logits.shape[1]
    return not target.is_floating_point() or (
        ignore_index < 0 and (weight is None or tuple(weight.shape) == (classes,))
    )


def binary_cross_entropy_with_logits(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """``−a·y·log σ(z) − (1 − y)·log σ(−z)``: the derivative keeps σ(−z) by itself."""
    plain = size_average is None and reduce is None and reduction in _REDUCTIONS
    if not plain or target.shape != logits.shape or not target.is_floating_point():
        return F.binary_cross_entropy_with_logits(
            logits, target, weight, size_average, reduce, reduction, pos_weight
        )
    positive = target * F.logsigmoid(logits)
    if pos_weight is not None:
        positive = pos_weight * positive
    losses = -positive - (1 - target) * F.logsigmoid(-logits)
    if weight is not None:
        losses = weight * losses
    return _REDUCTIONS[reduction](losses)


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda losses: losses,
    "sum": torch.sum,
    "mean": torch.mean,
}

_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.cross_entropy: cross_entropy,
    F.log_softmax: log_softmax,
    torch.log_softmax: log_softmax,
    torch.special.log_softmax: log_softmax,
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
