"""Scores as a table keeps them: relative to the level of their version, smoothed, never undone.

Scores shrink while a model learns, so an old score and a fresh one are not in the same unit. Each
is divided by the level of all scores when it arrived; unseen examples stand at that level, one.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int32, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.sampling.capping import Cap
from gradsift.sampling.tree import SumTree

MOMENTUM = 0.98
"""Of the level: it remembers about 50 updates."""

UNSEEN = -1
"""The version of an example that has no score yet."""

_LARGEST_SCORE = float(np.finfo(np.float32).max)
_LARGEST_RELATIVE = 1e30
_LARGEST_VERSION = 2**31 - 1


@dataclass(frozen=True)
class Level:
    """Root mean square of fresh scores: a moving average, corrected for its start.

    Attributes:
        moment: the moving average of ``E[g²]``, from zero.
        mass: that of the number one.

    Example:
        >>> Level().after(9.0).value
        3.0
    """

    moment: float = 0.0
    mass: float = 0.0

    def after(self, mean_square: float) -> "Level":
        """The level with one more batch."""
        kept = MOMENTUM
        return Level(kept * self.moment + (1 - kept) * mean_square, kept * self.mass + (1 - kept))

    @property
    def value(self) -> float:
        """In the unit of the scores; nan before the first."""
        return math.sqrt(self.moment / self.mass) if self.mass else math.nan


@dataclass(frozen=True, eq=False)
class FreshScores:
    """Scores that arrived, checked, without those that are not finite.

    Attributes:
        ids: int64, in range.
        scores: float64, finite, >= 0, and at most the ceiling of a cap.
        mean_square: ``mean(w g²)``: an estimate of the population's ``E[g²]``.
        quarantined: how many were not finite.
    """

    ids: Int64[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"]
    mean_square: float
    quarantined: int

    def relative_to(self, level: float) -> Float64[np.ndarray, " n"]:
        """The scores over a level; where the level is zero, so are they."""
        if not level > 0:
            return np.zeros_like(self.scores)
        return np.minimum(self.scores / level, _LARGEST_RELATIVE)


def fresh_scores(
    indices: Tensor, scores: Tensor, weights: Tensor | None, size: int, cap: Cap | None = None
) -> FreshScores:
    """Checks what arrives at a table of some size.

    Args:
        indices: example ids, on any device.
        scores: one per id, >= 0. Numbers above the range of float32 count as not finite.
        weights: of the draw that the examples came from; None for a uniform one.
        size: the number of examples of the table.
        cap: bounds what is left, and learns from it; None leaves scores as they are.

    Raises:
        UsageError: for shapes that differ, ids out of range, negative scores, or weights that are
            not finite and >= 0.

    Example:
        >>> fresh = fresh_scores(torch.tensor([4, 2]), torch.tensor([3.0, torch.nan]), None, 5)
        >>> fresh.ids.tolist(), fresh.scores.tolist(), fresh.mean_square, fresh.quarantined
        ([4], [3.0], 9.0, 1)
    """
    ids = example_ids(indices, size)
    values = _float64(scores)
    factors = None if weights is None else _float64(weights)
    if (
        ids.ndim != 1
        or values.shape != ids.shape
        or (factors is not None and factors.shape != ids.shape)
    ):
        given = "" if factors is None else f" and weights of shape {list(factors.shape)}"
        raise UsageError(
            f"a table received ids of shape {list(ids.shape)}, scores of shape "
            f"{list(values.shape)}{given}: expected one of each per example"
        )
    if factors is not None and len(factors):
        _refuse_broken_weights(factors)
    received = len(values)
    if received and not 0 <= values.min() <= values.max() <= _LARGEST_SCORE:
        kept = np.isfinite(values) & (values <= _LARGEST_SCORE)
        ids, values = ids[kept], values[kept]
        factors = None if factors is None else factors[kept]
        _refuse_negative(ids, values)
    if not len(values):
        return FreshScores(ids, values, math.nan, received)
    values = values if cap is None else cap.bound(values, factors)
    squares = values * values if factors is None else factors * values * values
    mean_square = float(squares.sum()) / len(values)
    return FreshScores(ids, values, mean_square, received - len(values))


def example_ids(indices: Tensor, size: int) -> Int64[np.ndarray, "..."]:
    """Ids as an array; raises a `UsageError` unless they are int64 and in ``0 … size−1``.

    Example:
        >>> example_ids(torch.tensor([3, 7]), 5)
        Traceback (most recent call last):
        gradsift.errors.UsageError: a table of 5 examples received id 7, expected 0 to 4: ...
    """
    if indices.dtype != torch.int64:
        raise UsageError(f"a table received {indices.dtype} ids, expected int64: use .long()")
    ids = indices.detach().cpu().numpy()
    # Seen as unsigned, negative numbers are the largest.
    if ids.size and ids.view(np.uint64).max() >= size:
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise UsageError(
            f"a table of {size} examples received id {wrong}, expected 0 to {size - 1}: "
            "pass the ids of the data set that the table was made for"
        )
    return ids


def check_version(version: int) -> None:
    """Raises a `UsageError` unless the version is a step count that fits into int32."""
    if not 0 <= version <= _LARGEST_VERSION:
        raise UsageError(
            f"a table received version {version}, expected 0 to {_LARGEST_VERSION}: "
            "pass the number of training steps that the parameters had taken"
        )


class RelativeScores:
    """Relative scores in a sum tree, by place, each with its version.

    Args:
        size: number of examples, at least 1; all unseen, with relative score one.
        exponent: of the sums in the tree.
        smoothing: share of the old score that stays, in [0, 1). A first score is taken whole.

    Example:
        >>> kept = RelativeScores(3, exponent=1.0, smoothing=0.5)
        >>> kept.store(np.array([2, 2]), np.array([4.0, 6.0]), version=1)
        >>> kept.store(np.array([2]), np.array([1.0]), version=2)
        >>> kept.tree.leaves.tolist(), kept.seen
        ([1.0, 1.0, 3.0], 1)
    """

    def __init__(self, size: int, exponent: float, smoothing: float) -> None:
        if not 0 <= smoothing < 1:
            raise UsageError(
                f"a table received smoothing {smoothing}, expected a share in [0, 1): "
                "0 keeps only the newest score"
            )
        self.tree = SumTree(size, exponent)
        self.versions: Int32[np.ndarray, " N"] = np.full(size, UNSEEN, dtype=np.int32)
        self.seen = 0
        self._smoothing = smoothing

    @property
    def nbytes(self) -> int:
        """Bytes of the tree and the versions."""
        return self.tree.nbytes + self.versions.nbytes

    def store(
        self, places: Int64[np.ndarray, " n"], fresh: Float64[np.ndarray, " n"], version: int
    ) -> None:
        """Takes relative scores in: copies by their mean, and none over a newer version."""
        places, fresh = _merged(places, fresh)
        before = self.versions[places]
        current = before <= version
        if not current.all():
            places, fresh, before = places[current], fresh[current], before[current]
        known = before != UNSEEN
        smoothed = fresh + self._smoothing * (self.tree.values(places) - fresh)
        self.tree.set(places, np.where(known, smoothed, fresh))
        self.versions[places] = version
        self.seen += len(known) - int(np.count_nonzero(known))

    def forget(self, places: Int64[np.ndarray, " n"]) -> None:
        """Examples are unseen again, with relative score one."""
        places = np.unique(places)
        self.seen -= int(np.count_nonzero(self.versions[places] != UNSEEN))
        self.tree.set(places, np.ones(len(places)))
        self.versions[places] = UNSEEN

    def load(self, values: Float[np.ndarray, " N"], versions: Int32[np.ndarray, " N"]) -> None:
        """Replaces everything; the tree is to be rebuilt."""
        self.tree.leaves[:] = values
        self.versions[:] = versions
        self.seen = int(np.count_nonzero(versions != UNSEEN))


def _merged(places: np.ndarray, fresh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending places without copies, each with the mean of its scores."""
    order = places.argsort(kind="stable")
    places, fresh = places[order], fresh[order]
    changes = places[1:] != places[:-1]
    if changes.all():
        return places, fresh
    first = np.flatnonzero(np.concatenate(([True], changes)))
    counts = np.diff(first, append=len(places))
    return places[first], np.add.reduceat(fresh, first) / counts


def _float64(values: Tensor) -> Float64[np.ndarray, "..."]:
    return values.detach().cpu().double().numpy()


def _refuse_broken_weights(weights: np.ndarray) -> None:
    low, high = weights.min(), weights.max()
    if not 0 <= low <= high < math.inf:
        raise UsageError(
            f"a table received weights from {low:g} to {high:g}, expected finite weights >= 0: "
            "pass those of the draw"
        )


def _refuse_negative(ids: np.ndarray, values: np.ndarray) -> None:
    if len(values) and values.min() < 0:
        first = int(values.argmin())
        raise UsageError(
            f"a table received the score {values[first]:g} of example {ids[first]}, expected "
            "scores >= 0: use a norm or a loss bounded below"
        )
