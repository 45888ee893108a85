"""What training steps told about every example: the score table, and what proposals out of it cost.

Batches are priced with the scores that the table held *before* them, because a proposal may depend
on the past alone; then their own scores replace those, in force at the next draw. Both happen for
a window of steps at a time: step by step the work would slow small models down.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsift.monitors.averages import Estimate
from gradsift.monitors.prices import Prices
from gradsift.monitors.proposals import Proposal
from gradsift.predictor.forecast import Forecast
from gradsift.recipes.recipe import Recipe
from gradsift.records import Draw, ScoreUpdate
from gradsift.sampling.draws import Stratified
from gradsift.sampling.proposed import ProposedTable
from gradsift.sampling.table import ScoreTable
from gradsift.sampling.windows import deal
from gradsift.sifting.ranks import AbstractRanks, Alone

ARRANGED = 10**7
"""Examples up to which the table walks class after class, which takes 8 bytes each."""

NO_LABEL = -1

REFRESHES = 8
"""How often per epoch the means over the whole table are taken anew."""


WINDOW = 16
"""Batches that are drawn, and whose scores are taken in, together."""

ENOUGH = 6
"""Priced windows before the table is judged, and before its proposal changes."""

SHORTEST, LONGEST = 6, 40
"""Windows that prices are averaged over: a pass over the data, but neither fewer nor more.

