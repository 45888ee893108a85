"""The policy of recipes whose rule picks ids: it asks, tells, and keeps account of step sizes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradsift.data.sources import MapSource
from gradsift.records import PLAIN, Draw, Plan, ScoreUpdate
from gradsift.rules.base import AbstractRule
from gradsift.sifting.candidates import Chooser
from gradsift.sifting.policy import AbstractPolicy
from gradsift.sifting.ranks import AbstractRanks
from gradsift.sifting.rescoring import Rescoring

PATIENCE = 2
"""Steps after which a rule that anneals should have been told where the run is."""


class Picked(AbstractPolicy):
    """Takes what a rule picks, from the step on at which it can.

    Processes that sift together make the same picks for all of them and take every K-th each.

    Args:
        rule: of the recipe.
        chooser: scores what the rule wants to know beside the training steps.
        source: the user's loader, whose data have ids.

    Attributes:
        picker: the rule at work.
    """

    def __init__(self, rule: AbstractRule, chooser: Chooser, source: MapSource) -> None:
        super().__init__()
        self.learns = rule.learns
        self.picker = rule.open(source.examples or 0)
        self._rule = rule
        self._chooser = chooser
        self._rescoring = Rescoring(chooser, source)
        self._common: torch.Generator | None = None
        self._batch_size = 0
        self._steps = 0
        self._opened_at: int | None = None
        self._picked = 0
        self._mass = 0.0

    def join(self, ranks: AbstractRanks) -> None:
        """From now on the same picks everywhere."""
        super().join(ranks)
        if ranks.size > 1:
            self._common = torch.Generator().manual_seed(self._chooser.setup.seed)

    def plan(self, batch_size: int) -> Plan:
        """What the rule picks, or the user's own order while it cannot."""
        self._batch_size = batch_size
        if not self.picker.ready:
            return PLAIN
        if self._opened_at is None:
            self._opened_at = self._steps + 1
        self.picker.progress = self.progress
        whole = self.picker.draw(self._together, self._common or self._chooser.generator)
        self.lr_factor = self.picker.lr_factor
        mine = slice(self.ranks.rank, None, self.ranks.size) if self._common else slice(None)
        draw = Draw(whole.positions[mine], whole.weights[mine], batch_size)
        self._picked += whole.size
        self._mass += self.lr_factor * float(whole.weights.sum())
        return Plan(draw=draw)

    def wants_scores(self, *, drawn: bool) -> bool:
        """Where the rule looks at them."""
        del drawn
        return self.learns

    def learn(self, update: ScoreUpdate, weights: Tensor, *, drawn: bool) -> None:
        """Tells the rule."""
        del drawn
        self.picker.learn(update, weights)

    def timed(self, plan: Plan, seconds: float, loading: float) -> None:
        """Counts steps."""
        del plan, seconds, loading
        self._steps += 1
        self.picker.passed(self._together)
        if self._steps == PATIENCE and self._rule.anneals and self.progress is None:
            self.said.append(
                f"recipe {self._chooser.setup.recipe.name!r} changes along the run, but is not "
                "told where it is: set train.policy.progress to the share that is over, 0 to 1"
            )

    def search(self) -> float:
        """Scores what the rule wants to know before its next draw."""
        ids = self.picker.wanted(self._together)
        if not len(ids):
            return 0.0
        clock = self._chooser.setup.clock
        before = clock.now()
        scores = self._rescoring.scores(ids, self._batch_size, self.ranks)
        self._chooser.counts.quarantined += int((~torch.isfinite(scores)).sum())
        self.picker.answer(ScoreUpdate(ids, scores, self._steps))
        return clock.now() - before

    def state_dict(self) -> dict[str, Any]:
        """What the rule has learnt, and the account."""
        return {
            **super().state_dict(),
            "picker": self.picker.state_dict(),
            "common": None if self._common is None else self._common.get_state(),
            "batch_size": self._batch_size,
            "steps": self._steps,
            "opened_at": self._opened_at,
            "picked": self._picked,
            "mass": self._mass,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another policy of the same rule."""
        super().load_state_dict(state)
        self.picker.load_state_dict(state["picker"])
        if self._common is not None and state["common"] is not None:
            self._common.set_state(state["common"])
        self._batch_size, self._steps = state["batch_size"], state["steps"]
        self._opened_at = state["opened_at"]
        self._picked, self._mass = state["picked"], state["mass"]

    def summary(self) -> dict[str, Any]:
        """On since the first pick, and how large its steps were."""
        if self._picked:
            size = self._mass / self._picked
            reason = (
                f"picks by its rule, with steps of {size:.2f} times the loader's own in the mean"
            )
        else:
            reason = "until the rule can pick, steps take your own order"
        state = "off" if self._opened_at is None else "on"
        return {"state": state, "reason": reason, "opened_at_step": self._opened_at}

    def __str__(self) -> str:
        summary = self.summary()
        return f"{summary['state']}: {summary['reason']}"

    @property
    def _together(self) -> int:
        """Examples that all processes train on in a step."""
        return self._batch_size * self.ranks.size
