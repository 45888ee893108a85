"""What is drawn from while an engine searches: a table that stays unbiased, or the 2015 filter."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsift.engine.interface import Block, Scored
from gradsift.recipes.recipe import Recipe
from gradsift.records import Draw, ScoreUpdate
from gradsift.sampling.distributions import Mixed, Proportional
from gradsift.sampling.filtered import FilteredWeights
from gradsift.sampling.table import ScoreTable
from gradsift.sifting.memory import WINDOW, Memory
from gradsift.sifting.ranks import AbstractRanks


class AbstractProposal(ABC):
    """Keeps the scores of blocks, and draws by them.

    Attributes:
        table: the score table, or None where none is kept.
    """

    table: ScoreTable | None = None

    @abstractmethod
    def share(self, ranks: AbstractRanks) -> None:
        """Lets processes that have the same scores draw together."""

    @abstractmethod
    def take(self, found: Sequence[Scored]) -> list[float | None]:
        """Keeps scores; returns what those of each block had come to cost by being old.

        That is ``mean(δ²/s)``, where scores s were found to have become ``s + δ``, as `Sweep` wants
        it; None where there were none.
        """

    @abstractmethod
    def forget(self, block: Block) -> None:
        """The scores of a block are too old to be used."""

    @abstractmethod
    def refresh(self) -> None:
        """Parameters were published: time to look at the whole."""

    @property
    @abstractmethod
    def usable(self) -> float:
        """Share of the examples whose scores are in use."""

    @property
    def gains(self) -> tuple[float, float] | None:
        """Variance ratios, uniform over drawn and uniform over ideal, where they are measured."""
        return None

    @abstractmethod
    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Examples of the whole data set, with their weights."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another proposal of the same recipe."""


class NeutralProposal(AbstractProposal):
    """A score table in which what is too old counts as unseen.

    The share λ of uniform draws is the one with the smallest second moment, as `Memory` prices it
    on each block that comes back: with the scores from before it, which are a whole sweep old,
    while those drawn by are half a sweep old on average. So λ is, if anything, too large. Adding
    ``c = κ · mean(s)`` to each score is the same mixture, with ``λ = κ/(1 + κ)``.

    Args:
        recipe: with a `Search`; its constant, if given, replaces the chosen share.
        examples: N.
        blocks: of a sweep.
        seed: of the table.
        exact: draw by what is known at each step, as it is; otherwise several batches are drawn
            together, and scores are smoothed as the recipe says.
    """

    def __init__(
        self, recipe: Recipe, examples: int, blocks: int, seed: int, *, exact: bool
    ) -> None:
        self._constant = None if recipe.search is None else recipe.search.constant
        adapts = self._constant is None
        ahead = 1 if exact else WINDOW
        recipe = replace(recipe, smoothing=0.0) if exact else recipe
        steps = blocks * WINDOW
        self.memory = Memory(recipe, examples, seed, adapts=adapts, steps=steps, ahead=ahead)
        self.table = self._table = self.memory.table

    def share(self, ranks: AbstractRanks) -> None:
        """From identical tables all make the same draw, and take a batch of every step each."""
        self.memory.share(ranks)

    def take(self, found: Sequence[Scored]) -> list[float | None]:
        """Prices, then keeps: blocks of one version together, so that they share one level.

        Scores that were measured with these very parameters before tell no price: nobody draws by
        scores of no age.
        """
        if not found:
            return []
        ids = torch.cat([scored.block.ids for scored in found])
        scores = torch.cat([scored.scores for scored in found])
        before = self._table.relative(ids)
        masses = self._table.probabilities(ids) * self._table.size
        version = min(scored.version for scored in found)
        ages = self._table.ages(ids, version)
        seen, old = ages >= 0, ages != 0
        if bool(old.any()):
            update = ScoreUpdate(ids[old], scores[old], version)
            self.memory.learn(update, torch.ones(len(update.index)).double())
        self._table.update(ids[~old], scores[~old], version)
        self.memory.passed(len(ids), each=False)
        costs = (self._table.relative(ids) - before).square() / masses
        sizes = [len(scored.block) for scored in found]
        parts = zip(costs.split(sizes), seen.split(sizes), strict=True)
        return [float(cost.mean()) if bool(known.all()) else None for cost, known in parts]

    def forget(self, block: Block) -> None:
        """They stand at the level of all scores from now on, as if never seen."""
        self._table.forget(block.ids)

    def refresh(self) -> None:
        """A constant in the unit of the scores is another share each time."""
        level = self._table.level
        if self._constant is None or not level > 0:
            return
        mean = level * self._table.mean_power(1.0)
        share = self._constant / (mean + self._constant)
        self._table.propose(Mixed(Proportional(), uniform=share))

    @property
    def usable(self) -> float:
        """Share of examples that have a score."""
        return self._table.seen / self._table.size

    @property
    def gains(self) -> tuple[float, float] | None:
        """Of the proposal in force, on blocks that came back: a ratio of second moments.

        None while few were priced, and for a constant, which is not on the grid.
        """
        price = self.memory.price
        if self._constant is not None or price is None:
            return None
        return price.value, self.memory.prices.ideal.value

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Out of the table."""
        return self.memory.draw(size, generator)

    def state_dict(self) -> dict[str, Any]:
        """Of the memory."""
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Of the memory."""
        self.memory.load_state_dict(state)


class FilteredProposal(AbstractProposal):
    """Absolute scores, of which a snapshot is drawn from until the next publication.

    Args:
        examples: N.
        constant: added to every score.
    """

    def __init__(self, examples: int, constant: float) -> None:
        self._scores = np.full(examples, np.nan)
        self._constant = constant
        self._snapshot: FilteredWeights | None = None

    def share(self, ranks: AbstractRanks) -> None:
        """Independent draws from the same snapshot are one draw already."""
        del ranks

    def take(self, found: Sequence[Scored]) -> list[float | None]:
        """Replaces the scores of the blocks; costs are in their unit."""
        costs: list[float | None] = []
        for scored in found:
            part = slice(scored.block.start, scored.block.stop)
            fresh, stale = _finite(scored.scores), self._scores[part]
            with np.errstate(divide="ignore", invalid="ignore"):
                cost = float(((fresh - stale) ** 2 / (stale + self._constant)).mean())
            self._scores[part] = fresh
            costs.append(cost if np.isfinite(cost) else None)
        return costs

    def forget(self, block: Block) -> None:
        """They are not drawn from the next snapshot on."""
        self._scores[block.start : block.stop] = np.nan

    def refresh(self) -> None:
        """Takes a new snapshot."""
        usable = np.isfinite(self._scores)
        self._snapshot = None
        if usable.any():
            self._snapshot = FilteredWeights(self._scores, usable, self._constant)

    @property
    def usable(self) -> float:
        """Share of examples that the snapshot holds."""
        if self._snapshot is None:
            return 0.0
        return float((self._snapshot.probabilities > 0).mean())

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Out of the snapshot."""
        assert self._snapshot is not None
        return self._snapshot.draw(size, generator)

    def state_dict(self) -> dict[str, Any]:
        """The scores; the snapshot is taken of them anew."""
        return {"scores": torch.from_numpy(self._scores.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the scores, and a snapshot of them."""
        self._scores = state["scores"].numpy().copy()
        self.refresh()


def _finite(scores: Tensor) -> np.ndarray:
    values = scores.double().numpy()
    return np.where(np.isfinite(values), values, np.nan)
