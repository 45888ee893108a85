"""Every score and draw on one population: its variance in real draws, and by its formula."""

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gradsift.comparison.estimates import half_width
from gradsift.monitors.traces import (
    pool_trace,
    population_traces,
    stratified_trace,
    without_replacement_trace,
)
from gradsift.records import Draw
from gradsift.report.variance import Noise, Source
from gradsift.sampling.distributions import AbstractDistribution, Proportional
from gradsift.sampling.draws import AbstractDraw, Multinomial, Systematic
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.quarantine import clean

DRAWS = 100
"""Batches in each repeat."""

POOLS = 20
"""Pools that the formula of a draw from a pool without replacement is averaged over."""


AS_SCORED = Proportional()
"""Probabilities in proportion to the scores."""


@dataclass(frozen=True, eq=False)
class AbstractWay(ABC):
    """One way to take a batch.

    Attributes:
        source: where the examples come from.
        score: what they are drawn by.
        scores: of all examples.
        draw: the rule.
        seconds: per trained example; None where they cannot be counted fairly.
        age: of the scores, in steps; None for fresh ones.
    """

    source: Source
    score: str
    scores: Float64[Tensor, " n"]
    draw: AbstractDraw
    seconds: float | None
    age: int | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """In words."""

    @abstractmethod
    def take(self, size: int, generator: torch.Generator) -> tuple[Int64[Tensor, " drawn"], Draw]:
        """Examples, and the draw with their weights."""

    @abstractmethod
    def formula(self, gradients: Float64[Tensor, "n d"], size: int) -> float:
        """The variance that the formula of the draw says."""

    def trace(self, gradients: Float64[Tensor, "n d"]) -> float | None:
        """Of the proposal in independent draws from all examples; None where that is not asked."""
        del gradients


@dataclass(frozen=True, eq=False)
class FromAll(AbstractWay):
    """Drawn from all examples.

    Attributes:
        distribution: from scores to probabilities.
    """

    distribution: AbstractDistribution = AS_SCORED

    @property
    def name(self) -> str:
        """The source, the score and its age."""
        if self.source == "uniform":
            return "uniform"
        if self.age is None:
            return f"{self.score}, all fresh"
        slots = "" if isinstance(self.draw, Multinomial) else ", stratified"
        return f"{self.score}, {self.age:,} {'step' if self.age == 1 else 'steps'} old{slots}"

    @property
    def probabilities(self) -> Float64[Tensor, " n"]:
        """Of one draw."""
        return self.distribution.probabilities(self.scores)

    def take(self, size: int, generator: torch.Generator) -> tuple[Int64[Tensor, " drawn"], Draw]:
        """By the probabilities."""
        drawn = self.draw.draw(self.probabilities, size, generator)
        return drawn.positions, drawn

    def formula(self, gradients: Float64[Tensor, "n d"], size: int) -> float:
        """Independent draws, or one in each slot."""
        if isinstance(self.draw, Multinomial):
            return self.trace(gradients) / size
        return stratified_trace(gradients, clean(self.probabilities).values, size)

    def trace(self, gradients: Float64[Tensor, "n d"]) -> float:
        """Of the probabilities."""
        mean_square = float(gradients.mean(0).square().sum())
        p = clean(self.probabilities).values
        return population_traces(gradients.norm(dim=1), p, mean_square).drawn


@dataclass(frozen=True, eq=False)
class FromPool(AbstractWay):
    """Drawn from candidates that come uniformly and independently, and are scored now.

    Attributes:
        ratio: candidates per trained example.
    """

    ratio: float = 3.0

    @property
    def name(self) -> str:
        """The ratio, the score and, where it replaces, the draw."""
        again = ", with replacement" if isinstance(self.draw, Multinomial) else ""
        return f"{self.score}, pool of {self.ratio:g}{again}"

    def pool(self, size: int, generator: torch.Generator) -> Int64[Tensor, " candidates"]:
        """Candidates."""
        count = round(self.ratio * size)
        return torch.randint(len(self.scores), (count,), generator=generator)

    def take(self, size: int, generator: torch.Generator) -> tuple[Int64[Tensor, " drawn"], Draw]:
        """Of the candidates, by their scores."""
        pool = self.pool(size, generator)
        drawn = self.draw.draw(self.scores[pool], size, generator)
        return pool[drawn.positions], drawn

    def formula(self, gradients: Float64[Tensor, "n d"], size: int) -> float:
        """The pool's own variance, and that of the draw from it.

        Without replacement the latter is Hájek's formula, averaged over twenty pools.
        """
        if isinstance(self.draw, Multinomial):
            scores = clean(self.scores).values
            return pool_trace(gradients, scores, round(self.ratio * size), size)
        generator = torch.Generator().manual_seed(0)
        inside = []
        for _ in range(POOLS):
            pool = self.pool(size, generator)
            inclusion = capped_inclusion(self.scores[pool], size)
            inside.append(without_replacement_trace(gradients[pool], inclusion))
        v = float((gradients - gradients.mean(0)).square().sum(1).mean())
        return v / round(self.ratio * size) + statistics.fmean(inside)


def measure(
    way: AbstractWay,
    gradients: Float64[Tensor, "n d"],
    size: int,
    repeats: int,
    generator: torch.Generator,
) -> Noise:
    """``E‖ĝ − μ‖²`` of real draws, in independent repeats, beside the formula.

    Args:
        way: how a batch is taken.
        gradients: of all examples, in any axes.
        size: ``b``.
        repeats: at least two, of `DRAWS` batches each.
        generator: of the draws.
    """
    found = [_mean_error(way, gradients, size, generator) for _ in range(repeats)]
    middle, half = statistics.fmean(found), half_width(found)
    return Noise(
        name=way.name,
        source=way.source,
        score=way.score,
        draw=type(way.draw).__name__.lower(),
        age=way.age,
        measured=middle,
        low=middle - (math.inf if half is None else half),
        high=middle + (math.inf if half is None else half),
        formula=way.formula(gradients, size),
        seconds=way.seconds,
        trace=way.trace(gradients),
    )


def pools(
    scores: Sequence[tuple[str, Float64[Tensor, " n"], float]], train: float, ratio: float
) -> list[AbstractWay]:
    """A pool of each score, drawn from with and without replacement, with all its seconds.

    Args:
        scores: name, scores of all examples, seconds to score one.
        train: seconds to train an example.
        ratio: candidates per trained example.
    """
    return [
        FromPool("pool", name, values, draw, train + ratio * seconds, ratio=ratio)
        for name, values, seconds in scores
        for draw in (Multinomial(), Systematic())
    ]


def _mean_error(
    way: AbstractWay, gradients: Float64[Tensor, "n d"], size: int, generator: torch.Generator
) -> float:
    """Of `DRAWS` batches; the nominal size divides, as in training."""
    n = len(gradients)
    shares = torch.full((DRAWS, n), -1 / n, dtype=torch.float64)
    for row in shares:
        ids, drawn = way.take(size, generator)
        row.index_add_(0, ids, drawn.weights / drawn.size)
    return float((shares @ gradients).square().sum(1).mean())
