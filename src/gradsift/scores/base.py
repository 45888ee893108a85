"""What a score is: how much does this example matter, as one number ≥ 0 for each example.

A score is any function ``score(model, loss_fn, inputs, targets) -> Float[" batch"]``. Those that
need no more than the model's outputs are worth more: a training step has its outputs anyway, so
they cost nothing there. They derive from `AbstractOutputScore`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradsift.nested import length, per_leaf, tensors
from gradsift.records import LossFunction, check_per_example
from gradsift.scores.precision import Precision, autocast
from gradsift.scores.untouched import Mode, untouched

Forward = Callable[[Any, Any], Any]
"""``forward(model, inputs)``: the model's outputs."""

ScoreFunction = Callable[[Any, LossFunction, Any, Any], Tensor]
"""``score(model, loss_fn, inputs, targets)``: one score ≥ 0 per example."""


class AbstractScore(ABC):
    """A score with a name. Implementations leave no trace in the model or in any random state."""

    @abstractmethod
    def __call__(
        self, model: Any, loss_fn: LossFunction, inputs: Any, targets: Any
    ) -> Float[Tensor, " batch"]:
        """One score ≥ 0 for each example, on the device of the inputs."""


class AbstractOutputScore(AbstractScore):
    """A score that the model's outputs determine: one forward pass, or none in a training step.

    Attributes:
        mode: "eval", or "train" for batch statistics and dropout, with no statistic updated.
        precision: of the scoring pass; "auto" takes bfloat16 where the device computes in it.
    """

    mode: Mode
    precision: Precision

    @abstractmethod
    def of_outputs(
        self, loss_fn: LossFunction, outputs: Any, targets: Any
    ) -> Float[Tensor, " batch"]:
        """The scores of outputs that are there already, in float32 or better, without a graph."""

    def __call__(
        self, model: Any, loss_fn: LossFunction, inputs: Any, targets: Any
    ) -> Float[Tensor, " batch"]:
        """Runs the model on ``inputs`` and scores its outputs."""
        with untouched(model, self.mode):
            return self.of_outputs(loss_fn, self.outputs(model, call_model, inputs), targets)

    def outputs(self, model: Any, forward: Forward, inputs: Any) -> Any:
        """One forward pass without a graph, in this score's precision."""
        with torch.no_grad(), autocast(inputs, self.precision):
            return forward(model, inputs)


def call_model(model: Any, inputs: Any) -> Any:
    """``model(**mapping)``, ``model(*sequence)`` or ``model(x)``, by the type of the inputs.

    Example:
        >>> import torch
        >>> call_model(torch.add, (torch.ones(1), torch.ones(1)))
        tensor([2.])
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def in_full_precision(tree: Any) -> Any:
    """The same nesting, detached, with floating tensors in float32 or better.

    Example:
        >>> import torch
        >>> in_full_precision(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return per_leaf(tree, _in_full_precision)


def _in_full_precision(leaf: Tensor) -> Tensor:
    leaf = leaf.detach()
    return leaf.float() if leaf.is_floating_point() and leaf.dtype != torch.float64 else leaf


def losses_of(loss_fn: LossFunction, outputs: Any, targets: Any) -> Float[Tensor, " batch"]:
    """``loss_fn(outputs, targets)`` on a copy of the outputs, so that it may work in place.

    The examples are counted by the first output, or by any other output that has as many rows as
    there are losses.

    Raises:
        UsageError: when ``loss_fn`` does not return one loss per example.

    Example:
        >>> import torch
        >>> losses_of(lambda outputs, targets: outputs.mul_(2).sum(1), torch.ones(2, 3), None)
        tensor([6., 6.])
    """
    losses = loss_fn(per_leaf(outputs, torch.clone), targets)
    rows = {leaf.shape[0] for leaf in tensors(outputs) if leaf.dim() > 0}
    counted = losses.dim() == 1 and len(losses) in rows
    check_per_example(losses, len(losses) if counted else length(outputs), "loss_fn returned")
    return losses


def device_of(tree: Any) -> torch.device:
    """The device of the first tensor of a nesting; the CPU where there is none."""
    found = tensors(tree)
    return found[0].device if found else torch.device("cpu")
