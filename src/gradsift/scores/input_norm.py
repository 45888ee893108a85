"""The norm of an example's input: a bound that is known before any model is."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.nested import tensors
from gradsift.records import LossFunction
from gradsift.scores.base import AbstractScore, in_full_precision
from gradsift.scores.residuals import row_norm


@dataclass(frozen=True)
class InputNorm(AbstractScore):
    """``s_i = ‖x_i‖₂`` over all floating tensors of an input; the model is not asked.

    For a linear model with a Lipschitz loss the gradient norm is at most a constant times
    ``sqrt(‖x_i‖² + 1)``, the one for its bias. It has the unit of the inputs; a common factor
    cancels in every proposal, a shift of the inputs does not.

    Raises:
        UsageError: for inputs without a floating tensor, such as numbers of tokens.

    Reference:
        Zhao & Zhang, *Stochastic Optimization with Importance Sampling*, 2015,
        https://arxiv.org/abs/1401.2753.

    Example:
        >>> InputNorm()(None, torch.nn.MSELoss(), torch.tensor([[3.0, 4.0], [0.0, 1.0]]), None)
        tensor([5., 1.])
    """

    def __call__(
        self, model: Any, loss_fn: LossFunction, inputs: Any, targets: Any
    ) -> Float[Tensor, " batch"]:
        """One norm for each example."""
        del model, loss_fn, targets
        leaves = [leaf for leaf in tensors(inputs) if leaf.is_floating_point() and leaf.dim() > 0]
        if not leaves:
            raise UsageError(
                f"the score InputNorm received inputs of type {type(inputs).__name__} without any "
                "floating tensor, expected numbers whose size means something: use another recipe"
            )
        norms = [row_norm(in_full_precision(leaf)) for leaf in leaves]
        return row_norm(torch.stack(norms, 1))
