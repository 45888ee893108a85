"""The policy to leave on: it measures what each source of examples would give, and takes the best.

It starts in the user's own order. Training steps give their scores away, as far as an allowance of
one percent of the time permits while nothing is chosen; after one pass the table's proposals are
priced on them. Now and then a batch is looked at more closely: how long does scoring take, how much
of the gradient is noise. Every few steps `MeasuredGate` compares progress per second. The last part
of a run is in the user's own order again where the recipe says so and the loop tells its progress.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from gradsift.clock import AbstractClock
from gradsift.data.passes import Portion
from gradsift.gate import MeasuredGate
from gradsift.records import PLAIN, Plan, ScoreUpdate
from gradsift.sampling.table import ScoreTable
from gradsift.sifting.candidates import Candidates, Chooser
from gradsift.sifting.deciding import EVERY, Deciding, Moment
from gradsift.sifting.evidence import Evidence
from gradsift.sifting.memory import WINDOW, Memory
from gradsift.sifting.policy import AbstractPolicy
from gradsift.sifting.probes import Probes
from gradsift.sifting.ranks import AbstractRanks

WARM_UP = 16
"""Steps before the first probe."""

KEPT = 8
"""One of so many fresh scores is kept for the ratios of pools."""

LOOKING = 64
"""Steps out of the table between two of the user's own order, which are there to be looked at."""


