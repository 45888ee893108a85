"""What parallel workers compute: gradients and losses of batches, at whatever weights they hold.

Weights are handed in, never looked up: a delayed worker holds older ones than the server. Shapes
may start with the shape of a *population*, written ``runs``: ``()`` for one model, ``(R,)`` for R
independent runs that are simulated side by side, each with its own data order. Optimisers whose
rule is elementwise need not know.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.func import functional_call

from gradsift.nested import move
from gradsift.records import check_per_example
from gradsift.scores.base import AbstractOutputScore
from gradsift.scores.output_gradient import OutputGradient
from gradsift.scores.untouched import untouched

Weights = Sequence[Tensor]
"""One tensor per parameter, in the order of the server's."""

Fetch = Callable[[Tensor], tuple[Any, Tensor]]
"""From ids of shape ``[size]`` to inputs and targets."""

OUTPUT_GRADIENT = OutputGradient()
"""The score that a training step gives away."""


class AbstractObjective(ABC):
    """The mean loss of a batch of examples as a function of the weights."""

    @abstractmethod
    def gradient(self, weights: Weights, batch: Int64[Tensor, "*runs size"]) -> list[Tensor]:
        """The gradient of the batch's mean loss, one tensor per parameter."""

    @abstractmethod
    def loss(self, weights: Weights, batch: Int64[Tensor, "*runs size"]) -> Float[Tensor, "*runs"]:
        """The batch's mean loss; it leaves no trace."""

    def agree(self, *choices: Tensor) -> tuple[Tensor, ...]:
        """What a guide chose, as all processes that train together have it; alone, as it is."""
        return choices


class AbstractScoredObjective(AbstractObjective):
    """An objective that can weigh examples, and whose gradient gives their scores away."""

    @abstractmethod
    def scored_gradient(
        self,
        weights: Weights,
        batch: Int64[Tensor, "*runs size"],
        importance: Float64[Tensor, "*runs size"],
    ) -> tuple[list[Tensor], Float[Tensor, "*runs size"]]:
        """The gradient of ``(1/b) Σ_j w_j ℓ(i_j)``, and each example's score at these weights.

        The divisor is the size b of the batch, never ``Σ w``: that would be biased.
        """


@final
class ModuleObjective(AbstractScoredObjective):
    """The mean loss of a PyTorch module on batches of ids.

    Gradients are taken in the module's own mode, and BatchNorm's statistics move with each of
    them, in the order of arrival; losses are taken in eval mode and leave no trace. With BatchNorm
    in train mode a weighted batch has no unbiased gradient: the loss is no sum over examples.

    Args:
        model: its parameters give names and shapes; their values come with each call.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example.
        fetch: from ids to inputs and targets.
        device: where the model is.
        score: of the outputs of a training step; the output gradient by default.

    Example:
        >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]])
        >>> def squared(outputs, targets):
        ...     return (outputs - targets).square().sum(1)
        >>> objective = ModuleObjective(model, squared, lambda ids: (x[ids], x[ids]))
        >>> stale = [torch.zeros(1, 1)]
        >>> objective.gradient(stale, torch.tensor([0, 1]))
        [tensor([[-5.]])]
        >>> objective.loss(stale, torch.tensor([1]))
        tensor(4.)
        >>> weights = torch.tensor([2.0, 0.5], dtype=torch.float64)
        >>> objective.scored_gradient(stale, torch.tensor([0, 1]), weights)
        ([tensor([[-4.]])], tensor([2., 4.]))
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        fetch: Fetch,
        device: torch.device | str = "cpu",
        score: AbstractOutputScore = OUTPUT_GRADIENT,
    ) -> None:
        self._model = model
        self._loss_fn = loss_fn
        self._fetch = fetch
        self._device = device
        self._score = score
        self._names = [name for name, _ in model.named_parameters()]

    def gradient(self, weights: Weights, batch: Int64[Tensor, " size"]) -> list[Tensor]:
        """The gradient at the given weights; parameters that the loss does not use have zeros."""
        leaves = [weight.detach().requires_grad_() for weight in weights]
        with torch.enable_grad():
            outputs, targets = self._outputs(leaves, batch)
            return _gradients(self._loss_fn(outputs, targets).mean(), leaves)

    def scored_gradient(
        self,
        weights: Weights,
        batch: Int64[Tensor, " size"],
        importance: Float64[Tensor, " size"],
    ) -> tuple[list[Tensor], Float[Tensor, " size"]]:
        """The weighted gradient, and the scores of the same outputs: nothing is computed twice.

        Raises:
            UsageError: when ``loss_fn`` does not return one loss per example.
        """
        leaves = [weight.detach().requires_grad_() for weight in weights]
        with torch.enable_grad():
            outputs, targets = self._outputs(leaves, batch)
            losses = self._loss_fn(outputs, targets)
            check_per_example(losses, len(batch), "loss_fn returned")
            gradients = _gradients((importance.to(losses) * losses).sum() / len(batch), leaves)
        return gradients, self._score.of_outputs(self._loss_fn, outputs, targets)

    def loss(self, weights: Weights, batch: Int64[Tensor, " size"]) -> Float[Tensor, ""]:
        """The loss at the given weights, in eval mode."""
        with untouched(self._model), torch.no_grad():
            outputs, targets = self._outputs(weights, batch)
            return self._loss_fn(outputs, targets).mean()

    def _outputs(self, weights: Weights, batch: Tensor) -> tuple[Any, Tensor]:
        inputs, targets = move(self._fetch(batch), self._device)
        named = dict(zip(self._names, weights, strict=True))
        return functional_call(self._model, named, (inputs,)), targets


def _gradients(mean: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    parts = torch.autograd.grad(mean, leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if part is None else part
        for leaf, part in zip(leaves, parts, strict=True)
    ]
