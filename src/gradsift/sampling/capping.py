"""Scores with bounded influence: none counts for more than a quantile of the recent ones.

The largest scores are often wrong labels, and a proposal proportional to them draws those again and
again. With a cap they are drawn as often as the example at the quantile, and no more. The cap
changes the proposal alone: weights are still one over the probability, so nothing is biased.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from gradsift.errors import UsageError

REMEMBERED = 4096
"""Scores that a cap remembers, besides those that arrive: four windows of 16 batches of 64."""


def check_cap(cap: float | None) -> None:
    """Raises a `UsageError` unless a cap is None or a quantile between 0 and 1.

    Example:
        >>> check_cap(95)
        Traceback (most recent call last):
        gradsift.errors.UsageError: cap 95 received, expected a quantile between 0 and 1, such as...
    """
    if cap is not None and not 0 < cap < 1:
        raise UsageError(
            f"cap {cap} received, expected a quantile between 0 and 1, such as 0.9: scores above "
            "that of the fresh ones count as much as the one there"
        )


def weighted_quantile(
    values: Float64[np.ndarray, " n"], weights: Float64[np.ndarray, " n"], quantile: float
) -> float:
    """The smallest value up to which there is at least that share of the weight.

    With values drawn by some proposal and their importance weights, it estimates the quantile of
    the population that they were drawn from.

    Args:
        values: at least one, in any order.
        weights: one for each, >= 0 and not all zero.
        quantile: a share in (0, 1).

    Example:
        >>> weighted_quantile(np.array([5.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0]), 0.75)
        2.0
    """
    order = values.argsort(kind="stable")
    reached = weights[order].cumsum()
    place = reached.searchsorted(quantile * reached[-1], side="left")
    return float(values[order[min(int(place), len(order) - 1)]])


class Cap:
    """The quantile of recent fresh scores, above which a score counts as much as it does.

    ``min(g, c)`` with ``c`` the weighted quantile of the scores that arrive together with the
    `REMEMBERED` scores before them, or as many as there are examples where those are fewer.

    Args:
        quantile: in (0, 1).
        examples: N, of the table.

    Attributes:
        quantile: as given.
        ceiling: ``c`` as last computed, in the unit of the scores; infinite at first.

    Raises:
        UsageError: for any other quantile.

    Example:
        >>> cap = Cap(0.75, examples=100)
        >>> cap.bound(np.array([1.0, 2.0, 3.0, 100.0]), None).tolist(), cap.ceiling
        ([1.0, 2.0, 3.0, 3.0], 3.0)
    """

    def __init__(self, quantile: float, examples: int) -> None:
        check_cap(quantile)
        self.quantile = quantile
        self.ceiling = np.inf
        self._most = min(REMEMBERED, examples)
        self._recent = np.empty((2, 0))

    def bound(
        self, scores: Float64[np.ndarray, " n"], weights: Float64[np.ndarray, " n"] | None
    ) -> Float64[np.ndarray, " n"]:
        """Takes scores in, and returns what they count as.

        Args:
            scores: at least one, finite and >= 0.
            weights: with which their examples were drawn; None for uniform ones.
        """
        factors = np.ones(len(scores)) if weights is None else weights
        seen = np.concatenate((self._recent, np.stack((scores, factors))), axis=1)
        self._recent = seen[:, -self._most :].copy()
        if seen[1].any():
            self.ceiling = weighted_quantile(seen[0], seen[1], self.quantile)
        return np.minimum(scores, self.ceiling)

    def state_dict(self) -> dict[str, Any]:
        """The recent scores, as plain tensors and numbers."""
        return {"ceiling": self.ceiling, "recent": torch.from_numpy(self._recent.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the recent scores of another cap."""
        self.ceiling = float(state["ceiling"])
        self._recent = state["recent"].numpy().copy()
