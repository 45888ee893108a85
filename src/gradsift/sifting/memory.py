"""What training steps told about every example: the score table, and what proposals out of it cost.

A batch is priced with the scores that the table held *before* it, because a proposal may depend on
the past alone; then its own scores replace them, in force at the next draw.
"""

import torch
from torch import Tensor

from gradsift.monitors.averages import Estimate
from gradsift.monitors.prices import Prices
from gradsift.monitors.proposals import Proposal
from gradsift.recipes.recipe import Recipe
from gradsift.records import Draw, ScoreUpdate
from gradsift.sampling.draws import Stratified
from gradsift.sampling.table import ScoreTable

REFRESHES = 4
"""How often per epoch the means over the whole table are taken anew."""


PRICED = 4
"""One of so many drawn batches is priced: they resemble each other, and a price costs time."""

TOGETHER = 8
"""Batches of the user's own order whose scores are taken in together."""

ENOUGH = 24
"""Priced batches before the table can be judged."""

START = Proposal(exponent=1.0, uniform=0.5)
"""Where an adapting proposal begins: weights up to two."""


class Memory:
    """A score table that knows what its proposals are worth.

    Attributes:
        table: score, version and age of every example.
        prices: second moments of the proposals of a grid, from trained batches.
        proposal: the one in force where it adapts.
    """

    def __init__(self, recipe: Recipe, examples: int, seed: int, *, adapts: bool) -> None:
        self.prices = Prices(momentum=0.98)
        self.proposal = START
        self.table = ScoreTable(
            examples,
            distribution=START.distribution if adapts else recipe.distribution,
            draw=Stratified() if adapts else recipe.draw,
            smoothing=recipe.smoothing,
            seed=seed,
        )
        self._adapts = adapts
        self._passed = self._learned = 0
        self._waiting: list[tuple[ScoreUpdate, Tensor]] = []
        self._until_refresh = 0
        self._means: list[float] = []

    @property
    def complete(self) -> bool:
        """Whether as many examples were trained on as there are, so that most have a score."""
        return self._passed >= self.table.size

    def passed(self, examples: int) -> None:
        """Notes examples that were trained on."""
        self._passed += examples

    def learn(self, update: ScoreUpdate, weights: Tensor, *, drawn: bool) -> None:
        """Prices a trained batch, then keeps its scores.

        Batches that the table did not draw wait until there are a few: nothing is drawn meanwhile,
        and one update of many examples costs little more than one of few. They count as old as
        the oldest of them.
        """
        if not drawn:
            self._waiting.append((update, weights))
            if len(self._waiting) == TOGETHER:
                self._take_in_waiting()
            return
        self._take_in_waiting()
        self._learned += 1
        self._take_in(update, weights, priced=self._learned % PRICED == 0)

    def _take_in_waiting(self) -> None:
        if not self._waiting:
            return
        updates, weights = zip(*self._waiting, strict=True)
        self._waiting.clear()
        together = ScoreUpdate(
            torch.cat([update.index for update in updates]),
            torch.cat([update.score for update in updates]),
            updates[0].version,
        )
        self._take_in(together, torch.cat(weights), priced=True)

    def _take_in(self, update: ScoreUpdate, weights: Tensor, *, priced: bool) -> None:
        if self.complete and priced:
            self._refresh(PRICED * len(update.index))
            stale = self.table.relative(update.index)
            self.prices.add(update.score, stale, weights, len(update.index), self._means)
        self.table.update(update.index, update.score, update.version, weights)

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Examples out of the table, by every score that was told."""
        self._take_in_waiting()
        return self.table.draw(size, generator)

    @property
    def price(self) -> Estimate | None:
        """The ratio of the proposal in force; None before enough batches were priced."""
        return self.prices.ratio(self.proposal) if self.prices.batches >= ENOUGH else None

    def _refresh(self, examples: int) -> None:
        """Takes means over the whole table, and one step towards a better proposal."""
        self._until_refresh -= examples
        if self._until_refresh > 0:
            return
        self._until_refresh = self.table.size // REFRESHES
        self._means = [self.table.mean_power(exponent) for exponent in self.prices.exponents]
        if self._adapts:
            self.proposal = self.prices.best(self.proposal)
            self.prices.choose(self.proposal)
            self.table.propose(self.proposal.distribution)
