"""Score tables that all workers of a parallel run share: one run's, or a simulated population's.

`SharedTable` is a `ScoreTable`, for runs that train. `PopulationTable` is the same law for R runs
that are simulated side by side: dense, in float64, a few operations for all runs together.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.sampling.relative import MOMENTUM, UNSEEN
from gradsift.sampling.table import ScoreTable


@dataclass(frozen=True, eq=False)
class SharedDraw:
    """A batch that was drawn for a worker.

    Attributes:
        batch: example ids.
        weights: importance weights, with which ``(1/size) Σ_j w_j v(i_j)`` has the expectation
            ``mean(v)``; those of the moment of the draw, whatever is learnt later.

    Example:
        >>> SharedDraw(torch.tensor([3]), torch.ones(1, dtype=torch.float64)).batch
        tensor([3])
    """

    batch: Int64[Tensor, "*runs size"]
    weights: Float64[Tensor, "*runs size"]


class AbstractSharedTable(ABC):
    """Scores by example, each with the version of the weights that it was computed at."""

    @abstractmethod
    def draw(self, size: int) -> SharedDraw:
        """A batch for one worker, by the scores that have arrived."""

    @abstractmethod
    def learn(self, draw: SharedDraw, scores: Float[Tensor, "*runs size"], version: int) -> None:
        """Takes the scores of a drawn batch in; an older version never replaces a newer one."""

    @abstractmethod
    def ages(self, batch: Int64[Tensor, "*runs size"], version: int) -> Int64[Tensor, "*runs size"]:
        """Updates since each example's score was computed; −1 for examples without one."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on, bit for bit, where another table was."""


@final
class SharedTable(AbstractSharedTable):
    """The score table of one run.

    Args:
        table: for all training examples; its distribution and draw say how batches are drawn.

    Example:
        >>> shared = SharedTable(ScoreTable(4))
        >>> drawn = shared.draw(2)
        >>> shared.learn(drawn, torch.tensor([1.0, 2.0]), version=3)
        >>> shared.ages(drawn.batch, version=5)
        tensor([2, 2])
    """

    def __init__(self, table: ScoreTable) -> None:
        self._table = table

    def draw(self, size: int) -> SharedDraw:
        """By the table's own distribution, draw and generator."""
        drawn = self._table.draw(size)
        return SharedDraw(drawn.positions, drawn.weights)

    def learn(self, draw: SharedDraw, scores: Float[Tensor, " size"], version: int) -> None:
        """Updates the table; scores that are not finite are left out there."""
        self._table.update(draw.batch, scores, version, draw.weights)

    def ages(self, batch: Int64[Tensor, " size"], version: int) -> Int64[Tensor, " size"]:
        """As the table counts them."""
        return self._table.ages(batch, version)

    def state_dict(self) -> dict[str, Any]:
        """That of the table."""
        return self._table.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """That of the table."""
        self._table.load_state_dict(state)


