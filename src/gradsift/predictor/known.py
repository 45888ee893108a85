"""What is known about every example before it is scored again, as a row of numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.sampling.table import ScoreTable

COLUMNS = ("seen", "last", "smoothed", "low", "change", "age", "last by age", "class")
"""Of a row, before frozen features."""

START = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
"""Coefficients of the table's own proposal: ``q`` is the smoothed score, and one where unseen."""

FLOOR = 1e-3
"""Relative scores below it count as it: what they are exactly decides nothing."""

BEND = -2.0
"""Logarithm of the relative score below which another slope may hold: small scores come back."""

CLASSES = 2**16
"""Classes that are told apart; further ones share."""

MEMORY = 0.98
"""Share of a class's sums that is kept from one update to the next."""

NO_CLASS = -1


class Known:
    """The last two scores, the class and the frozen features of every example.

    A row has the columns `COLUMNS`. Scores are relative to the level of all scores when they came,
    as in a `ScoreTable`, and enter as logarithms: the ``last`` one, its ``change`` from the one
    before, the ``smoothed`` one of the table, and how far that is below `BEND` (``low``), where
    another slope may hold. All are zero for examples that were never scored, and so is ``seen``.
    ``age`` is ``log(1 + a)`` with the steps ``a`` since the last score in units of a pass, and
    ``class`` the logarithm of the root mean square of recent scores of the class. Frozen features
    are standardised.

    Memory: 12 bytes per example, and 4 for each frozen feature.

    Args:
        examples: N.
        steps: of a pass over the data, at least 1.
        features: frozen ones, ``[N, d]``, or None.

    Raises:
        UsageError: for features of another number of examples.

    Example:
        >>> known, table = Known(3, steps=10), ScoreTable(3)
        >>> ids = np.array([1])
        >>> table.update(torch.tensor([1]), torch.tensor([2.0]), version=4)
        0
        >>> known.add(ids, np.array([2.0]), np.ones(1), None, table.level)
        >>> known.rows(np.array([0, 1]), table, version=14).round(2).tolist()
        [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.69, 0.0, 0.0]]
    """

    def __init__(self, examples: int, steps: int, features: Tensor | None = None) -> None:
        if features is not None and len(features) != examples:
            raise UsageError(
                f"forecasting received features of {len(features)} examples, expected {examples}: "
                "one row for each example of the data set"
            )
        self._steps = max(steps, 1)
        self._last = np.zeros(examples, np.float32)
        self._before = np.full(examples, np.nan, np.float32)
        self._labels = np.full(examples, NO_CLASS, np.int32)
        self._frozen = None if features is None else _standardised(features)
        self._squares = np.zeros(0)
        self._masses = np.zeros(0)

    @property
    def columns(self) -> int:
        """Numbers in a row."""
        return len(COLUMNS) + (0 if self._frozen is None else self._frozen.shape[1])

    @property
    def start(self) -> Float64[np.ndarray, " columns"]:
        """Coefficients of the table's own proposal."""
        return np.concatenate((START, np.zeros(self.columns - len(START))))

    def add(
        self,
        ids: Int64[np.ndarray, " n"],
        scores: Float64[np.ndarray, " n"],
        weights: Float64[np.ndarray, " n"],
        labels: Int64[np.ndarray, " n"] | None,
        level: float,
    ) -> None:
        """Takes the scores of different examples in.

        Args:
            ids: of the examples, all different.
            scores: finite and >= 0.
            weights: with which they were drawn.
            labels: their classes, or None.
            level: of all scores now.
        """
        if not level > 0:
            return
        relative = scores / level
        first = np.isnan(self._before[ids])
        fresh = np.log(np.maximum(relative, FLOOR)).astype(np.float32)
        self._before[ids] = np.where(first, fresh, self._last[ids])
        self._last[ids] = fresh
        if labels is not None:
            classes = labels % CLASSES
            self._labels[ids] = classes
            self._note_classes(classes, weights, relative)

    def rows(
        self, ids: Int64[np.ndarray, " n"], table: ScoreTable, version: int
    ) -> Float64[np.ndarray, "n columns"]:
        """One row for each example.

        Args:
            ids: of the examples.
            table: that holds their smoothed scores and versions.
            version: of the parameters now.
        """
        index = torch.from_numpy(ids)
        ages = table.ages(index, version).numpy()
        seen = (ages >= 0) & ~np.isnan(self._before[ids])
        last = np.where(seen, self._last[ids], 0.0).astype(np.float64)
        before = np.where(seen, self._before[ids], 0.0)
        smoothed = np.log(np.maximum(table.relative(index).numpy(), FLOOR))
        smoothed = np.where(seen, smoothed, 0.0)
        age = np.where(seen, np.log1p(np.maximum(ages, 0) / self._steps), 0.0)
        columns = [
            seen.astype(np.float64),
            last,
            smoothed,
            np.minimum(smoothed - BEND, 0.0),
            last - before,
            age,
            last * age,
            self._class_levels(self._labels[ids]),
        ]
        rows = np.stack(columns, axis=1)
        return rows if self._frozen is None else np.hstack((rows, self._frozen[ids]))

    def state_dict(self) -> dict[str, Any]:
        """Copies; frozen features are not among them."""
        kept = {
            "last": self._last,
            "before": self._before,
            "labels": self._labels,
            "squares": self._squares,
            "masses": self._masses,
        }
        return {name: torch.from_numpy(values.copy()) for name, values in kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what was known of the same data."""
        self._last[:] = state["last"].numpy()
        self._before[:] = state["before"].numpy()
        self._labels[:] = state["labels"].numpy()
        self._squares = state["squares"].numpy().copy()
        self._masses = state["masses"].numpy().copy()

    def _note_classes(
        self,
        classes: Int64[np.ndarray, " n"],
        weights: Float64[np.ndarray, " n"],
        relative: Float64[np.ndarray, " n"],
    ) -> None:
        count = max(len(self._squares), int(classes.max()) + 1)
        squares = np.bincount(classes, weights * relative**2, count)
        masses = np.bincount(classes, weights, count)
        self._squares = _faded(self._squares, count) + squares
        self._masses = _faded(self._masses, count) + masses

    def _class_levels(self, labels: np.ndarray) -> Float64[np.ndarray, " n"]:
        """One example at the level of all stands beside those of the class."""
        levels = np.log((self._squares + 1) / (self._masses + 1)) / 2
        return np.append(levels, 0.0)[np.where(labels < len(levels), labels, NO_CLASS)]


def _faded(sums: Float64[np.ndarray, " k"], count: int) -> Float64[np.ndarray, " count"]:
    return MEMORY * np.pad(sums, (0, count - len(sums)))


def _standardised(features: Float[Tensor, "N d"]) -> Float[np.ndarray, "N d"]:
    values = features.detach().cpu().double().numpy()
    spread = values.std(axis=0)
    return ((values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)).astype(np.float32)
