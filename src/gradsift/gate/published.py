"""When is sampling on, and how large are the pool and the batch? Decided anew for every step.

A gate is a frozen rule. What it has seen is a small record, handed in and handed back, so a
decision depends on the past alone, never on the batch that it weights.

The gate of Katharopoulos & Fleuret (2018) watches τ. Resampling b of B examples reduces the
variance as if the batch were τ times larger; a step then costs B forward passes and b training
steps of three (a backward pass costs two forward ones), so the published switch opens where
``B + 3b < 3τb``. It opens too early for small pools and too late for large ones: the variance
falls by τ², not τ, and the pool's own noise is forgotten (see `gradsift.monitors`). It is kept as
published.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.monitors.moments import tau
from gradsift.records import Plan


@dataclass(frozen=True)
class GateState:
    """What a gate has seen.

    Attributes:
        tau: moving average of τ, from zero and without correction, as published.
        observed: how many batches or pools it averages.
        open: whether the next step draws by score.
        opened_at_step: the first step that did, or None.
    """

    tau: float = 0.0
    observed: int = 0
    open: bool = False
    opened_at_step: int | None = None


class AbstractGate(ABC):
    """A rule that opens and shuts sampling by the moving average of τ.

    Attributes:
        momentum: of the moving average.
        takes_ratio: whether the recipe's pool ratio counts, or the rule sizes the pool itself.
    """

    momentum: float
    takes_ratio: ClassVar[bool]

    @abstractmethod
    def needed(self, ratio: float) -> float:
        """The τ above which the gate is open, for a pool of ``ratio`` batches."""

    @abstractmethod
    def plan(self, state: GateState, batch_size: int, ratio: float) -> Plan:
        """The pool and the batch of a step that draws by score."""

    def observe(
        self, state: GateState, scores: Float[Tensor, " candidates"], step: int, ratio: float
    ) -> GateState:
        """Averages the τ of fresh scores and decides for the next step."""
        average = self.momentum * state.tau + (1 - self.momentum) * tau(scores)
        is_open = average > self.needed(ratio)
        opened = step if is_open and state.opened_at_step is None else state.opened_at_step
        return replace(
            state,
            tau=average,
            observed=state.observed + 1,
            open=is_open,
            opened_at_step=opened,
        )

    def reason(self, state: GateState, ratio: float) -> str:
        """The decision with its numbers, in words."""
        return (
            f"needs tau above {self.needed(ratio):.2f}, has {state.tau:.2f} "
            f"(moving average over {state.observed} batches)"
        )


@dataclass(frozen=True)
class TauThreshold(AbstractGate):
    """Open while ``τ > (B + 3b)/(3b) = 1 + r/3``, or above a given threshold.

    Args:
        threshold: the τ to exceed; None takes the published rule.
        momentum: of the moving average ``τ̄ ← 0.9·τ̄ + 0.1·τ``, which starts at zero. The start is
            a warm-up: a constant τ of 2 against 1.5 opens the gate after 14 batches.

    Reference:
        Katharopoulos & Fleuret 2018, algorithm 1 and equation 26,
        https://arxiv.org/abs/1803.00942.

    Example:
        >>> import torch
        >>> gate, state = TauThreshold(), GateState()
        >>> for step in range(30):
        ...     state = gate.observe(state, torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]), step, 3.0)
        >>> state.open, state.opened_at_step, gate.needed(3.0)
        (True, 16, 2.0)
        >>> gate.plan(state, 64, 3.0)
        Plan(candidates=192, size=64, draw=None)
    """

    takes_ratio: ClassVar[bool] = True

    threshold: float | None = None
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check_momentum(self.momentum)
        if self.threshold is not None:
            _check_threshold(self.threshold)

    def needed(self, ratio: float) -> float:
        """The given threshold, or ``1 + r/3``."""
        return 1 + ratio / 3 if self.threshold is None else self.threshold

    def plan(self, state: GateState, batch_size: int, ratio: float) -> Plan:
        """``B = r·b`` candidates for a batch of ``b``."""
        del state
        return Plan(candidates=round(ratio * batch_size), size=batch_size)


@dataclass(frozen=True)
class ConstantVariance(AbstractGate):
    """Trains on fewer examples at about the variance of the whole batch.

    Of each batch of b, all scored, ``⌊(1/τ̄ + extra)·b⌋`` are kept while
    ``τ̄ > 1/(β/(1 + β) − extra)``. Relative cost of a step: ``(1 + (1+β)(1/τ̄ + extra))/(1+β)``.

    Args:
        backward: β, what a backward pass costs in forward passes.
        extra: share of the batch kept on top.
        momentum: of the moving average of τ, from zero.

    Reference:
        The authors' library (github.com/idiap/importance-sampling), `ConstantVarianceSampler`.

    Example:
        >>> gate = ConstantVariance()
        >>> round(gate.needed(1.0), 3)
        2.143
        >>> gate.plan(GateState(tau=5.0), 128, 1.0)
        Plan(candidates=128, size=51, draw=None)
    """

    takes_ratio: ClassVar[bool] = False

    backward: float = 2.0
    extra: float = 0.2
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check_momentum(self.momentum)
        _check_backward(self.backward)
        limit = self.backward / (1 + self.backward)
        if not 0 <= self.extra < limit:
            raise UsageError(
                f"extra {self.extra} received, expected a share from 0 to below {limit:.3f}, "
                "where keeping fewer examples can pay"
            )

    def needed(self, ratio: float) -> float:
        """``1/(β/(1 + β) − extra)``, whatever the ratio."""
        del ratio
        return 1 / (self.backward / (1 + self.backward) - self.extra)

    def plan(self, state: GateState, batch_size: int, ratio: float) -> Plan:
        """One batch as the pool, and fewer examples to train on."""
        del ratio
        size = max(1, int((1 / state.tau + self.extra) * batch_size))
        return Plan(candidates=batch_size, size=min(size, batch_size))


@dataclass(frozen=True)
class ConstantTime(AbstractGate):
    """Trains on fewer examples out of more, in the time of a plain step.

    With ``t = (1 + β)b`` and ``a = max(least·b, b/τ̄)``: the pool that fits is
    ``t − (1 + β)a``; it is approached by ``share``, ``B = ⌊b + (t − (1+β)a − b)·share⌋``, and the
    batch is what is left, ``⌊(t − B)/(1 + β)⌋``.

    Args:
        backward: β, what a backward pass costs in forward passes.
        threshold: the τ to exceed.
        share: how far the pool grows towards the largest that fits.
        least: the smallest share of the batch.
        momentum: of the moving average of τ, from zero.

    Reference:
        The authors' library (github.com/idiap/importance-sampling), `ConstantTimeSampler`.

    Example:
        >>> ConstantTime().plan(GateState(tau=3.0), 128, 1.0)
        Plan(candidates=192, size=64, draw=None)
    """

    takes_ratio: ClassVar[bool] = False

    backward: float = 2.0
    threshold: float = 2.0
    share: float = 0.5
    least: float = 0.2
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check_momentum(self.momentum)
        _check_backward(self.backward)
        _check_threshold(self.threshold)
        if not 0 < self.least <= 1 or not 0 <= self.share <= 1:
            raise UsageError(
                f"least {self.least} and share {self.share} received, expected "
                "0 < least <= 1 and 0 <= share <= 1"
            )

    def needed(self, ratio: float) -> float:
        """The threshold, whatever the ratio."""
        del ratio
        return self.threshold

    def plan(self, state: GateState, batch_size: int, ratio: float) -> Plan:
        """A larger pool and a smaller batch that together cost as much as a plain step."""
        del ratio
        time = (1 + self.backward) * batch_size
        smallest = max(self.least * batch_size, batch_size / state.tau)
        fitting = time - (1 + self.backward) * smallest
        pool = int(batch_size + (fitting - batch_size) * self.share)
        size = int((time - pool) / (1 + self.backward))
        return Plan(candidates=max(pool, size), size=max(1, size))


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise UsageError(f"momentum {momentum} received, expected a number from 0 to below 1")


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < math.inf:
        raise UsageError(f"threshold {threshold} received, expected a number above 0")


def _check_backward(backward: float) -> None:
    if not 0 < backward < math.inf:
        raise UsageError(
            f"backward {backward} received, expected a number above 0: the cost of a backward "
            "pass in forward passes"
        )
