"""A score table split over owners: shard sums first, then inside a shard.

An owner keeps the scores of a range of examples and needs three calls, all by value: its sum, the
places of some points, and relative scores to keep. Levels belong to all examples, so the
coordinator keeps the level and sends scores that are relative to it already.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import Draw
from gradsift.sampling.distributions import AbstractDistribution
from gradsift.sampling.inclusion import check_size
from gradsift.sampling.relative import (
    Level,
    RelativeScores,
    check_version,
    example_ids,
    fresh_scores,
)
from gradsift.sampling.table import FLOORED
from gradsift.sampling.walks import Mixture, TableLaw, stratified_points


class TableShard:
    """What one owner keeps: relative scores of its examples, by local id.

    Args:
        size: how many examples it owns, at least 1.
        distribution: the same for all owners.
        smoothing: the same for all owners.

    Example:
        >>> shard = TableShard(3, FLOORED, smoothing=0.5)
        >>> shard.store(np.array([1]), np.array([2.0]), version=0)
        >>> shard.total
        4.0
        >>> places, masses = shard.locate(np.array([2.9]), Mixture(slope=1.0, floor=0.0))
        >>> places.tolist(), masses.tolist()
        ([1], [2.0])
    """

    def __init__(self, size: int, distribution: AbstractDistribution, smoothing: float) -> None:
        self.size = size
        self._summed = TableLaw.of(distribution).summed
        self._scores = RelativeScores(size, self._summed, smoothing)

    @property
    def total(self) -> float:
        """``Σ s^a`` of its examples."""
        return self._scores.tree.total

    @property
    def seen(self) -> int:
        """How many of its examples have a score."""
        return self._scores.seen

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self._scores.nbytes

    def locate(
        self, points: Float64[np.ndarray, " n"], mixture: Mixture
    ) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
        """Local ids at points of its own stretch of the line, and their ``N p``, N of all."""
        return self._scores.tree.find(points, mixture.slope, mixture.floor)

    def masses(self, ids: Int64[np.ndarray, " n"], mixture: Mixture) -> Float64[np.ndarray, " n"]:
        """``N p`` of some examples."""
        return mixture.masses(self._scores.tree.powers(ids))

    def store(
        self, ids: Int64[np.ndarray, " n"], relative: Float64[np.ndarray, " n"], version: int
    ) -> None:
        """Keeps scores that are relative to the level of all examples."""
        self._scores.store(ids, relative, version)

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of its scores and versions."""
        kept = self._scores.tree.leaves, self._scores.versions
        relative, versions = (torch.from_numpy(part.copy()) for part in kept)
        return {"relative": relative, "versions": versions}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where another shard of the same size was."""
        self._scores.load(state["relative"].numpy(), state["versions"].numpy())
        self._scores.tree.rebuild(self._summed)


class ShardedTable:
    """The coordinator of a split table: stratified draws with the law of one `ScoreTable`.

    The ids of the first shard come first, and so on. Owners in other processes need the calls of
    `TableShard` and no others: one round trip for the sums, one for the points.

    Args:
        sizes: how many examples each owner has.
        distribution: as in `ScoreTable`.
        smoothing: as in `ScoreTable`.
        seed: of the coordinator's generator.

    Raises:
        UsageError: for no shards, or a shard without examples.

    Example:
        >>> table = ShardedTable([3, 2])
        >>> table.update(torch.tensor([1, 4]), torch.tensor([1.0, 1.0]), version=0)
        0
        >>> table.draw(5).positions.tolist()
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        distribution: AbstractDistribution = FLOORED,
        smoothing: float = 0.5,
        seed: int = 0,
    ) -> None:
        if not len(sizes) or min(sizes) < 1:
            raise UsageError(
                f"ShardedTable received sizes {list(sizes)}, expected at least one owner and "
                "one example each: leave empty shards out"
            )
        self.shards = [TableShard(size, distribution, smoothing) for size in sizes]
        self.size = sum(sizes)
        self._law = TableLaw.of(distribution)
        self._starts = np.cumsum([0, *sizes])
        self._level = Level()
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def level(self) -> float:
        """Root mean square of fresh scores over all shards; nan at first."""
        return self._level.value

    @property
    def seen(self) -> int:
        """How many examples have a score."""
        return sum(shard.seen for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes in use by all shards together."""
        return sum(shard.nbytes for shard in self.shards)

    def update(
        self,
        indices: Int64[Tensor, " n"],
        scores: Float[Tensor, " n"],
        version: int,
        weights: Float[Tensor, " n"] | None = None,
    ) -> int:
        """As `ScoreTable.update`: each owner gets the relative scores of its examples."""
        check_version(version)
        fresh = fresh_scores(indices, scores, weights, self.size)
        if len(fresh.ids):
            self._level = self._level.after(fresh.mean_square)
            relative = fresh.relative_to(self._level.value)
            for k, mine in self._owned(fresh.ids):
                self.shards[k].store(fresh.ids[mine] - self._starts[k], relative[mine], version)
        return fresh.quarantined

    def draw(self, size: int, generator: torch.Generator | None = None) -> Draw:
        """As `ScoreTable.draw` with `Stratified`: the line of all examples, shard after shard.

        Raises:
            UsageError: for a size outside 1 to N.
        """
        check_size(size, self.size)
        source = self._generator if generator is None else generator
        uniforms = torch.rand(size, dtype=torch.float64, generator=source).numpy()
        ids, masses = self.locate(uniforms)
        return Draw(torch.from_numpy(ids), torch.from_numpy(1 / masses), size)

    def locate(
        self, uniforms: Float64[np.ndarray, " drawn"]
    ) -> tuple[Int64[np.ndarray, " drawn"], Float64[np.ndarray, " drawn"]]:
        """The id in each slot of the line for given uniform numbers, and its ``N p``."""
        totals = np.array([shard.total for shard in self.shards])
        mixture = self._law.mixture(float(totals.sum()), self.size)
        lengths = mixture.slope * totals + mixture.floor * np.diff(self._starts)
        edges = lengths.cumsum()
        points = stratified_points(uniforms, float(self.size))
        owner = np.minimum(edges.searchsorted(points, side="right"), len(edges) - 1)
        ids, masses = np.empty(len(points), dtype=np.int64), np.empty(len(points))
        for k in np.unique(owner).tolist():
            mine = owner == k
            inside = points[mine] - (edges[k] - lengths[k])
            local, masses[mine] = self.shards[k].locate(inside, mixture)
            ids[mine] = local + self._starts[k]
        return ids, masses

    def probabilities(self, indices: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """``p_i`` of the distribution in force; over all examples they sum to one."""
        ids = example_ids(indices, self.size)
        total = sum(shard.total for shard in self.shards)
        mixture = self._law.mixture(total, self.size)
        masses = np.empty(len(ids))
        for k, mine in self._owned(ids):
            masses[mine] = self.shards[k].masses(ids[mine] - self._starts[k], mixture)
        return torch.from_numpy(masses / self.size)

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that changes, the owners' parts included: tensors and numbers."""
        return {
            "sizes": [shard.size for shard in self.shards],
            "law": [self._law.exponent, self._law.uniform],
            "level": [self._level.moment, self._level.mass],
            "shards": [shard.state_dict() for shard in self.shards],
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on, bit for bit, where another table of the same sizes and distribution was.

        Raises:
            UsageError: before anything is changed, for a state of other sizes or another
                distribution.
        """
        mine = {
            "sizes": [shard.size for shard in self.shards],
            "law": [self._law.exponent, self._law.uniform],
        }
        theirs = {key: state.get(key) for key in mine}
        if theirs != mine:
            raise UsageError(
                f"the state of a sharded table with {theirs} does not fit one with {mine}: make "
                "the table with the sizes and the distribution that the state was saved with"
            )
        for shard, part in zip(self.shards, state["shards"], strict=True):
            shard.load_state_dict(part)
        self._level = Level(*state["level"])
        self._generator.set_state(state["generator"])

    def _owned(self, ids: Int64[np.ndarray, " n"]) -> list[tuple[int, np.ndarray]]:
        """Each owner among some ids, and which of them it owns."""
        owner = self._starts.searchsorted(ids, side="right") - 1
        return [(k, owner == k) for k in np.unique(owner).tolist()]
