"""A score for every example of a data set, and draws from all of them in O(log N)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import Draw
from gradsift.sampling.capping import Cap
from gradsift.sampling.distributions import AbstractDistribution, Mixed, Proportional
from gradsift.sampling.draws import AbstractDraw, Stratified, Systematic
from gradsift.sampling.inclusion import check_size
from gradsift.sampling.order import order_of
from gradsift.sampling.relative import (
    UNSEEN,
    Level,
    RelativeScores,
    check_version,
    example_ids,
    fresh_scores,
)
from gradsift.sampling.walks import Mixture, TableLaw, stratified_places, systematic_places

FLOORED = Mixed(Proportional(), uniform=0.2)
"""The default distribution: no weight above 5."""

SLOTS = Stratified()
"""The default draw."""

LARGEST_SIZE = 2**31 - 1
"""Of one table; versions and given orders are int32."""


class ScoreTable:
    """Scores of N examples, kept while training, and unbiased draws by them.

    An update is in force at the very next draw, and both take microseconds. Scores are kept
    relative to `level`, the root mean square of fresh scores when they arrived; an example without
    a score stands at that level, which is the best proposal where nothing is known. With
    ``s`` the relative scores, example ``i`` is drawn with ``p_i = (1 − λ) s_i^a / Σ s^a + λ/N``,
    so no weight is above ``1/λ``; scores that are all zero mean a uniform draw. A stale score
    costs variance and never bias.

    Draws have the law of `Stratified` or `Systematic` for the probabilities in the table's order,
    and weights ``1/(N p)`` and ``b/(N π)``. A systematic walk takes a pseudo-random order fixed by
    the seed, as one along the ids could be ``b`` times worse; stratified draws go along the ids.

    Memory: 8.5 to 9.5 bytes per example; a given order adds 8.

    Katharopoulos, Fleuret, "Not all samples are created equal" (2018), for the by-product scores
    that fill such a table; Schaul et al., "Prioritized experience replay" (2016), for the sum tree.
    Deviations: sums are recomputed, 16 at a time, never incremented; draws are unbiased.

    Args:
        size: N, the number of examples, 1 to 2^31 − 1.
        distribution: `Mixed` over `Proportional` or over `Power` up to 4.
        draw: `Stratified()` or `Systematic()`.
        smoothing: share of the old relative score that stays when a new one arrives, in [0, 1).
        order: ``order[k]`` is the id of place ``k`` of the walk, a permutation; neighbours in it
            exclude each other, so an order by likeness stratifies. None as above.
        seed: of the table's own generator, and of the systematic order.
        cap: quantile of recent fresh scores, in (0, 1), above which a score counts as much as the
            one there: wrong labels, which score high, are drawn no more often. None for no cap.

    Attributes:
        cap: what bounds the scores, and where that is now; None without a cap.

    Raises:
        UsageError: for arguments out of range.

    Example:
        >>> import torch
        >>> table = ScoreTable(4)
        >>> table.update(torch.tensor([0, 1]), torch.tensor([3.0, 4.0]), version=1)
        0
        >>> table.relative(torch.tensor([0, 1, 2])).round(decimals=3).tolist()
        [0.849, 1.131, 1.0]
        >>> drawn = table.draw(2)
        >>> bool((drawn.weights <= 1 / 0.2).all()), drawn.size
        (True, 2)
    """

    def __init__(
        self,
        size: int,
        *,
        distribution: AbstractDistribution = FLOORED,
        draw: AbstractDraw = SLOTS,
        smoothing: float = 0.5,
        order: Int64[Tensor, " N"] | None = None,
        seed: int = 0,
        cap: float | None = None,
    ) -> None:
        if not 1 <= size <= LARGEST_SIZE:
            raise UsageError(
                f"ScoreTable received size {size}, expected 1 to {LARGEST_SIZE} examples: "
                "split larger data over several tables"
            )
        if not isinstance(draw, Stratified | Systematic):
            raise UsageError(
                f"ScoreTable cannot draw by {draw}, expected Stratified() or Systematic()"
            )
        self.size = size
        self._systematic = isinstance(draw, Systematic)
        self._law = TableLaw.of(distribution)
        self._seed = seed
        self._order = order_of(order, size, seed, scrambled=self._systematic)
        self._scores = RelativeScores(size, self._law.summed, smoothing)
        self._level = Level()
        self.cap = None if cap is None else Cap(cap, size)
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def level(self) -> float:
        """Root mean square of fresh scores over the population, in their unit; nan at first.

        The square root of a moving average (momentum 0.98, corrected for its start) of
        ``mean(w g²)`` of each update.
        """
        return self._level.value

    @property
    def seen(self) -> int:
        """How many examples have a score."""
        return self._scores.seen

    @property
    def nbytes(self) -> int:
        """Bytes in use; they do not change."""
        return self._scores.nbytes + self._order.nbytes

    @property
    def distribution(self) -> Mixed:
        """What the next draw uses."""
        return self._law.distribution

    def propose(self, distribution: AbstractDistribution) -> None:
        """Draws by another distribution from now on.

        Another uniform share costs nothing; another exponent recomputes the sums, in O(N).

        Raises:
            UsageError: for a distribution that a table cannot draw by.
        """
        law = TableLaw.of(distribution)
        if law.summed != self._scores.tree.exponent:
            self._scores.tree.rebuild(law.summed)
        self._law = law

    def arrange(self, order: Int64[Tensor, " N"]) -> None:
        """Walks through the examples in another order from now on; O(N), and 8 bytes per example.

        Stratified draws have less variance where neighbours are alike: by class, say. Their law
        for each example, and its weight, stay as they are.

        Args:
            order: ``order[k]`` is the id at place ``k``: a permutation of all ids.

        Raises:
            UsageError: before anything is changed, for anything else.
        """
        arranged = order_of(order, self.size, self._seed, scrambled=self._systematic)
        places = self._order.places(arranged.ids(np.arange(self.size)))
        self._scores.load(self._scores.tree.leaves[places], self._scores.versions[places])
        self._scores.tree.rebuild(self._law.summed)
        self._order = arranged

    def update(
        self,
        indices: Int64[Tensor, " n"],
        scores: Float[Tensor, " n"],
        version: int,
        weights: Float[Tensor, " n"] | None = None,
    ) -> int:
        """Takes fresh scores in.

        An older version never overwrites a newer one. Where an example comes several times, the
        mean of its scores counts once.

        Args:
            indices: example ids.
            scores: one per id, >= 0, in any unit that stays the same.
            version: how many steps the parameters had taken when the scores were computed.
            weights: with which these examples were drawn, so that `level` is that of all examples;
                None for uniform ones.

        Returns:
            How many scores were not finite; the old scores of their examples stay.

        Raises:
            UsageError: before anything is changed, for ids or a version out of range, shapes that
                differ, negative scores, or weights that are negative or not finite.
        """
        check_version(version)
        fresh = fresh_scores(indices, scores, weights, self.size, self.cap)
        if len(fresh.ids):
            self._level = self._level.after(fresh.mean_square)
            relative = fresh.relative_to(self._level.value)
            self._scores.store(self._order.places(fresh.ids), relative, version)
        return fresh.quarantined

    def forget(self, indices: Int64[Tensor, " n"]) -> None:
        """Examples count as unseen again: their scores are too old. Draws stay unbiased."""
        self._scores.forget(self._places(indices))

    def draw(self, size: int, generator: torch.Generator | None = None) -> Draw:
        """Draws examples of the whole data set.

        Args:
            size: the nominal number ``b`` of examples, from 1 to N.
            generator: a CPU generator; None for the table's own, which is part of its state.

        Returns:
            Positions are example ids, in the order of the walk.

        Raises:
            UsageError: for a size outside 1 to N.
        """
        check_size(size, self.size)
        source = self._generator if generator is None else generator
        tree, mixture = self._scores.tree, self._mixture()
        if self._systematic:
            offset = float(torch.rand(1, dtype=torch.float64, generator=source))
            places, inclusion = systematic_places(tree, mixture, size, offset)
            weights = size / (self.size * inclusion)
        else:
            uniforms = torch.rand(size, dtype=torch.float64, generator=source)
            places, masses = stratified_places(tree, mixture, uniforms.numpy())
            weights = 1 / masses
        return Draw(torch.from_numpy(self._order.ids(places)), torch.from_numpy(weights), size)

    def relative(self, indices: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Smoothed relative scores; one where unseen."""
        return torch.from_numpy(self._scores.tree.values(self._places(indices)))

    def probabilities(self, indices: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """``p_i`` of the distribution in force; over all examples they sum to one."""
        powers = self._scores.tree.powers(self._places(indices))
        return torch.from_numpy(self._mixture().masses(powers) / self.size)

    def ages(self, indices: Int64[Tensor, " n"], version: int) -> Int64[Tensor, " n"]:
        """Steps since each score was computed, 0 for scores that are newer; −1 where unseen."""
        versions = self._scores.versions[self._places(indices)].astype(np.int64)
        ages = np.maximum(version - versions, 0)
        return torch.from_numpy(np.where(versions == UNSEEN, -1, ages))

    def mean_power(self, exponent: float) -> float:
        """Mean of ``relative^exponent`` over all examples, for an exponent >= 0; O(N)."""
        return self._scores.tree.mean_power(exponent)

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that changes, and of the order: plain tensors and numbers."""
        return {
            **self._kind(),
            "relative": torch.from_numpy(self._scores.tree.leaves.copy()),
            "versions": torch.from_numpy(self._scores.versions.copy()),
            "level": [self._level.moment, self._level.mass],
            "law": [self._law.exponent, self._law.uniform],
            "order": self._order.tensor(),
            "seed": self._seed,
            "generator": self._generator.get_state(),
            "capped": None if self.cap is None else self.cap.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on, bit for bit, where another table of the same size, draw and cap was.

        Raises:
            UsageError: before anything is changed, for a state of another size, draw or cap.
        """
        mine = self._kind()
        theirs = {key: state.get(key) for key in mine}
        if theirs != mine:
            raise UsageError(
                f"the state of a table with {theirs} does not fit one with {mine}: make the table "
                "for the data set and the draw that the state was saved with"
            )
        self._order = order_of(state["order"], self.size, state["seed"], scrambled=self._systematic)
        self._seed = state["seed"]
        self._scores.load(state["relative"].numpy(), state["versions"].numpy())
        self._level = Level(*state["level"])
        self._law = TableLaw(*state["law"])
        if self.cap is not None:
            self.cap.load_state_dict(state["capped"])
        self._scores.tree.rebuild(self._law.summed)
        self._generator.set_state(state["generator"])

    def _kind(self) -> dict[str, Any]:
        quantile = None if self.cap is None else self.cap.quantile
        return {"size": self.size, "systematic": self._systematic, "cap": quantile}

    def _places(self, indices: Tensor) -> Int64[np.ndarray, " n"]:
        return self._order.places(example_ids(indices, self.size))

    def _mixture(self) -> Mixture:
        return self._law.mixture(self._scores.tree.total, self.size)
