"""What a server does about a gradient that was computed at older weights.

Notation: g the gradient, w the server's weights now, w_s the stale ones that g was computed at,
τ its age in updates. A rule changes the gradient before the optimiser sees it, or the learning
rate of its step; with τ = 0 every rule here leaves the step as it is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.parallel.saved import check_keys

Tensors = Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Lateness:
    """How a gradient stands to the server's weights.

    Attributes:
        now: the weights that the step will change.
        stale: those that the gradient was computed at.
        age: updates between the two, corrections included.
        worker: who computed it.

    Example:
        >>> w = torch.tensor([1.0])
        >>> Lateness(now=[w + 0.5], stale=[w], age=1, worker=0).age
        1
    """

    now: Tensors
    stale: Tensors
    age: int
    worker: int


class AbstractCompensation(ABC):
    """A rule; what it remembers is in `state_dict`, as plain tensors and numbers."""

    def factor(self, age: int) -> float:
        """On the learning rate of this step."""
        del age
        return 1.0

    @abstractmethod
    def correct(self, gradients: Tensors, lateness: Lateness) -> list[Tensor]:
        """The gradient that the optimiser gets."""

    def observe(self, before: Tensors, after: Tensors) -> None:
        """Is told the weights before and after every arrival (corrections in between left out)."""
        del before, after

    def state_dict(self) -> dict[str, Any]:
        """What to keep for a resumed run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what was kept."""
        if state:
            raise UsageError(f"{type(self).__name__} keeps no state, but found {sorted(state)}")


@final
class Uncompensated(AbstractCompensation):
    """``g`` as it came: plain asynchronous SGD.

    Example:
        >>> Uncompensated().factor(9)
        1.0
    """

    def correct(self, gradients: Tensors, lateness: Lateness) -> list[Tensor]:
        """The gradient as it came."""
        del lateness
        return list(gradients)


@final
class LearningRateByAge(AbstractCompensation):
    """``η/max(1, τ)``: a late gradient makes a small step.

    The learning rate is divided, not the gradient, which adaptive optimisers would scale back.

    Reference:
        Zhang et al. 2015, "Staleness-aware async-SGD", https://arxiv.org/abs/1511.05950, equation
        for α/τ. There a fresh gradient has τ = 1.

    Example:
        >>> [LearningRateByAge().factor(age) for age in (0, 1, 4)]
        [1.0, 1.0, 0.25]
    """

    def factor(self, age: int) -> float:
        """``1/max(1, τ)``."""
        return 1.0 / max(1, age)

    def correct(self, gradients: Tensors, lateness: Lateness) -> list[Tensor]:
        """The gradient as it came."""
        del lateness
        return list(gradients)


@final
@dataclass(frozen=True)
class DelayCompensated(AbstractCompensation):
    """DC-ASGD-c: ``g + λ·g⊙g⊙(w − w_s)``, a diagonal guess of the Hessian times the gap.

    Args:
        strength: λ, in units of 1/(gradient·weight).

    Reference:
        Zheng et al. 2017, https://arxiv.org/abs/1609.08326, algorithm 2 with constant λ.

    Example:
        >>> one = [torch.tensor([2.0])]
        >>> late = Lateness(now=[torch.tensor([1.5])], stale=[torch.tensor([1.0])], age=1, worker=0)
        >>> DelayCompensated(0.1).correct(one, late)
        [tensor([2.2000])]
    """

    strength: float = 0.04

    def __post_init__(self) -> None:
        _check_strength(self.strength)

    def correct(self, gradients: Tensors, lateness: Lateness) -> list[Tensor]:
        """The compensated gradient."""
        return [
            g + self.strength * g.square() * (now - stale)
            for g, now, stale in zip(gradients, lateness.now, lateness.stale, strict=True)
        ]


@final
class AdaptiveDelayCompensated(AbstractCompensation):
    """DC-ASGD-a: λ becomes ``λ₀/√(m + 1e-7)`` per element, ``m ← β·m + (1 − β)·g²``.

    m starts at zero and is not corrected for that, as published; it is kept for every worker by
    itself, as the authors' server does.

    Args:
        strength: λ₀, in units of 1/weight.
        decay: β, of the mean square.

    Reference:
        Zheng et al. 2017, https://arxiv.org/abs/1609.08326, equation 14; per worker as in the
        authors' archived code (Multiverso, dcasgda updater).

    Example:
        >>> rule = AdaptiveDelayCompensated(2.0, decay=0.0)
        >>> late = Lateness(now=[torch.tensor([1.5])], stale=[torch.tensor([1.0])], age=1, worker=0)
        >>> [round(float(g), 4) for g in rule.correct([torch.tensor([2.0])], late)]
        [4.0]
    """

    def __init__(self, strength: float = 2.0, decay: float = 0.95) -> None:
        _check_strength(strength)
        _check_decay(decay)
        self._strength = strength
        self._decay = decay
        self._squares: dict[int, list[Tensor]] = {}

    def correct(self, gradients: Tensors, lateness: Lateness) -> list[Tensor]:
        """Moves the worker's mean square and compensates by it."""
        zeros = [torch.zeros_like(g) for g in gradients]
        before = self._squares.get(lateness.worker, zeros)
        squares = [
            self._decay * m + (1 - self._decay) * g.square()
            for m, g in zip(before, gradients, strict=True)
        ]
        self._squares[lateness.worker] = squares
        gaps = [now - stale for now, stale in zip(lateness.now, lateness.stale, strict=True)]
        return [
            g + self._strength / (m + 1e-7).sqrt() * g.square() * gap
            for g, m, gap in zip(gradients, squares, gaps, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The mean squares by worker."""
        return {"squares": {worker: list(kept) for worker, kept in self._squares.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the mean squares."""
        check_keys(self, state, {"squares"})
        self._squares = {worker: list(kept) for worker, kept in state["squares"].items()}


@final
class GapAware(AbstractCompensation):
    """``g/(1 + |w − w_s|/C)`` per element, C the root mean square step of each element.

    ``C² = EMA(Δw²)`` over the steps of arrivals, corrected for its start. A gradient that is k
    usual steps late weighs 1/(1 + k): the gap counts, not the age.

    Args:
        decay: of the moving average.

    Reference:
        Barkai, Hakimi & Schuster 2020, https://arxiv.org/abs/1909.10802. They have
        ``C = η_max·√EMA(v²)`` with v the momentum buffer: the same at a constant learning rate,
        and ours holds for every optimiser.

    Example:
        >>> rule, w = GapAware(), [torch.tensor([1.0])]
        >>> rule.observe(w, [torch.tensor([1.5])])
        >>> late = Lateness(now=[torch.tensor([1.5])], stale=w, age=1, worker=0)
        >>> rule.correct([torch.tensor([2.0])], late)
        [tensor([1.])]
    """

    def __init__(self, decay: float = 0.999) -> None:
        _check_decay(decay)
        self._decay = decay
        self._squares: list[Tensor] = []
        self._steps = 0

    def correct(self, gradients: Tensors, lateness: Lateness) -> list[Tensor]:
        """Each element divided by one plus its gap in usual steps; no gap leaves it alone."""
        gaps = [
            (now - stale).abs() for now, stale in zip(lateness.now, lateness.stale, strict=True)
        ]
        if not self._steps:
            return list(gradients)
        start = 1 - self._decay**self._steps
        usual = [(squares / start).sqrt() for squares in self._squares]
        return [
            torch.where(gap > 0, g * c / (c + gap), g)
            for g, gap, c in zip(gradients, gaps, usual, strict=True)
        ]

    def observe(self, before: Tensors, after: Tensors) -> None:
        """Averages the squared step."""
        moves = [(b - a).square() for a, b in zip(before, after, strict=True)]
        kept = self._squares or [torch.zeros_like(move) for move in moves]
        self._squares = [
            self._decay * old + (1 - self._decay) * new
            for old, new in zip(kept, moves, strict=True)
        ]
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The moving averages and how many steps they hold."""
        return {"squares": list(self._squares), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the moving averages."""
        check_keys(self, state, {"squares", "steps"})
        self._squares, self._steps = list(state["squares"]), int(state["steps"])


def _check_strength(strength: float) -> None:
    if not (math.isfinite(strength) and strength >= 0):
        raise UsageError(f"strength {strength} received, expected a finite number >= 0")


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise UsageError(f"decay {decay} received, expected a number from 0 to below 1")
