"""A fixed mixture out of the score table, after one pass in the user's own order."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradsift.records import PLAIN, Plan, ScoreUpdate
from gradsift.sampling.table import ScoreTable
from gradsift.sifting.memory import WINDOW, Memory
from gradsift.sifting.policy import AbstractPolicy
from gradsift.sifting.ranks import AbstractRanks


class Tabled(AbstractPolicy):
    """Draws from the table at every step once each example could have been scored.

    Attributes:
        memory: the table.
    """

    learns = True
    window = WINDOW

    def __init__(self, memory: Memory, generator: torch.Generator) -> None:
        super().__init__()
        self.memory = memory
        self._generator = generator
        self._batch_size = 0
        self._steps = 0
        self._opened_at: int | None = None

    def join(self, ranks: AbstractRanks) -> None:
        """Shares the table with the other processes."""
        super().join(ranks)
        self.memory.share(ranks)

    @property
    def table(self) -> ScoreTable:
        """Of the memory."""
        return self.memory.table

    def plan(self, batch_size: int) -> Plan:
        """The first pass as it comes, then ids drawn from the whole data set."""
        self._batch_size = batch_size
        if not self.memory.complete:
            return PLAIN
        if self._opened_at is None:
            self._opened_at = self._steps + 1
        return Plan(draw=self.memory.draw(batch_size, self._generator))

    def wants_scores(self, *, drawn: bool) -> bool:
        """Always: they are the table."""
        del drawn
        return True

    def learn(self, update: ScoreUpdate, weights: Tensor, *, drawn: bool) -> None:
        """Keeps the scores."""
        del drawn
        self.memory.learn(update, weights)
        self.said += self.memory.news()

    def timed(self, plan: Plan, seconds: float, loading: float) -> None:
        """Counts the first pass."""
        del plan, seconds, loading
        self._steps += 1
        self.memory.passed(self._batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The memory, and where the first pass is."""
        return {
            **super().state_dict(),
            "memory": self.memory.state_dict(),
            "batch_size": self._batch_size,
            "steps": self._steps,
            "opened_at": self._opened_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another table."""
        super().load_state_dict(state)
        self.memory.load_state_dict(state["memory"])
        self._batch_size, self._steps = state["batch_size"], state["steps"]
        self._opened_at = state["opened_at"]

    def summary(self) -> dict[str, Any]:
        """On since the first draw, and what the draws were measured to give."""
        found = self.memory.prices.drawn
        reason = (
            f"draws from the table, with a variance ratio of {found.value:.2f} ± "
            f"{2 * found.standard_error:.2f}"
            if self._opened_at is not None
            else "the first pass in your own order fills the table"
        )
        state = "off" if self._opened_at is None else "on"
        return {
            "state": state,
            "reason": self.memory.with_forecast(reason),
            "opened_at_step": self._opened_at,
        }

    def __str__(self) -> str:
        summary = self.summary()
        return f"{summary['state']}: {summary['reason']}"
