"""The loss as the score: cheap and familiar, and a poor proxy of the gradient norm.

Katharopoulos & Fleuret proposed it in 2017 and found in 2018 that it follows the gradient norm
only for very small gradients. It is the control arm of every comparison.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradsift.records import LossFunction
from gradsift.scores.base import AbstractOutputScore, in_full_precision, losses_of
from gradsift.scores.precision import Precision, autocast, check_precision
from gradsift.scores.untouched import Mode, check_mode


@dataclass(frozen=True)
class Loss(AbstractOutputScore):
    """``s_i = ℓ_i``, the loss of each example, computed from outputs in float32 or better.

    The score has the unit and the scale of ``loss_fn``; a common factor of all scores cancels in
    every proposal. A loss below zero cannot be a score and is refused where scores are used.

    Args:
        mode: "eval", or "train" to score with batch statistics and dropout.
        precision: of the scoring pass; "auto" takes bfloat16 where the device computes in it.

    Reference:
        Katharopoulos & Fleuret, *Biased Importance Sampling for Deep Neural Network Training*,
        2017, https://arxiv.org/abs/1706.00043.

    Example:
        >>> import torch
        >>> model = torch.nn.Identity()
        >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
        >>> Loss()(model, loss_fn, torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
        tensor([0.6931])
    """

    mode: Mode = "eval"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_precision(self.precision)

    def of_outputs(
        self, loss_fn: LossFunction, outputs: Any, targets: Any
    ) -> Float[Tensor, " batch"]:
        """The losses of outputs that are there already."""
        outputs = in_full_precision(outputs)
        with torch.no_grad(), autocast(outputs, "float32"):
            return losses_of(loss_fn, outputs, targets).detach()
