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
from gradsift.gate import Decision, MeasuredGate, Offer
from gradsift.records import PLAIN, Plan, ScoreUpdate, Source
from gradsift.sampling.table import ScoreTable
from gradsift.sifting.candidates import Candidates, Chooser
from gradsift.sifting.evidence import Evidence
from gradsift.sifting.memory import WINDOW, Memory
from gradsift.sifting.policy import AbstractPolicy
from gradsift.sifting.probes import Probes
from gradsift.sifting.purses import Purses
from gradsift.sifting.ranks import AbstractRanks
from gradsift.sifting.spending import Spending

WARM_UP = 16
"""Steps before the first probe."""

KEPT = 8
"""One of so many fresh scores is kept for the ratios of pools."""

GROWTH = 1.05
"""Decisions that change nothing are written down at steps that grow by this factor."""

EVERY = 32
"""Steps between decisions."""

DWELL = 128
"""Steps that a source stays in use at least."""

LOOKING = 64
"""Steps out of the table between two of the user's own order, which are there to be looked at."""


class Auto(AbstractPolicy):
    """Measures, decides, and says why.

    Attributes:
        memory: the table; None where ids cannot be drawn from the whole data set.
        evidence: what was measured.
        decision: the latest; None before enough is known for one.
        batch_size: b, as last asked for.
    """

    learns = True
    window = WINDOW

    def __init__(self, chooser: Chooser, gate: MeasuredGate, memory: Memory | None) -> None:
        super().__init__()
        self.memory = memory
        self.evidence = Evidence(pools=chooser.setup.recipe.cap is None)
        self.decision: Decision | None = None
        self._chooser = chooser
        self._clock: AbstractClock = chooser.setup.clock
        self._gate = gate
        self._purses = Purses(gate.allowance)
        self._probes = Probes(chooser, self.evidence, memory)
        self._spending = Spending(chooser.setup.spend)
        self._probed = 0.0
        self._finish = chooser.setup.recipe.finish
        self._opened_at: int | None = None
        self._changed_at = self._looked_at = 0
        self._steps = self._write_at = 0
        self.batch_size = 0

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
        if self._finishing or self._steps < WARM_UP or not self._purses.probing.allows(self._now()):
            return False
        plain = self.evidence.times.median("off")
        return plain is not None and self._purses.probing.allows(self._now(), cost=plain)

    @property
    def in_use(self) -> Source:
        """The source of the coming steps."""
        return "off" if self.decision is None else self.decision.offer.source

    def plan(self, batch_size: int) -> Plan:
        """What the decision in force says."""
        self.batch_size = batch_size
        if self.decision is None or self.in_use == "off" or self._looks():
            return PLAIN
        candidates = round(self.decision.offer.candidates * batch_size)
        if self.in_use == "pool" or self.memory is None:
            return Plan(candidates=candidates, size=batch_size)
        before = self._clock.now()
        two_stage = self.in_use == "two-stage"
        size = candidates if two_stage else self._spending.size(batch_size)
        draw = self.memory.draw(size, self._chooser.generator)
        self.evidence.drawing.add(self._clock.now() - before)
        return Plan(draw=draw, size=batch_size if two_stage else None)

    def wants_scores(self, *, drawn: bool) -> bool:
        """Always where they pay; within the allowance otherwise."""
        return drawn or (not self._finishing and self._purses.observing.allows(self._now()))

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
        self._spending.timed(trained, seconds)
        if self.memory is not None:
            self.memory.passed(trained)
        if self._steps % EVERY == 0 and not (self._in_first_pass or self._finishing):
            self._decide()

    def offers(self, *, hopeless: bool = True) -> list[Offer]:
        """What is known about each source now; empty before a plain step was timed.

        Args:
            hopeless: whether pools are solved that could not gain anything.
        """
        price = None if self.memory is None else self.memory.price
        return self.evidence.offers(self.in_use, self.batch_size, price, hopeless=hopeless)

    def summary(self) -> dict[str, Any]:
        """The decision in force."""
        if self.decision is not None:
            reason = self.decision.reason
        elif self._in_first_pass:
            reason = "the first pass is in your own order"
        else:
            reason = "nothing is measured yet"
        if self.memory is not None:
            reason = self.memory.with_forecast(reason)
        return {
            "state": "off" if self.in_use == "off" else "on",
            "reason": reason,
            "opened_at_step": self._opened_at,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything measured and decided."""
        return {
            **super().state_dict(),
            "memory": None if self.memory is None else self.memory.state_dict(),
            "evidence": self.evidence.state_dict(),
            "decision": None if self.decision is None else asdict(self.decision),
            "purses": self._purses.state_dict(),
            "probes": self._probes.state_dict(),
            "spending": self._spending.state_dict(),
            "probed": self._probed,
            "opened_at": self._opened_at,
            "steps": [self._steps, self._changed_at, self._looked_at, self._write_at],
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with everything that another one has measured."""
        super().load_state_dict(state)
        self._spending.load_state_dict(state["spending"])
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])
        self.evidence.load_state_dict(state["evidence"])
        decided = state["decision"]
        self.decision = decided and Decision(**{**decided, "offer": Offer(**decided["offer"])})
        self._purses.load_state_dict(state["purses"])
        self._probes.load_state_dict(state["probes"])
        self._probed, self._opened_at = state["probed"], state["opened_at"]
        self._steps, self._changed_at, self._looked_at, self._write_at = state["steps"]
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
        """The first process decides for all."""
        before = self._clock.now()
        found = self._last() if self.ranks.leads else None
        dwelt = self._steps - self._changed_at >= DWELL
        may = found is None and dwelt and self.ranks.leads
        may = may and self._purses.may_compare(before - self.start)
        if may and (offers := self.offers(hopeless=False)):
            found = self._compare(offers), offers
        found = self.ranks.lead(found)
        if found is not None:
            self._adopt(*found)
        if may:
            self._purses.compared(self._clock.now() - before)

    def _last(self) -> tuple[Decision, list[Offer]] | None:
        """Back to the user's own order, where the end of the run is near."""
        if not self._finish or self.progress is None or self.progress < 1 - self._finish:
            return None
        plain = Offer("off", self.evidence.times.median("off") or 0.0)
        noise_scale = self.evidence.noise_scale(self.batch_size * self.ranks.size)
        reason = f"the last {self._finish:.0%} of the run are in your own order"
        return Decision(plain, 1.0, reason, noise_scale, final=True), [plain]

    def _compare(self, offers: list[Offer]) -> Decision:
        together = self.batch_size * self.ranks.size
        return self._gate.decide(
            offers,
            in_use=self.in_use,
            noise_scale=self.evidence.noise_scale(together),
            batch_size=together,
        )

    def _adopt(self, decision: Decision, offers: list[Offer]) -> None:
        first, before = self.decision is None, self._in_force
        self.decision = decision
        self._spending.decide(decision, self.batch_size, self.ranks)
        self.lr_factor = self._spending.lr_factor
        changed = self._in_force != before
        if changed:
            self._changed_at = self._steps
        if not (changed or first or self._steps >= self._write_at):
            return
        self._write_at = int(self._steps * GROWTH) + EVERY
        if self._opened_at is None and self.in_use != "off":
            self._opened_at = self._steps
        self.news.append(
            {
                **self.summary(),
                "gain": self.decision.gain,
                "noise_scale": self.decision.noise_scale,
                "batch_size": self._spending.size(self.batch_size),
                "lr_factor": self.lr_factor,
                "observing": self.evidence.observing.mean,
                "drawing": self.evidence.drawing.mean,
                "offers": [asdict(offer) for offer in offers],
            }
        )

    @property
    def _finishing(self) -> bool:
        return self.decision is not None and self.decision.final

    @property
    def _in_first_pass(self) -> bool:
        return self.memory is not None and not self.memory.complete

    @property
    def _in_force(self) -> tuple[Source, float, int]:
        candidates = 1.0 if self.decision is None else self.decision.offer.candidates
        return self.in_use, candidates, self._spending.size(self.batch_size)

    def _now(self) -> float:
        return self._clock.now() - self.start
