"""Draws by scores that an engine measures beside the training, and never waits for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gradsift.data.sources import MapSource
from gradsift.engine.curves import Curves
from gradsift.engine.interface import AbstractEngine, Scored
from gradsift.engine.sweep import Sweep
from gradsift.engine.task import plain_module
from gradsift.monitors.recovered import recovered
from gradsift.recipes.search import Search
from gradsift.records import PLAIN, Plan
from gradsift.sampling.table import ScoreTable
from gradsift.sifting.candidates import Chooser
from gradsift.sifting.memory import WINDOW
from gradsift.sifting.policy import AbstractPolicy
from gradsift.sifting.proposals import AbstractProposal, FilteredProposal, NeutralProposal
from gradsift.sifting.ranks import AbstractRanks
from gradsift.sifting.station import Station
from gradsift.sifting.task import task_of


class Searched(AbstractPolicy):
    """Publishes parameters, asks for blocks, takes what has come, draws.

    Of several processes that sift together the first talks to the engine. What has come it passes
    on once in a window of steps, so all have the same scores, make the same draw, and take a share
    each.

    Args:
        chooser: counts and times what is scored, and has the generator of the draws.
        source: of the loader, with ids.
        engine: not started yet; closed by `close`.
        search: how its scores are used.

    Attributes:
        engine: where scores come from.
        sweep: how old the scores of every block are.
        curves: of the data sets that workers evaluate.
        proposal: what is drawn from.
    """

    def __init__(
        self, chooser: Chooser, source: MapSource, engine: AbstractEngine, search: Search
    ) -> None:
        super().__init__()
        options = engine.options
        self.engine = engine
        self._setup = chooser.setup
        self._chooser = chooser
        self._source = source
        self._search = search
        self._every = options.every or search.every
        examples = source.examples or 0
        self.sweep = Sweep(examples, options.block, options.order)
        self.curves = Curves(list(options.evaluate), first=len(self.sweep.blocks))
        self._station = Station(engine, self.sweep, self.curves)
        self.proposal = self._make_proposal(examples)
        self._model = plain_module(self._setup.model)
        self._steps = 0
        self._opened_at: int | None = None
        self._delivered = 0
        self._quarantined = 0

    def join(self, ranks: AbstractRanks) -> None:
        """Starts the engine, in the first of several processes."""
        super().join(ranks)
        self.proposal.share(ranks)
        setup, options, loader = self._setup, self.engine.options, self._source.loader
        self._station.join(ranks, self._model, lambda: task_of(setup, self._model, options, loader))

    def begin(self, now: float) -> None:
        """Publishes the parameters as they are before the first step."""
        super().begin(now)
        self._station.publish(self._model.state_dict(), self._steps)
        self._pass_on(due=False)
        self.proposal.refresh()
        self._station.ask()

    def state_dict(self) -> dict[str, Any]:
        """What is known of the scores. What workers are doing is asked for again."""
        return {
            **super().state_dict(),
            "steps": self._steps,
            "opened_at": self._opened_at,
            "delivered": self._delivered,
            "quarantined": self._quarantined,
            "proposal": self.proposal.state_dict(),
            "sweep": self.sweep.state_dict(),
            "curves": self.curves.state_dict(),
            "station": self._station.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the scores, and publishes the parameters as they are: load those first.

        In exact mode the scores are those of the last publication, as they were.
        """
        super().load_state_dict(state)
        self._steps, self._opened_at = state["steps"], state["opened_at"]
        self._delivered, self._quarantined = state["delivered"], state["quarantined"]
        self.proposal.load_state_dict(state["proposal"])
        self.sweep.load_state_dict(state["sweep"])
        self.curves.load_state_dict(state["curves"])
        self._station.load_state_dict(state["station"])
        if not self._station.exact:
            self._station.publish(self._model.state_dict(), self._steps)
            self._station.ask()

    @property
    def table(self) -> ScoreTable | None:
        """The scores, where a table keeps them."""
        return self.proposal.table

    def plan(self, batch_size: int) -> Plan:
        """Ids by score, or the user's own order while too few scores are usable."""
        if not self._usable:
            return PLAIN
        if self._opened_at is None:
            self._opened_at = self._steps + 1
        return Plan(draw=self.proposal.draw(batch_size, self._chooser.generator))

    def timed(self, plan: Plan, seconds: float, loading: float) -> None:
        """Counts steps: they are the version of the parameters."""
        del plan, seconds, loading
        self._steps += 1

    def search(self) -> float:
        """Publishes when it is time, takes what has come, asks for more."""
        clock = self._setup.clock
        before = clock.now()
        due = self._steps % self._every == 0
        if due:
            self._station.publish(self._model.state_dict(), self._steps)
        self._station.collect()
        if due or self.ranks.size == 1 or self._steps % WINDOW == 0:
            self._pass_on(due=due)
        if due:
            self.proposal.refresh()
        self._station.ask()
        self.said += self._station.news()
        seconds = clock.now() - before
        self._chooser.seconds.add("scoring", seconds)
        return seconds

    def close(self) -> None:
        """Ends the workers."""
        self.engine.close()

    def summary(self) -> dict[str, Any]:
        """On since the first draw, while enough scores are usable."""
        share = f"{100 * self.proposal.usable:.0f} %"
        kind = self.engine.kind
        if self._usable:
            seen = "all of them seen" if share == "100 %" else f"{share} of them usable"
            reason = f"draws by the scores of the {kind} engine, {seen}, {self._age_in_words()}"
        else:
            reason = (
                f"the {kind} engine has usable scores of {share} of the examples, "
                f"{100 * self._needed:.0f} % are needed"
            )
        state = "on" if self._usable else "off"
        return {"state": state, "reason": reason, "opened_at_step": self._opened_at}

    @property
    def engine_summary(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return self._station.state.listed()

    def engine_status(self) -> dict[str, Any]:
        """How the search goes: for `gradsift status`, reports and logs.

        Ages are in steps, over blocks that have scores; ``behind`` is that of the newest, and
        ``seconds_old`` the median age since they came. ``recovered`` is the share of the possible
        gain in variance that the proposal in force had on the blocks that came back last, by the
        scores from before them: these are a whole sweep old, those drawn by half of one.
        """
        state, now = self._station.state, self._setup.clock.now()
        ratio, ideal = self.proposal.gains or (None, None)
        return {
            "engine": state.kind,
            "workers_lost": state.workers_lost,
            "restarts": state.restarts,
            "workers": state.workers,
            "set_aside": list(state.set_aside),
            "delivered": self._delivered,
            "rate": self._delivered / max(now - self.start, 1e-9),
            "usable": self.proposal.usable,
            **self.sweep.ages(self._steps, now),
            "published": state.published,
            "sent": state.sent,
            "variance_ratio": ratio,
            "ideal_ratio": ideal,
            "recovered": None if ratio is None or ideal is None else recovered(ratio, ideal),
        }

    def __str__(self) -> str:
        summary = self.summary()
        return f"{summary['state']}: {summary['reason']}"

    @property
    def _usable(self) -> bool:
        """Enough examples have scores: more to begin with than to go on."""
        return self.proposal.usable > 0 and self.proposal.usable >= self._needed

    @property
    def _needed(self) -> float:
        return self._search.opens if self._opened_at is None else self._search.least

    def _age_in_words(self) -> str:
        age = self.sweep.ages(self._steps, 0.0)["age"]
        return f"{age or 0:.0f} steps old"

    def _make_proposal(self, examples: int) -> AbstractProposal:
        if self._search.stale == "filter":
            return FilteredProposal(examples, self._search.constant or 0.0)
        return NeutralProposal(
            self._setup.recipe,
            examples,
            len(self.sweep.blocks),
            self._setup.seed,
            exact=self.engine.options.mode == "exact",
        )

    def _pass_on(self, *, due: bool) -> None:
        """Takes what was collected; the same in every process, and what is too old is forgotten."""
        found: list[Scored] = []
        old: list[int] = []
        if self.ranks.leads:
            found = self._station.empty()
            self._take(found)
            old = self._old() if due else []
        delivery = self._station.pass_on(found, old)
        if not self.ranks.leads:
            self._take(delivery.found)
        for number in delivery.old:
            block = self.sweep.blocks[number]
            self.proposal.forget(block)
            self.sweep.forgotten(block)

    def _take(self, found: Sequence[Scored]) -> None:
        """Blocks of one version together; points of curves are written down."""
        now = self._setup.clock.now()
        blocks = [scored for scored in found if not scored.block.part]
        for version in sorted({scored.version for scored in blocks}):
            group = [scored for scored in blocks if scored.version == version]
            for scored, cost in zip(group, self.proposal.take(group), strict=True):
                self.sweep.came(scored.block, scored.version, now, cost)
                self._count(scored)
        for scored in found:
            if scored.block.part:
                point = self.curves.came(scored, self._station.state.set_aside)
                self.measured += [] if point is None else [("curve", point.listed())]
                self._pay(int(scored.scores[2]))

    def _count(self, scored: Scored) -> None:
        count = len(scored.block)
        self._delivered += count
        self._chooser.counts.scored += count
        broken = int((~torch.isfinite(scored.scores)).sum())
        self._chooser.counts.quarantined += broken
        if broken and not self._quarantined:
            self.said.append(f"{broken} scores of {scored.block} are not finite: they are left out")
        self._quarantined += broken
        self._pay(count)

    def _pay(self, examples: int) -> None:
        """A virtual clock is told what this process, or the one that it waits for, has scored."""
        if self.engine.pays:
            self._setup.clock.charge(scored=examples)

    def _old(self) -> list[int]:
        """Numbers of the blocks whose scores are too old to be used."""
        search, clock = self._search, self._setup.clock
        version, moment = -1, -np.inf
        if search.epochs is not None:
            version = self._steps - int(search.epochs * len(self._source))
        if search.seconds is not None:
            moment = clock.now() - search.seconds
        return np.flatnonzero(self.sweep.older(version, moment)).tolist()
