"""Class-wise moments of the score: examples of hard and of varied classes are drawn more often."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float64, Int64

from gradsift.errors import UsageError
from gradsift.rules.base import AbstractPicker, AbstractRule
from gradsift.rules.classes import AbstractClasses, Groups
from gradsift.sampling.quarantine import clean


@final
@dataclass(frozen=True)
class ClassGaussian(AbstractRule):
    """``p_i ∝ μ_k + σ_k``: the mean and the spread of the scores of an example's class k.

    Moving averages over the batches in which a class occurs, of the score and of its square:
    ``μ ← a·μ + (1 − a)·mean(s)``, ``m ← a·m + (1 − a)·mean(s²)``, ``σ² = max(m − μ², 0)``. Weights
    are ``1/(N p_i)``: **unbiased**.

    Deviations from the authors' library: all examples are candidates, instead of a presample of
    2,048; the averages start from the first pass, which is in the loader's own order, instead of
    at ln(classes) and one.

    Args:
        momentum: a, in [0, 1).

    Raises:
        UsageError: for any other momentum.

    Reference:
        The PerClassGaussian sampler of Katharopoulos & Fleuret's library, 2018,
        https://arxiv.org/abs/1803.00942.

    Example:
        >>> from gradsift.records import ScoreUpdate
        >>> picker = ClassGaussian().open(examples=4)
        >>> picker.passed(4)
        >>> scores, labels = torch.tensor([1.0, 1.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1])
        >>> update = ScoreUpdate(torch.arange(4), scores, version=1, label=labels)
        >>> picker.learn(update, torch.ones(4, dtype=torch.float64))
        >>> drawn = picker.draw(8, torch.Generator().manual_seed(0))
        >>> sorted(set(drawn.weights.round(decimals=3).tolist()))
        [0.667, 2.0]
    """

    biased: ClassVar[bool] = False

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise UsageError(
                f"ClassGaussian received momentum {self.momentum}, expected a number in [0, 1)"
            )

    def open(self, examples: int) -> AbstractPicker:
        """Two averages for each class."""
        return _Gaussians(self.momentum, examples)


@final
class _Gaussians(AbstractClasses):
    """Mean and mean square of each class."""

    def __init__(self, momentum: float, examples: int) -> None:
        super().__init__(examples)
        self._momentum = momentum
        self._mean = np.empty(0)
        self._square = np.empty(0)

    def begin(self, groups: Groups, scores: Float64[np.ndarray, " N"]) -> None:
        """From all scores of the first pass; a class without any has the mean of the others."""
        seen = ~np.isnan(scores)
        members, known = groups.member[seen], scores[seen]
        self._mean, self._square = (
            _filled(groups.means(members, known**power)) for power in (1, 2)
        )

    def observe(
        self,
        groups: Groups,
        members: Int64[np.ndarray, " n"],
        scores: Float64[np.ndarray, " n"],
        weights: Float64[np.ndarray, " n"],
    ) -> None:
        """Within a class draws are uniform, so no weight is needed."""
        del weights
        kept = self._momentum
        for average, power in ((self._mean, 1), (self._square, 2)):
            fresh = groups.means(members, scores**power)
            occur = ~np.isnan(fresh)
            average[occur] = kept * average[occur] + (1 - kept) * fresh[occur]

    def masses(self, groups: Groups) -> Float64[np.ndarray, " classes"]:
        """``s_k ∝ n_k (μ_k + σ_k)``."""
        spread = np.sqrt(np.maximum(self._square - self._mean**2, 0.0))
        scores = clean(torch.from_numpy(self._mean + spread)).values.numpy()
        values = groups.counts * scores
        return values / values.sum()

    def state_dict(self) -> dict[str, Any]:
        """The averages too."""
        mean, square = (torch.from_numpy(part.copy()) for part in (self._mean, self._square))
        return {**super().state_dict(), "mean": mean, "square": square}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The averages too."""
        super().load_state_dict(state)
        self._mean = state["mean"].numpy().copy()
        self._square = state["square"].numpy().copy()


def _filled(means: Float64[np.ndarray, " classes"]) -> Float64[np.ndarray, " classes"]:
    """Means with those that are missing replaced by the mean of the others; one where none is."""
    known = ~np.isnan(means)
    return np.where(known, means, means[known].mean() if known.any() else 1.0)