class Auto(AbstractPolicy):
    """Measures, decides, and says why.

    Attributes:
        memory: the table; None where ids cannot be drawn from the whole data set.
        evidence: what was measured.
        deciding: what was decided on it, and what that may cost.
        batch_size: b, as last asked for.
    """

    learns = True
    window = WINDOW

    def __init__(self, chooser: Chooser, gate: MeasuredGate, memory: Memory | None) -> None:
        super().__init__()
        self.memory = memory
        self.evidence = Evidence(pools=chooser.setup.recipe.cap is None)
        self.deciding = Deciding(chooser.setup, gate, self.evidence, memory)
        self.batch_size = 0
        self._chooser = chooser
        self._clock: AbstractClock = chooser.setup.clock
        self._purses = self.deciding.purses
        self._probes = Probes(chooser, self.evidence, memory)
        self._probed = 0.0
        self._steps = self._looked_at = 0

    @property
    def table(self) -> ScoreTable | None:
        """Of the memory."""
        return None if self.memory is None else self.memory.table

    def join(self, ranks: AbstractRanks) -> None:
        """Shares the table with the other processes."""
        super().join(ranks)
        if self.memory is not None:
            self.memory.share(ranks)

    @property
    def wishes(self) -> bool:
        """Whether the allowance permits a probe."""
        if self.deciding.final or self._steps < WARM_UP:
            return False
        if not self._purses.probing.allows(self._now()):
            return False
        plain = self.evidence.times.median("off")
        return plain is not None and self._purses.probing.allows(self._now(), cost=plain)

    def plan(self, batch_size: int) -> Plan:
        """What the decision in force says."""
        self.batch_size = batch_size
        decision, in_use = self.deciding.decision, self.deciding.in_use
        if decision is None or in_use == "off" or self._looks():
            return PLAIN
        candidates = round(decision.offer.candidates * batch_size)
        if in_use == "pool" or self.memory is None:
            return Plan(candidates=candidates, size=batch_size)
        before = self._clock.now()
        two_stage = in_use == "two-stage"
        size = candidates if two_stage else self.deciding.spending.size(batch_size)
        draw = self.memory.draw(size, self._chooser.generator)
        self.evidence.drawing.add(self._clock.now() - before)
        return Plan(draw=draw, size=batch_size if two_stage else None)

    def wants_scores(self, *, drawn: bool) -> bool:
        """Always where they pay; within the allowance otherwise."""
        final = self.deciding.final
        return drawn or (not final and self._purses.observing.allows(self._now()))

    def observed(self, seconds: float, *, drawn: bool) -> None:
        """Notes what the scores of the step under way have cost."""
        self.evidence.observing.add(seconds)
        self._pay_for_observing(seconds, drawn=drawn)

    def learn(self, update: ScoreUpdate, weights: Tensor, *, drawn: bool) -> None:
        """Prices trained batches and keeps their scores."""
        before = self._clock.now()
        self._keep(update, weights)
        if self.memory is not None:
            self.memory.learn(update, weights)
            self.said += self.memory.news()
        seconds = self._clock.now() - before
        self.evidence.observing.add(seconds, times=0)
        self._pay_for_observing(seconds, drawn=drawn)

    def inspect(self, arrived: Candidates, portion: Portion, batch_size: int) -> None:
        """Measures something on a batch of the user's own order, where the allowance permits."""
        del batch_size
        if self.ranks.follows(self.wishes):
            before = self._clock.now()
            self._probes.take(arrived, portion.ids, self._steps)
            self._probed = self._clock.now() - before
            self._purses.probing.spend(self._probed)

    def timed(self, plan: Plan, seconds: float, loading: float) -> None:
        """Keeps the seconds of a step, and decides every few steps."""
        self._steps += 1
        self.evidence.times.add(plan.source, max(seconds - self._probed, 0.0))
        self.evidence.loading.add(plan.source, loading)
        self._probed = 0.0
        trained = self.batch_size if plan.draw is None else plan.size or plan.draw.size
        self.deciding.spending.timed(trained, seconds)
        if self.memory is not None:
            self.memory.passed(trained)
        if self._steps % EVERY == 0 and not (self._in_first_pass or self.deciding.final):
            self._decide()

    def summary(self) -> dict[str, Any]:
        """The decision in force."""
        deciding = self.deciding
        if deciding.decision is not None:
            reason = deciding.decision.reason
        elif self._in_first_pass:
            reason = "the first pass is in your own order"
        else:
            reason = "nothing is measured yet"
        if self.memory is not None:
            reason = self.memory.with_forecast(reason)
        return {
            "state": "off" if deciding.in_use == "off" else "on",
            "reason": reason,
            "opened_at_step": deciding.opened_at,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything measured and decided."""
        return {
            **super().state_dict(),
            "memory": None if self.memory is None else self.memory.state_dict(),
            "evidence": self.evidence.state_dict(),
            "deciding": self.deciding.state_dict(),
            "probes": self._probes.state_dict(),
            "probed": self._probed,
            "steps": [self._steps, self._looked_at],
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with everything that another one has measured."""
        super().load_state_dict(state)
        self.deciding.load_state_dict(state["deciding"])
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])
        self.evidence.load_state_dict(state["evidence"])
        self._probes.load_state_dict(state["probes"])
        self._probed = state["probed"]
        self._steps, self._looked_at = state["steps"]
        self.batch_size = state["batch_size"]

    def __str__(self) -> str:
        summary = self.summary()
        return f"{summary['state']}: {summary['reason']}"

    def _looks(self) -> bool:
        """Whether the next step is a plain one, so that noise and norms stay known while on."""
        due = self.memory is not None and self._steps - self._looked_at >= LOOKING
        if not (due and self.ranks.follows(self.wishes)):
            return False
        self._looked_at = self._steps
        return True

    def _pay_for_observing(self, seconds: float, *, drawn: bool) -> None:
        if not drawn:
            self._purses.observing.spend(seconds)

    def _keep(self, update: ScoreUpdate, weights: Tensor) -> None:
        ids, scores, weights = (part[::KEPT] for part in (update.index, update.score, weights))
        table = None if self.memory is None or not self.memory.complete else self.memory.table
        if table is None:
            self.evidence.keep(scores, weights)
        else:
            self.evidence.keep(scores, weights, 1 / (table.size * table.probabilities(ids)))

    def _decide(self) -> None:
        at = Moment(self._steps, self.batch_size, self._now(), self.progress)
        offers = self.deciding.take(at, self.ranks)
        spending, decision = self.deciding.spending, self.deciding.decision
        self.lr_factor = spending.lr_factor
        if offers is None or decision is None:
            return
        self.news.append(
            {
                **self.summary(),
                "gain": decision.gain,
                "noise_scale": decision.noise_scale,
                "batch_size": spending.size(self.batch_size),
                "lr_factor": self.lr_factor,
                "observing": self.evidence.observing.mean,
                "drawing": self.evidence.drawing.mean,
                "offers": [asdict(offer) for offer in offers],
            }
        )

    @property
    def _in_first_pass(self) -> bool:
        return self.memory is not None and not self.memory.complete

    def _now(self) -> float:
        return self._clock.now() - self.start