Over many passes the ratio drifts, and an average that cannot follow knows itself ever less.
"""

START = Proposal(exponent=1.0, uniform=0.5)
"""Where an adapting proposal begins: weights up to two."""


class Memory:
    """A score table that knows what its proposals are worth.

    Args:
        recipe: whose smoothing and cap are used, and where nothing adapts distribution and draw.
        examples: N.
        seed: of the table.
        adapts: whether the proposal follows the prices.
        steps: of one pass over the data.
        ahead: batches drawn together, at most.

    Attributes:
        table: score, version and age of every example.
        prices: second moments of the proposals of a grid, from trained batches.
        proposal: the one in force where it adapts.
        forecast: of today's scores, where the recipe asks for one; drawn from while it wins.
    """

    def __init__(
        self,
        recipe: Recipe,
        examples: int,
        seed: int,
        *,
        adapts: bool,
        steps: int = 0,
        ahead: int = WINDOW,
    ) -> None:
        horizon = min(max(steps // WINDOW, SHORTEST), LONGEST)
        momentum = (horizon - 1) / (horizon + 1)
        self.prices = Prices(momentum=momentum)
        self.proposal = START
        draw = Stratified() if adapts else recipe.draw
        self.table = ScoreTable(
            examples,
            distribution=START.distribution if adapts else recipe.distribution,
            draw=draw,
            smoothing=recipe.smoothing,
            seed=seed,
            cap=recipe.cap,
        )
        self.forecast: Forecast | None = None
        if recipe.forecast is not None:
            self.forecast = Forecast(
                examples, steps, recipe.forecast, self.table.distribution, momentum
            )
        self._adapts = adapts
        self._ahead = ahead
        known = isinstance(draw, Stratified) and examples <= ARRANGED
        self._labels = np.full(examples, NO_LABEL, np.int32) if known else None
        self._passed = 0
        self._dealt: list[Draw] = []
        self._until_refresh = 0
        self._ranks: AbstractRanks = Alone()
        self._seed = seed
        self._common: torch.Generator | None = None
        self._means: list[float] = []

    @property
    def complete(self) -> bool:
        """Whether as many examples were trained on as there are, so that most have a score."""
        return self._passed >= self.table.size

    def share(self, ranks: AbstractRanks) -> None:
        """Lets processes make the same draws, from tables that the same scores keep identical."""
        self._ranks = ranks
        if ranks.size > 1:
            self._common = torch.Generator().manual_seed(self._seed)

    def passed(self, examples: int, *, each: bool = True) -> None:
        """Notes examples that scores are known of.

        Args:
            examples: how many.
            each: whether they are of this process, and each of the others has as many.
        """
        self._passed += examples * (self._ranks.size if each else 1)

    def learn(self, update: ScoreUpdate, weights: Tensor) -> None:
        """Prices trained batches by the scores from before them, then keeps their own.

        Args:
            update: of one or several steps. They count as old as the oldest of them.
            weights: float64, those that each example was drawn with.
        """
        self._note_labels(update)
        if self.complete:
            self._refresh(len(update.index), update.version)
            stale = self.table.relative(update.index)
            self.prices.add(update.score, stale, weights, len(update.index), self._means)
            if self.forecast is not None:
                self.forecast.look(update, weights, self.table)
        self.table.update(update.index, update.score, update.version, weights)
        if self.forecast is not None:
            self.forecast.learn(update, weights, self.table)

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Examples out of the table, drawn for a window of steps at once and dealt out.

        Every batch is a stratified draw, unbiased on its own, and so are all of them together: a
        window has less noise than as many separate draws. Processes that share the table make the
        same draw and take one batch of every step each.
        """
        if not self._dealt or self._dealt[-1].size != size:
            self._dealt = self._window(size, self._common or generator)
        return [self._dealt.pop() for _ in range(self._ranks.size)][self._ranks.rank]

    def rehearse(self, size: int) -> int:
        """Draws a window that nobody uses, and returns its number of steps."""
        return len(self._window(size, torch.Generator())) // self._ranks.size

    def _window(self, size: int, generator: torch.Generator) -> list[Draw]:
        batches = self._ranks.size * max(
            1, min(self._ahead, self.table.size // (size * self._ranks.size))
        )
        return deal(self._in_use.draw(batches * size, generator), batches, generator)

    def news(self) -> list[str]:
        """What was decided about forecasts since it was last asked, in words."""
        return [] if self.forecast is None else self.forecast.news()

    def with_forecast(self, reason: str) -> str:
        """A reason, and what forecasts were found to give, where there are any."""
        if self.forecast is None or self.forecast.duel.batches < ENOUGH:
            return reason
        return f"{reason}; {self.forecast.duel}"

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, from which `load_state_dict` goes on to the bit."""
        labels = self._labels
        return {
            "table": self.table.state_dict(),
            "prices": self.prices.state_dict(),
            "proposal": [self.proposal.exponent, self.proposal.uniform],
            "labels": None if labels is None else torch.from_numpy(labels.copy()),
            "passed": self._passed,
            "dealt": [draw.state_dict() for draw in self._dealt],
            "until_refresh": self._until_refresh,
            "means": list(self._means),
            "forecast": None if self.forecast is None else self.forecast.state_dict(),
            "common": None if self._common is None else self._common.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another memory.

        Raises:
            UsageError: for one of other data or another recipe.
        """
        self.table.load_state_dict(state["table"])
        self.prices.load_state_dict(state["prices"])
        self.proposal = Proposal(*state["proposal"])
        labels = state["labels"]
        self._labels = None if labels is None else labels.numpy().copy()
        self._passed = state["passed"]
        self._dealt = [Draw.from_state_dict(draw) for draw in state["dealt"]]
        self._until_refresh = state["until_refresh"]
        self._means = list(state["means"])
        if self.forecast is not None:
            self.forecast.load_state_dict(state["forecast"])
        if self._common is not None and state["common"] is not None:
            self._common.set_state(state["common"])

    @property
    def price(self) -> Estimate | None:
        """The ratio of the proposal in force; None before enough batches were priced."""
        if self.forecast is not None and self.forecast.in_use:
            return self.forecast.duel.challenger
        return self.prices.ratio(self.proposal) if self.prices.batches >= ENOUGH else None

    @property
    def _in_use(self) -> ScoreTable | ProposedTable:
        """What is drawn from."""
        if self.forecast is not None and self.forecast.in_use:
            return self.forecast.table
        return self.table

    def _note_labels(self, update: ScoreUpdate) -> None:
        """Once every example could have been seen, the table walks class after class.

        A stratified draw then has as many of each class as their scores say, instead of about as
        many: less variance for nothing. Unseen examples stand together.
        """
        if self._labels is None:
            return
        if update.label is not None:
            self._labels[update.index.numpy()] = update.label.numpy()
        if self.complete:
            if self._labels.min() != self._labels.max():
                order = torch.from_numpy(self._labels.argsort(kind="stable"))
                self.table.arrange(order)
                if self.forecast is not None:
                    self.forecast.table.arrange(order)
            self._labels = None

    def _refresh(self, examples: int, version: int) -> None:
        """Takes means over the whole table, and one step towards a better proposal."""
        self._until_refresh -= examples
        if self._until_refresh > 0:
            return
        self._until_refresh = self.table.size // REFRESHES
        self._means = [self.table.mean_power(exponent) for exponent in self.prices.exponents]
        if self._adapts and self.prices.batches >= ENOUGH:
            self.proposal = self.prices.better(self.proposal)
            self.prices.choose(self.proposal)
            self.table.propose(self.proposal.distribution)
        if self.forecast is not None:
            self.forecast.table.propose(self.table.distribution)
            self.forecast.refit(self.table, version)