@final
class PopulationTable(AbstractSharedTable):
    """R score tables of N examples each, for runs that are simulated side by side.

    The law of ``ScoreTable(N, distribution=Mixed(Proportional(), λ), smoothing=…)`` with its
    stratified draws, run by run: scores relative to the level of their time, unseen examples at
    that level, ``p_i = (1 − λ) s_i/Σs + λ/N``, weights ``1/(N p)``. Every draw costs O(R·N), which
    for tables of a few hundred examples is less than R draws from trees.

    Args:
        runs: R.
        examples: N, or one N for each run; ids beyond it are never drawn.
        uniform: λ in (0, 1]; at 1 draws are uniform, and scores change nothing.
        smoothing: share of the old relative score that stays when a new one arrives.
        generator: of the draws of all runs.

    Raises:
        UsageError: for a share outside its range, or scores that are negative or not finite.

    Example:
        >>> tables = PopulationTable(2, 5, generator=torch.Generator())
        >>> tables.draw(3).weights.round(decimals=6).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        runs: int,
        examples: int | Int64[Tensor, " R"],
        *,
        uniform: float = 0.2,
        smoothing: float = 0.5,
        generator: torch.Generator,
    ) -> None:
        if not (0 < uniform <= 1 and 0 <= smoothing < 1):
            raise UsageError(
                f"a uniform share of {uniform} and a smoothing of {smoothing} received, expected "
                "shares in (0, 1] and [0, 1)"
            )
        self._uniform = uniform
        self._smoothing = smoothing
        self._generator = generator
        counts = torch.as_tensor(examples).expand(runs).unsqueeze(1)
        self._counts = counts
        self._relative = (torch.arange(int(counts.max())) < counts).double()
        self._flat = self._relative / counts
        self._versions = torch.full_like(self._relative, UNSEEN, dtype=torch.int64)
        self._moments = torch.zeros(runs, dtype=torch.float64)
        self._mass = 0.0

    @property
    def probabilities(self) -> Float64[Tensor, "R N"]:
        """What the next draw uses, run by run; uniform where all scores are zero."""
        totals = self._relative.sum(1, keepdim=True)
        shares = torch.where(totals > 0, self._relative / totals, self._flat)
        return (1 - self._uniform) * shares + self._uniform * self._flat

    def draw(self, size: int) -> SharedDraw:
        """One example in each of ``size`` equal slots, for every run."""
        shape = (len(self._relative), size)
        uniforms = torch.rand(shape, dtype=torch.float64, generator=self._generator)
        p = self.probabilities
        points = (torch.arange(size, dtype=torch.float64) + uniforms) / size
        found = torch.searchsorted(p.cumsum(1)[:, :-1].contiguous(), points, right=True)
        found = found.minimum(self._counts - 1)
        return SharedDraw(found, 1 / (self._counts * p.gather(1, found)))

    def learn(self, draw: SharedDraw, scores: Float[Tensor, "R size"], version: int) -> None:
        """Copies of an example count once, by the mean of their scores."""
        fresh = scores.double()
        if not bool((torch.isfinite(fresh) & (fresh >= 0)).all()):
            raise UsageError("a population received a score below 0 or not finite: lower the rate")
        squares = (draw.weights * fresh.square()).mean(1)
        self._moments = MOMENTUM * self._moments + (1 - MOMENTUM) * squares
        self._mass = MOMENTUM * self._mass + (1 - MOMENTUM)
        level = (self._moments / self._mass).sqrt().unsqueeze(1)
        relative = torch.where(level > 0, fresh / level, torch.zeros_like(fresh))
        counts = torch.zeros_like(self._relative).scatter_add(
            1, draw.batch, torch.ones_like(relative)
        )
        sums = torch.zeros_like(self._relative).scatter_add(1, draw.batch, relative)
        means = sums / counts.clamp(min=1)
        smoothed = means + self._smoothing * (self._relative - means)
        taken = torch.where(self._versions == UNSEEN, means, smoothed)
        current = (counts > 0) & (self._versions <= version)
        self._relative = torch.where(current, taken, self._relative)
        self._versions = torch.where(current, version, self._versions)

    def ages(self, batch: Int64[Tensor, "R size"], version: int) -> Int64[Tensor, "R size"]:
        """As `ScoreTable.ages`, run by run."""
        versions = self._versions.gather(1, batch)
        return torch.where(versions == UNSEEN, -1, (version - versions).clamp(min=0))

    def state_dict(self) -> dict[str, Any]:
        """Scores, versions, levels and the generator's state."""
        return {
            "relative": self._relative.clone(),
            "versions": self._versions.clone(),
            "moments": self._moments.clone(),
            "mass": self._mass,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a population of the same shape.

        Raises:
            UsageError: for another shape.
        """
        shape, expected = list(state["relative"].shape), list(self._relative.shape)
        if shape != expected:
            raise UsageError(f"the state of tables {shape} received, expected {expected}")
        self._relative, self._versions = state["relative"].clone(), state["versions"].clone()
        self._moments, self._mass = state["moments"].clone(), float(state["mass"])
        self._generator.set_state(state["generator"])
