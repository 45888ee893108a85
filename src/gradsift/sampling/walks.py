"""Draws from a sum tree: uniform numbers in, places out. Nothing here is random.

A table draws by ``p_i = (1 − λ) s_i^a / S + λ/N`` with ``S = Σ s^a``. Times ``N`` this is a length
on a line of length ``N``: ``slope · s_i^a + floor`` with ``slope = (1 − λ) N/S``, ``floor = λ``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64

from gradsift.errors import UsageError
from gradsift.sampling.distributions import AbstractDistribution, Mixed, Power, Proportional
from gradsift.sampling.positions import spread
from gradsift.sampling.tree import SumTree

LARGEST_EXPONENT = 4.0
"""Relative scores up to 1e30 to this power, a billion of them, have a finite sum."""


@dataclass(frozen=True)
class Mixture:
    """``N p_i = slope · s_i^a + floor``: how long each example is on a line of length N."""

    slope: float
    floor: float

    def masses(self, powers: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """``N p`` of examples from their ``s^a``; the weight of a draw is one over it."""
        return self.slope * powers + self.floor

    def power_at(self, mass: float) -> float:
        """The ``s^a`` at which an example reaches a mass; infinite where none does."""
        return (mass - self.floor) / self.slope if self.slope else np.inf


@dataclass(frozen=True)
class TableLaw:
    """The two numbers of a table's distribution.

    Attributes:
        exponent: ``a``, in [0, 4]; zero is uniform.
        uniform: ``λ``, in (0, 1]; weights are at most ``1/λ``.

    Example:
        >>> TableLaw.of(Mixed(Power(0.5), uniform=0.1))
        TableLaw(exponent=0.5, uniform=0.1)
    """

    exponent: float
    uniform: float

    @classmethod
    def of(cls, distribution: AbstractDistribution) -> "TableLaw":
        """Reads them off a distribution.

        Raises:
            UsageError: for anything but `Mixed` over `Proportional` or over `Power` up to 4.
        """
        inner = distribution.inner if isinstance(distribution, Mixed) else None
        exponent = inner.exponent if isinstance(inner, Power) else 1.0
        known = isinstance(inner, Proportional | Power) and exponent <= LARGEST_EXPONENT
        if not (known and isinstance(distribution, Mixed)):
            raise UsageError(
                f"a score table cannot draw by {distribution}, expected Mixed(Proportional() or "
                f"Power(at most {LARGEST_EXPONENT:g}), uniform=share): only a uniform share bounds "
                "the weights where a stored score is out of date"
            )
        return cls(exponent=exponent, uniform=distribution.uniform)

    @property
    def distribution(self) -> Mixed:
        """The same as a distribution."""
        inner = Proportional() if self.exponent == 1 else Power(self.exponent)
        return Mixed(inner, uniform=self.uniform)

    @property
    def summed(self) -> float:
        """The exponent of the sums that it needs; a uniform law needs none."""
        return self.exponent or 1.0

    def mixture(self, total: float, count: int) -> Mixture:
        """The line for scores with ``Σ s^a = total``; scores that are all zero mean uniform."""
        if total == 0.0 or self.exponent == 0.0:
            return Mixture(slope=0.0, floor=1.0)
        return Mixture(slope=(1 - self.uniform) * count / total, floor=self.uniform)


def stratified_points(
    uniforms: Float64[np.ndarray, " drawn"], length: float
) -> Float64[np.ndarray, " drawn"]:
    """One point in each of ``b`` equal slots of a line: ``(j + u_j) · length / b``.

    Example:
        >>> stratified_points(np.array([0.5, 0.0]), 4.0).tolist()
        [1.0, 2.0]
    """
    return (np.arange(len(uniforms)) + uniforms) * (length / len(uniforms))


def stratified_places(
    tree: SumTree, mixture: Mixture, uniforms: Float64[np.ndarray, " drawn"]
) -> tuple[Int64[np.ndarray, " drawn"], Float64[np.ndarray, " drawn"]]:
    """One place in each slot of the line, and its ``N p``.

    The law of `positions.stratified_positions` with the probabilities in the order of the tree:
    at most ``⌊b p⌋ + 2`` copies, and a variance at most that of independent draws.

    Args:
        tree: the scores.
        mixture: the line, of length N.
        uniforms: one independent uniform number in [0, 1) per slot; their count is ``b``.

    Example:
        >>> tree = SumTree(4, exponent=1.0)
        >>> uniform = Mixture(slope=0.0, floor=1.0)
        >>> stratified_places(tree, uniform, np.array([0.9, 0.1]))[0].tolist()
        [1, 2]
    """
    points = stratified_points(uniforms, float(tree.size))
    return tree.find(points, mixture.slope, mixture.floor)


def systematic_places(
    tree: SumTree, mixture: Mixture, size: int, offset: float
) -> tuple[Int64[np.ndarray, " drawn"], Float64[np.ndarray, " drawn"]]:
    """A walk in steps of one along ``π = min(1, c · N p)`` with ``Σ π = size``: no copies.

    The constant is found by capping: examples that reach one are certain and leave the line, which
    raises ``c`` for the others, until none reaches one. Their scores are zero meanwhile, so that
    the sums of the others are exact however large the certain ones are.

    Args:
        tree: the scores; as before when the call returns.
        mixture: the line before anything is capped.
        size: the number of places, at most N.
        offset: one uniform number in [0, 1).

    Returns:
        Ascending places, and their ``π``.

    Example:
        >>> tree = SumTree(4, exponent=1.0)
        >>> tree.set(np.array([2]), np.array([97.0]))
        >>> places, inclusion = systematic_places(tree, Mixture(0.032, 0.2), 2, 0.5)
        >>> places.tolist(), inclusion.round(3).tolist()
        ([1, 2], [0.333, 1.0])
    """
    if size == tree.size:
        return np.arange(size), np.ones(size)
    certain = np.empty(0, dtype=np.int64)
    undo: list[tuple[np.ndarray, np.ndarray]] = []
    factor = 0.0
    try:
        while len(certain) < size:
            rest = mixture.slope * tree.total + mixture.floor * (tree.size - len(certain))
            factor = (size - len(certain)) / rest
            more = tree.at_least(mixture.power_at(1 / factor))
            if not len(more):
                break
            undo.append((more, tree.values(more)))
            tree.set(more, np.zeros(len(more)))
            certain = np.sort(np.concatenate((certain, more)))
        points = (np.arange(size - len(certain)) + offset) / factor
        found, _ = tree.find(points, mixture.slope, mixture.floor, certain)
    finally:
        for places, values in undo:
            tree.set(places, values)
    places = np.sort(np.concatenate((certain, _apart(found, certain, tree.size))))
    return places, np.minimum(1.0, factor * mixture.masses(tree.powers(places)))


def _apart(
    found: Int64[np.ndarray, " n"], certain: Int64[np.ndarray, " k"], count: int
) -> Int64[np.ndarray, " n"]:
    """No place twice, whatever the rounding: `positions.spread` among those not certain."""
    ranks = torch.from_numpy(found - certain.searchsorted(found))
    ranks = spread(ranks, count - len(certain)).numpy()
    return ranks + (certain - np.arange(len(certain))).searchsorted(ranks, side="right")
