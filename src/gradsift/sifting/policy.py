"""Who decides what a step takes, from what earlier steps told, and what it says about that.

A policy never sees the batch that it decides on. The loop asks it for a plan when the ids of a step
are needed, shows it the fresh scores of every pool, and hands it the scores that training steps
give away for nothing, one step late.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gradsift.data.passes import Portion
from gradsift.data.sources import AbstractSource
from gradsift.gate import AbstractGate, GateState
from gradsift.recipes.recipe import Recipe
from gradsift.records import PLAIN, Draw, Plan, ScoreUpdate
from gradsift.sampling.quarantine import neutralise
from gradsift.sampling.resampling import Resampler
from gradsift.sampling.table import ScoreTable
from gradsift.scores.base import AbstractOutputScore
from gradsift.sifting.candidates import Candidates, Chooser
from gradsift.sifting.ranks import AbstractRanks, Alone


class AbstractPolicy(ABC):
    """Decides what each step takes.

    Attributes:
        start: when the first iteration began.
        news: decisions that were not written down yet, each as the values of a line of the log.
        said: what is to be said about the run, once, in words.
        measured: events for the log that were not written down yet: name and values.
        lr_factor: how many times larger a step may be than the user's own.
        progress: share of the run that is over, from 0 to 1; None where the loop does not say.
        ranks: the processes that decide together.
        learns: whether scores of training steps are ever wanted.
        window: training steps whose scores it takes together.
    """

    learns: bool = False
    window: int = 1

    def __init__(self) -> None:
        self.news: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.measured: list[tuple[str, dict[str, Any]]] = []
        self.start = 0.0
        self.lr_factor = 1.0
        self.progress: float | None = None
        self.ranks: AbstractRanks = Alone()

    def begin(self, now: float) -> None:
        """The first iteration begins, at this moment of the clock."""
        self.start = now

    def join(self, ranks: AbstractRanks) -> None:
        """From now on these processes decide together."""
        self.ranks = ranks

    @property
    def table(self) -> ScoreTable | None:
        """The score table, or None where none is kept."""
        return None

    @property
    def tau(self) -> float | None:
        """The moving average of τ that decides, or None where none does."""
        return None

    @property
    def wishes(self) -> bool:
        """Whether it would inspect the next batch of the user's own order."""
        return False

    @abstractmethod
    def plan(self, batch_size: int) -> Plan:
        """What the next step takes."""

    @abstractmethod
    def __str__(self) -> str:
        """Whether examples are chosen by score, and why, in one line."""

    def wants_scores(self, *, drawn: bool) -> bool:
        """Whether the step under way shall give its scores away."""
        del drawn
        return False

    def learn(self, update: ScoreUpdate, weights: Tensor, *, drawn: bool) -> None:
        """Takes the scores of trained batches, and the weights that they were trained with."""
        del update, weights, drawn

    def inspect(self, arrived: Candidates, portion: Portion, batch_size: int) -> Tensor | None:
        """Looks at a batch that will be trained on as it came; returns its scores where it did."""
        del arrived, portion, batch_size

    def relate(self, scores: Tensor, ids: Tensor) -> Tensor:
        """The fresh scores of a pool, set against what is known of its examples."""
        del ids
        return scores

    def see(self, scores: Tensor, step: int) -> None:
        """Takes the fresh scores of a pool."""
        del scores, step

    def observed(self, seconds: float, *, drawn: bool) -> None:
        """Learns what it has cost to keep, and now and then to score, a training step."""
        del seconds, drawn

    def timed(self, plan: Plan, seconds: float, loading: float) -> None:
        """Learns how long a whole step took, and its loading."""
        del plan, seconds, loading

    def search(self) -> float:
        """Looks for scores elsewhere, between two steps; returns the seconds that it took."""
        return 0.0

    def close(self) -> None:  # noqa: B027 - most policies run nothing beside the training
        """Ends what runs beside the training."""

    def summary(self) -> dict[str, Any] | None:
        """``state``, ``reason`` and ``opened_at_step``; None where nothing is switched."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What was learnt, as plain tensors and numbers; decisions are written down before."""
        return {
            "start": self.start,
            "lr_factor": self.lr_factor,
            "progress": self.progress,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another policy of the same recipe, to the bit.

        Raises:
            UsageError: for a state that does not fit the recipe or the data.
        """
        self.start, self.lr_factor = state["start"], state["lr_factor"]
        self.progress = state["progress"]

    @property
    def engine_summary(self) -> dict[str, Any] | None:
        """``kind``, ``workers_lost`` and ``restarts``; None without an engine."""
        return None

    def engine_status(self) -> dict[str, Any] | None:
        """How an engine's search goes; None without one."""
        return None


class Unscored(AbstractPolicy):
    """The user's own order, or independent uniform ids: no score is asked for."""

    def __init__(self, recipe: Recipe, source: AbstractSource, generator: torch.Generator) -> None:
        super().__init__()
        self._recipe = recipe
        self._examples = source.examples or 0
        self._generator = generator

    def plan(self, batch_size: int) -> Plan:
        """The next batch as it comes, or ids of its own."""
        if self._recipe.source == "loader":
            return PLAIN
        ids = torch.randint(self._examples, (batch_size,), generator=self._generator)
        return Plan(draw=Draw(ids, torch.ones(batch_size, dtype=torch.float64), batch_size))

    def __str__(self) -> str:
        return f"off: recipe {self._recipe.name!r} chooses no example by score"


class AlwaysPool(AbstractPolicy):
    """A scored pool at every step.

    Args:
        recipe: whose ratio is used.
        resampler: that draws from the pools, where one remembers them.
    """

    def __init__(self, recipe: Recipe, resampler: Resampler | None = None) -> None:
        super().__init__()
        self._recipe = recipe
        self._resampler = resampler

    def plan(self, batch_size: int) -> Plan:
        """``r·b`` candidates for b examples."""
        return Plan(candidates=round(self._recipe.ratio * batch_size), size=batch_size)

    def state_dict(self) -> dict[str, Any]:
        """What earlier pools have told."""
        resampler = self._resampler
        kept = None if resampler is None else resampler.state_dict()
        return {**super().state_dict(), "resampler": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with what other pools have told."""
        super().load_state_dict(state)
        if self._resampler is not None:
            self._resampler.load_state_dict(state["resampler"])

    def __str__(self) -> str:
        ratio = self._recipe.ratio
        return f"on: recipe {self._recipe.name!r} draws one of {ratio:g} candidates, always"


class SwitchedPool(AbstractPolicy):
    """A pool while a published gate is open."""

    learns = True

    def __init__(self, recipe: Recipe, gate: AbstractGate, chooser: Chooser) -> None:
        super().__init__()
        self.state = GateState()
        self._recipe = recipe
        self._gate = gate
        self._chooser = chooser
        self._steps = 0
        self._free = isinstance(recipe.score, AbstractOutputScore)

    @property
    def tau(self) -> float:
        """The gate's moving average."""
        return self.state.tau

    def plan(self, batch_size: int) -> Plan:
        """A pool where the gate is open."""
        if not self.state.open:
            return PLAIN
        return self._gate.plan(self.state, batch_size, self._recipe.ratio)

    def wants_scores(self, *, drawn: bool) -> bool:
        """Of uniform steps; while the gate is open pools tell more."""
        return self._free and not drawn

    def learn(self, update: ScoreUpdate, weights: Tensor, *, drawn: bool) -> None:
        """As from a pool, but for nothing."""
        del weights
        if not drawn:
            self.see(update.score, self._steps + 1)

    def timed(self, plan: Plan, seconds: float, loading: float) -> None:
        """Counts steps, which updates may be fewer than."""
        del plan, seconds, loading
        self._steps += 1

    def inspect(self, arrived: Candidates, portion: Portion, batch_size: int) -> Tensor | None:
        """Scores the batch where its training step cannot."""
        del portion
        return None if self._free else self._chooser.score(arrived, batch_size)

    def state_dict(self) -> dict[str, Any]:
        """What the gate has seen."""
        return {**super().state_dict(), "gate": asdict(self.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with what another gate has seen."""
        super().load_state_dict(state)
        self.state = GateState(**state["gate"])

    def see(self, scores: Tensor, step: int) -> None:
        """Lets the gate decide anew."""
        before = self.state
        values = neutralise(scores).values
        self.state = self._gate.observe(before, values, step, self._recipe.ratio)
        if before.observed == 0 or before.open != self.state.open:
            self.news.append({"tau": self.state.tau, **self.summary()})

    def summary(self) -> dict[str, Any]:
        """The gate's state and its reason."""
        return {
            "state": "on" if self.state.open else "off",
            "reason": self._gate.reason(self.state, self._recipe.ratio),
            "opened_at_step": self.state.opened_at_step,
        }

    def __str__(self) -> str:
        summary = self.summary()
        return f"{summary['state']}: {summary['reason']}"
