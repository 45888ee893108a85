"""How much the model doubts the class of an example: one minus its predicted probability."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import LossFunction
from gradsift.scores.base import AbstractOutputScore, in_full_precision
from gradsift.scores.precision import Precision, check_precision
from gradsift.scores.untouched import Mode, check_mode


@dataclass(frozen=True)
class Doubt(AbstractOutputScore):
    """``s_i = 1 − p_y = Σ_{k≠y} p_k`` with ``p`` the softmax of the outputs, in [0, 1].

    Free of units: the loss function is not asked. It orders examples as their cross-entropy
    ``−ln p_y`` does, and as a sum it is accurate for examples that are fitted. Outputs are
    logits ``[batch, classes]``, or ``[batch]`` or ``[batch, 1]`` for two classes by a sigmoid. An
    example whose class is out of range, such as ``ignore_index``, has no doubt: 0.

    Args:
        mode: "eval", or "train" to score with batch statistics and dropout.
        precision: of the scoring pass; "auto" takes bfloat16 where the device computes in it.

    Raises:
        UsageError: where targets are not one class per example.

    Reference:
        Chang et al., *Active Bias: Training More Accurate Neural Networks by Emphasizing High
        Variance Samples*, 2017, https://arxiv.org/abs/1704.07433.

    Example:
        >>> model, loss_fn = torch.nn.Identity(), torch.nn.CrossEntropyLoss(reduction="none")
        >>> Doubt()(model, loss_fn, torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([1, 0]))
        tensor([5.0000e-01, 1.2339e-04])
    """

    mode: Mode = "eval"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_precision(self.precision)

    def of_outputs(
        self, loss_fn: LossFunction, outputs: Any, targets: Any
    ) -> Float[Tensor, " batch"]:
        """The doubts of outputs that are there already."""
        del loss_fn
        logits = _two_columns(in_full_precision(outputs), targets)
        labels = targets.long().reshape(len(targets), 1)
        counted = (labels >= 0) & (labels < logits.shape[1])
        with torch.no_grad():
            others = torch.log_softmax(logits, 1).exp_()
            others = others.scatter_(1, labels.clamp(0, logits.shape[1] - 1), 0.0)
            return others.sum(1).clamp_(max=1.0).masked_fill(~counted[:, 0], 0.0)


def _two_columns(outputs: Any, targets: Any) -> Tensor:
    """Logits of all classes; those of one output are ``(0, z)``."""
    sides = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.dim() > 0
    if not sides or targets.numel() != len(outputs):
        raise _refused(outputs, targets)
    single = outputs.numel() == len(outputs)
    whole = not targets.is_floating_point() or bool(((targets == 0) | (targets == 1)).all())
    if not whole or (outputs.dim() != 2 and not single):
        raise _refused(outputs, targets)
    if not single:
        return outputs
    column = outputs.reshape(-1, 1)
    return torch.cat([torch.zeros_like(column), column], 1)


def _refused(outputs: Any, targets: Any) -> UsageError:
    def shown(side: Any) -> str:
        if isinstance(side, Tensor):
            return f"{side.dtype} {list(side.shape)}"
        return f"a {type(side).__name__}"

    return UsageError(
        f"the score Doubt received outputs {shown(outputs)} and targets {shown(targets)}, expected "
        "logits [batch, classes] and one class per example: use Loss() for other tasks"
    )
