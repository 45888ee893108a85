"""Draws by scores that an engine measures beside the training, and never waits for them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gradsift.data.sources import MapSource
from gradsift.engine.interface import AbstractEngine, Scored
from gradsift.engine.sweep import Sweep
from gradsift.engine.task import plain_module
from gradsift.errors import UsageError
from gradsift.recipes.search import Search
from gradsift.records import PLAIN, Plan
from gradsift.sampling.table import ScoreTable
from gradsift.sifting.candidates import Chooser
from gradsift.sifting.policy import AbstractPolicy
from gradsift.sifting.proposals import AbstractProposal, FilteredProposal, NeutralProposal
from gradsift.sifting.ranks import AbstractRanks
from gradsift.sifting.task import task_of

WAIT = 0.5
"""Seconds of one look at an engine that is waited for, in exact mode."""

PATIENCE = 120
"""Looks without a worker or a result after which an exact sweep is given up."""


class Searched(AbstractPolicy):
    """Publishes parameters, asks for blocks, takes what has come, draws.

    Args:
        chooser: counts and times what is scored, and has the generator of the draws.
        source: of the loader, with ids.
        engine: not started yet; closed by `close`.
        search: how its scores are used.

    Attributes:
        engine: where scores come from.
        sweep: how old the scores of every block are.
        proposal: what is drawn from.
    """

    def __init__(
        self, chooser: Chooser, source: MapSource, engine: AbstractEngine, search: Search
    ) -> None:
        super().__init__()
        self.engine = engine
        self._setup = chooser.setup
        self._chooser = chooser
        self._source = source
        self._search = search
        self._every = engine.options.every or search.every
        examples = source.examples or 0
        self.sweep = Sweep(examples, engine.options.block, engine.options.order)
        self.proposal = self._make_proposal(examples)
        self._model = plain_module(self._setup.model)
        self._steps = 0
        self._started = False
        self._opened_at: int | None = None
        self._delivered = 0
        self._quarantined = 0

    def join(self, ranks: AbstractRanks) -> None:
        """Starts the engine.

        Raises:
            UsageError: for several processes that sift together.
        """
        if ranks.size > 1:
            raise UsageError(
                f"an engine received with {ranks.size} processes that sift together, expected one: "
                "give world_size=1 and an engine to each, or use recipe='table'"
            )
        super().join(ranks)
        self.engine.start(
            task_of(self._setup, self._model, self.engine.options, self._source.loader)
        )
        self._started = True

    def begin(self, now: float) -> None:
        """Publishes the parameters as they are before the first step."""
        super().begin(now)
        self._publish()
        self.proposal.refresh()
        self._ask()

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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the scores, and publishes the parameters as they are: load those first."""
        super().load_state_dict(state)
        self._steps, self._opened_at = state["steps"], state["opened_at"]
        self._delivered, self._quarantined = state["delivered"], state["quarantined"]
        self.proposal.load_state_dict(state["proposal"])
        self.sweep.load_state_dict(state["sweep"])
        if self._started:
            self.engine.publish(self._model.state_dict(), self._steps)
            self._ask()

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
        draw = self.proposal.draw(batch_size, self._chooser.generator)
        self.sweep.drew(draw.positions.numpy())
        return Plan(draw=draw)

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
            self._publish()
        self._take(self.engine.collect())
        if due:
            self._forget_what_is_old()
            self.proposal.refresh()
        self._ask()
        self.said += self.engine.news()
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
        return self.engine.state.listed()

    def engine_status(self) -> dict[str, Any]:
        """How the search goes: for `gradsift status`, reports and logs.

        Ages are in steps, over blocks that have scores; ``behind`` is that of the newest.
        """
        state, now = self.engine.state, self._setup.clock.now()
        known = self.sweep.versions[self.sweep.versions >= 0]
        ages = np.maximum(self._steps - known, 0)
        return {
            "engine": state.kind,
            "workers_lost": state.workers_lost,
            "restarts": state.restarts,
            "workers": state.workers,
            "set_aside": list(state.set_aside),
            "delivered": self._delivered,
            "rate": self._delivered / max(now - self.start, 1e-9),
            "usable": self.proposal.usable,
            "age": float(np.median(ages)) if len(ages) else None,
            "oldest": int(ages.max()) if len(ages) else None,
            "behind": int(ages.min()) if len(ages) else None,
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
        known = self.sweep.versions[self.sweep.versions >= 0]
        age = float(np.median(np.maximum(self._steps - known, 0))) if len(known) else 0.0
        return f"{age:.0f} steps old"

    def _make_proposal(self, examples: int) -> AbstractProposal:
        if self._search.stale == "filter":
            return FilteredProposal(examples, self._search.constant or 0.0)
        return NeutralProposal(
            self._setup.recipe,
            examples,
            len(self.sweep.blocks),
            self._setup.seed,
            exact=self._exact,
        )

    @property
    def _exact(self) -> bool:
        return self.engine.options.mode == "exact"

    def _publish(self) -> None:
        self.engine.publish(self._model.state_dict(), self._steps)
        if self._exact:
            self._sweep_exactly()

    def _ask(self) -> None:
        if self._exact:
            return
        aside = self.engine.state.set_aside
        self.engine.request(self.sweep.next(self.engine.room, aside))

    def _take(self, found: list[Scored]) -> None:
        now = self._setup.clock.now()
        for version in sorted({scored.version for scored in found}):
            group = [scored for scored in found if scored.version == version]
            movements = self.proposal.take(group)
            for scored, movement in zip(group, movements, strict=True):
                self.sweep.came(scored.block, scored.version, now, movement)
                self._count(scored)

    def _count(self, scored: Scored) -> None:
        count = len(scored.block)
        self._delivered += count
        self._chooser.counts.scored += count
        broken = int((~torch.isfinite(scored.scores)).sum())
        self._chooser.counts.quarantined += broken
        if broken and not self._quarantined:
            self.said.append(f"{broken} scores of {scored.block} are not finite: they are left out")
        self._quarantined += broken
        if self.engine.pays:
            self._setup.clock.charge(scored=count)

    def _sweep_exactly(self) -> None:
        """Waits until every block was scored with the newest parameters, or nobody is left."""
        missing = {block.number: block for block in self.sweep.blocks}
        found: list[Scored] = []
        idle = 0
        while missing and idle < PATIENCE:
            self.engine.request(list(missing.values()))
            came = self.engine.collect(wait=WAIT)
            current = [scored for scored in came if scored.version >= self._steps]
            found += [scored for scored in current if scored.block.number in missing]
            for number in (
                *(scored.block.number for scored in current),
                *self.engine.state.set_aside,
            ):
                missing.pop(number, None)
            idle = 0 if came else idle + 1
        if missing:
            self.said.append(
                f"an exact sweep was given up with {len(missing)} blocks missing: "
                "training goes on with older scores"
            )
        self._take(sorted(found, key=lambda scored: scored.block))

    def _forget_what_is_old(self) -> None:
        search, clock = self._search, self._setup.clock
        version, moment = -1, -np.inf
        if search.epochs is not None:
            version = self._steps - int(search.epochs * len(self._source))
        if search.seconds is not None:
            moment = clock.now() - search.seconds
        for number in np.flatnonzero(self.sweep.older(version, moment)):
            block = self.sweep.blocks[int(number)]
            self.proposal.forget(block)
            self.sweep.forgotten(block)
