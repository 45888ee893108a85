"""Draws as published in 2015: scores plus a constant, those that are too old left out."""

import numpy as np
import torch
from jaxtyping import Bool, Float64

from gradsift.errors import UsageError
from gradsift.records import Draw


class FilteredWeights:
    """One snapshot of usable scores, drawn from with replacement.

    With ``w_i = s_i + c`` where example i is usable and 0 elsewhere, ids are drawn with
    ``p_i = w_i / Σ w`` and weighted by ``(Σ w / n) / w_i``, n the number that is usable. That is
    unbiased for the mean over the *usable* examples, not over all: as long as some are left out,
    the estimator is biased for the data set. `ScoreTable` with its neutral value is not.

    Alain et al., "Variance reduction in SGD by distributed importance sampling" (2015).

    Args:
        scores: of all N examples, >= 0; nan where there is none.
        usable: which of them may be drawn; those without a finite score never are.
        constant: c, in the unit of the scores.

    Raises:
        UsageError: when no example is usable.

    Example:
        >>> scores = np.array([1.0, 5.0, np.nan])
        >>> weights = FilteredWeights(scores, np.array([True, True, True]), constant=1.0)
        >>> weights.probabilities.tolist(), weights.importance.tolist()
        ([0.25, 0.75, 0.0], [2.0, 0.6666666666666666, inf])
    """

    def __init__(
        self,
        scores: Float64[np.ndarray, " N"],
        usable: Bool[np.ndarray, " N"],
        constant: float,
    ) -> None:
        kept = usable & np.isfinite(scores)
        if not kept.any():
            raise UsageError("no example has a usable score: draw uniformly until some have one")
        weights = np.where(kept, scores, 0.0) + np.where(kept, constant, 0.0)
        total = weights.sum()
        if not total > 0:
            weights, total = kept.astype(np.float64), float(kept.sum())
        with np.errstate(divide="ignore", over="ignore"):
            self.importance: Float64[np.ndarray, " N"] = total / kept.sum() / weights
        self.probabilities: Float64[np.ndarray, " N"] = weights / total
        self._ids = np.flatnonzero(weights)
        self._sums = weights[self._ids].cumsum()

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Independent ids, with the weights that the 2015 estimator gives them."""
        uniforms = torch.rand(size, dtype=torch.float64, generator=generator).numpy()
        places = np.searchsorted(self._sums, uniforms * self._sums[-1], side="right")
        ids = self._ids[np.minimum(places, len(self._ids) - 1)]
        return Draw(torch.from_numpy(ids), torch.from_numpy(self.importance[ids]), size)
