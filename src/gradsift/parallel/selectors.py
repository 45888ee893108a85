"""Which batches of a window are replayed, and in which order.

All selectors see the same window and replay the same *number* of batches, that of the consistent
ones: so they differ in which, and an arm with another selector is an honest control.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradsift.parallel.objective import AbstractObjective, ModuleObjective, Weights
from gradsift.parallel.saved import check_keys


@dataclass(frozen=True, eq=False)
class Window:
    """What a guide knows when it chooses.

    Attributes:
        objective: what is learnt.
        now: the weights.
        anchor: the weights when the window began.
        batches: the candidates, oldest first.
        verification: the examples that were looked at last.
        consistency: mean score of each batch, ``[*runs, n]``.
        direction: +1 where the verification loss fell over the last update, −1 elsewhere.

    Example:
        >>> window = example_window()
        >>> window.losses(window.now)
        tensor([1., 9., 4.])
    """

    objective: AbstractObjective
    now: Weights
    anchor: Weights
    batches: list[Tensor]
    verification: Tensor
    consistency: Float[Tensor, "*runs n"]
    direction: Float[Tensor, "*runs"]

    def losses(self, weights: Weights) -> Float[Tensor, "*runs n"]:
        """The loss of each batch at some weights: one forward pass per batch."""
        found = [self.objective.loss(weights, batch) for batch in self.batches]
        return torch.stack(found, dim=-1)


class AbstractSelector(ABC):
    """Gives every batch of a window a rank: the largest are replayed first."""

    @abstractmethod
    def ranks(self, window: Window) -> Float[Tensor, "*runs n"]:
        """One number per batch."""

    def eligible(self, window: Window, ranks: Tensor) -> Bool[Tensor, "*runs n"]:
        """As many of the highest ranks as there are consistent batches."""
        counts = (window.consistency > 0).sum(dim=-1, keepdim=True)
        order = ranks.argsort(dim=-1, descending=True, stable=True)
        places = torch.arange(ranks.shape[-1]).expand(ranks.shape)
        return torch.zeros_like(ranks, dtype=torch.bool).scatter(-1, order, places < counts)

    def state_dict(self) -> dict[str, Any]:
        """What later ranks depend on, besides the windows: plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the ranks that would have come next."""
        check_keys(self, state, set())


@final
class Consistent(AbstractSelector):
    """The batches whose own loss lies on the side to which the average loss moved, as published.

    ``c_k = s·(Ē' − e_k(w)) > 0``: in an update that lowered the verification loss (s = +1) those
    easier than the previous average Ē', in one that raised it those harder.

    Reference:
        Sharma 2021, "Guided parallelized stochastic gradient descent for delay compensation",
        Applied Soft Computing 102, and its public code.

    Example:
        >>> window = example_window()
        >>> Consistent().eligible(window, Consistent().ranks(window))
        tensor([ True, False,  True])
    """

    def ranks(self, window: Window) -> Float[Tensor, "*runs n"]:
        """The mean consistency score."""
        return window.consistency


@final
class Random(AbstractSelector):
    """Any batches: the control that consistent replay has to beat.

    Args:
        generator: of the ranks.

    Example:
        >>> window, random = example_window(), Random(torch.Generator())
        >>> int(random.eligible(window, random.ranks(window)).sum())
        2
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def ranks(self, window: Window) -> Float[Tensor, "*runs n"]:
        """Uniform random numbers."""
        return torch.rand(window.consistency.shape, generator=self._generator).to(
            window.consistency.dtype
        )

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the generator."""
        check_keys(self, state, {"generator"})
        self._generator.set_state(state["generator"])


@final
class Hardest(AbstractSelector):
    """The batches with the largest loss now (the first public version replays these).

    Example:
        >>> Hardest().ranks(example_window())
        tensor([1., 9., 4.])
    """

    def ranks(self, window: Window) -> Float[Tensor, "*runs n"]:
        """The loss at the present weights."""
        return window.losses(window.now)


@final
class Easiest(AbstractSelector):
    """The batches with the smallest loss now.

    Example:
        >>> Easiest().ranks(example_window())
        tensor([-1., -9., -4.])
    """

    def ranks(self, window: Window) -> Float[Tensor, "*runs n"]:
        """Minus the loss at the present weights."""
        return -window.losses(window.now)


@final
class OwnLossChange(AbstractSelector):
    """The batches whose own loss moved as the average moved: ``s·(e_k(w₀) − e_k(w))``.

    w₀ are the weights when the window began. The consistency score compares a batch with the
    average over others, so it prefers easy or hard batches; this one compares it with itself.
    Ours; no paper.

    Example:
        >>> OwnLossChange().ranks(example_window())
        tensor([ 3., 27., 12.])
    """

    def ranks(self, window: Window) -> Float[Tensor, "*runs n"]:
        """The signed fall of each batch's loss over the window."""
        fall = window.losses(window.anchor) - window.losses(window.now)
        return window.direction.unsqueeze(-1) * fall


@final
class Alignment(AbstractSelector):
    """The batches whose gradient points where the verification gradient points: their cosine.

    Costs a gradient for every candidate, and one for the verification examples. Ours; compare
    Killamsetty et al. 2021, https://arxiv.org/abs/2103.00123 (GRAD-MATCH).

    Example:
        >>> Alignment().ranks(example_window())
        tensor([1., 1., 1.])
    """

    def ranks(self, window: Window) -> Float[Tensor, "*runs n"]:
        """Cosines, 0 where a gradient is zero."""
        return _cosines(window, window.objective.gradient(window.now, window.verification))


@final
class MovementAlignment(AbstractSelector):
    """The batches whose gradient points along the way of the window: their cosine with ``w₀ − w``.

    The movement since the window began is a momentum over that window, whatever the optimiser, and
    needs no verification examples. It costs a gradient for every candidate. Ours; no paper.

    Example:
        >>> MovementAlignment().ranks(example_window())
        tensor([1., 1., 1.])
    """

    def ranks(self, window: Window) -> Float[Tensor, "*runs n"]:
        """Cosines, 0 where a gradient or the movement is zero."""
        moved = [old - new for old, new in zip(window.anchor, window.now, strict=True)]
        return _cosines(window, moved)


def _cosines(window: Window, target: Weights) -> Float[Tensor, "*runs n"]:
    """The cosine of each batch's gradient at the present weights with a target."""
    runs = window.direction.dim()
    own = _inner(target, target, runs)
    found = []
    for batch in window.batches:
        gradient = window.objective.gradient(window.now, batch)
        scale = (own * _inner(gradient, gradient, runs)).sqrt()
        inner = _inner(gradient, target, runs)
        found.append(torch.where(scale > 0, inner / scale, torch.zeros_like(inner)))
    return torch.stack(found, dim=-1)


def _inner(left: Weights, right: Weights, runs: int) -> Float[Tensor, "*runs"]:
    """The inner product over all parameters, for each run of a population."""
    parts = [(a * b).flatten(runs).sum(dim=-1) for a, b in zip(left, right, strict=True)]
    return torch.stack(parts).sum(dim=0)


def example_window() -> Window:
    """Three batches of one number for a line through the origin, as the examples here use it.

    Example:
        >>> example_window().consistency
        tensor([ 0.5000, -0.1000,  0.7000])
    """
    x = torch.tensor([[1.0], [3.0], [2.0]])

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1)

    return Window(
        objective=ModuleObjective(
            nn.Linear(1, 1, bias=False), squared, lambda ids: (x[ids], torch.zeros(len(ids), 1))
        ),
        now=[torch.tensor([[1.0]])],
        anchor=[torch.tensor([[2.0]])],
        batches=list(torch.arange(3).unsqueeze(1)),
        verification=torch.tensor([0]),
        consistency=torch.tensor([0.5, -0.1, 0.7]),
        direction=torch.tensor(1.0),
    )
