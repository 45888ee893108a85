"""The norm of the loss gradient with respect to the outputs: the published upper bound.

For a network of L layers ``‖∇_θ ℓ_i‖ ≤ L·ρ·‖∂ℓ_i/∂z_i‖``, with z the last layer's
pre-activations and ρ nearly the same for all examples, so the constant cancels in a proposal. It
needs one forward pass, and in a training step, whose outputs exist anyway, nothing at all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsift.errors import UsageError
from gradsift.nested import tensors
from gradsift.records import LossFunction
from gradsift.scores.base import AbstractOutputScore, in_full_precision, losses_of
from gradsift.scores.heads import AccurateHeads
from gradsift.scores.precision import Precision, autocast, check_precision
from gradsift.scores.residuals import binary_norm, hard_label_norm, row_norm, soft_label_norm
from gradsift.scores.untouched import Mode, check_mode


@dataclass(frozen=True)
class OutputGradient(AbstractOutputScore):
    """``s_i = ‖∂ℓ_i/∂z_i‖₂`` over all dimensions of example i's outputs z_i.

    A closed form for `torch.nn.CrossEntropyLoss` (hard and soft labels, smoothing, class weights)
    and one-output `torch.nn.BCEWithLogitsLoss` with ``reduction="none"``; autograd with respect
    to the outputs for every other loss, on any nesting of outputs. Both are accurate for fitted
    examples, whose gradient a plain ``p − y`` rounds to zero. The score scales with ``loss_fn``:
    twice the loss is twice the score.

    Args:
        mode: "eval", or "train" to score with batch statistics and dropout.
        precision: of the forward pass; "auto" takes bfloat16 where the device computes in it.
            The gradient itself is computed in float32 or better.

    Raises:
        UsageError: when ``loss_fn`` does not return one loss per example, or its gradient reaches
            an output without a batch dimension.

    Deviations from the paper: the outputs must be pre-activations (logits), as the bound assumes,
    and nothing searches the model for them; pool scores are those of eval mode.

    Reference:
        Katharopoulos & Fleuret, *Not All Samples Are Created Equal: Deep Learning with Importance
        Sampling*, 2018, equation 20, https://arxiv.org/abs/1803.00942.

    Example:
        >>> import torch
        >>> model = torch.nn.Identity()
        >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
        >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
        >>> OutputGradient()(model, loss_fn, logits, torch.tensor([0, 0]))
        tensor([7.0711e-01, 1.7451e-04])
    """

    mode: Mode = "eval"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_precision(self.precision)

    def of_outputs(
        self, loss_fn: LossFunction, outputs: Any, targets: Any
    ) -> Float[Tensor, " batch"]:
        """The scores of outputs that are there already; their graph is not touched."""
        outputs = in_full_precision(outputs)
        with torch.no_grad(), autocast(outputs, "float32"):
            if isinstance(loss_fn, nn.CrossEntropyLoss) and _has_classes(loss_fn, outputs, targets):
                return _cross_entropy_norm(loss_fn, outputs, targets)
            if isinstance(loss_fn, nn.BCEWithLogitsLoss) and _is_binary(loss_fn, outputs, targets):
                return binary_norm(outputs, targets)
            return _autograd_norm(loss_fn, outputs, targets)


def _has_classes(loss_fn: nn.CrossEntropyLoss, outputs: Any, targets: Any) -> bool:
    return (
        type(loss_fn).forward is nn.CrossEntropyLoss.forward
        and loss_fn.reduction == "none"
        and all(isinstance(side, Tensor) for side in (outputs, targets))
        and outputs.dim() == 2
        and targets.shape == (outputs.shape if targets.is_floating_point() else outputs.shape[:1])
    )


def _cross_entropy_norm(loss_fn: nn.CrossEntropyLoss, logits: Tensor, targets: Tensor) -> Tensor:
    """The gradient of ``−Σ_k c_k log p_k``, with PyTorch's coefficients c for every option."""
    weight = None if loss_fn.weight is None else loss_fn.weight.to(logits)
    smoothing = loss_fn.label_smoothing
    if targets.is_floating_point():
        labels = targets.to(logits.dtype)
        coefficients = (1 - smoothing) * labels + smoothing / logits.shape[1]
        return soft_label_norm(logits, coefficients if weight is None else weight * coefficients)
    targets = targets.long()
    ignored = targets == loss_fn.ignore_index
    targets = targets.masked_fill(ignored, 0)
    if smoothing == 0.0:
        norm = hard_label_norm(logits, targets)
        norm = norm if weight is None else weight[targets] * norm
    else:
        labels = nn.functional.one_hot(targets, logits.shape[1]).to(logits.dtype)
        coefficients = (1 - smoothing) * labels + smoothing / logits.shape[1]
        norm = soft_label_norm(logits, coefficients if weight is None else weight * coefficients)
    return norm.masked_fill(ignored, 0.0)


def _is_binary(loss_fn: nn.BCEWithLogitsLoss, outputs: Any, targets: Any) -> bool:
    return (
        type(loss_fn).forward is nn.BCEWithLogitsLoss.forward
        and loss_fn.reduction == "none"
        and loss_fn.weight is None
        and loss_fn.pos_weight is None
        and all(isinstance(side, Tensor) for side in (outputs, targets))
        and outputs.dim() == 1
        and outputs.shape == targets.shape
    )


def _autograd_norm(loss_fn: LossFunction, outputs: Any, targets: Any) -> Tensor:
    leaves = [leaf.requires_grad_() for leaf in tensors(outputs) if leaf.is_floating_point()]
    with torch.enable_grad(), AccurateHeads():
        losses = losses_of(loss_fn, outputs, targets)
        if not (losses.requires_grad and leaves):
            return losses.detach().new_zeros(len(losses))
        found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    gradients = [_per_example(part, len(losses)) for part in found if part is not None]
    if not gradients:
        return losses.detach().new_zeros(len(losses))
    return row_norm(torch.stack([row_norm(gradient) for gradient in gradients], 1))


def _per_example(gradient: Tensor, count: int) -> Tensor:
    if gradient.dim() == 0 or gradient.shape[0] != count:
        raise UsageError(
            f"the loss depends on an output of shape {list(gradient.shape)}, which belongs to no "
            f"single example, expected a first dimension of {count}: add such a term outside "
            "loss_fn"
        )
    return gradient
