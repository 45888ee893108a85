"""AW-SGD: a parametric proposal, a softmax over classes, is trained beside the model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float64, Int64

from gradsift.errors import UsageError
from gradsift.rules.base import AbstractPicker, AbstractRule
from gradsift.rules.classes import AbstractClasses, Groups

MOMENTUM = 0.99
"""Of the mean of ``‖d‖²`` that steps are divided by."""


@final
@dataclass(frozen=True)
class LearntClasses(AbstractRule):
    """``q = (1 − λ)·softmax(τ + ln π) + λ·π`` over classes, with τ descending the variance.

    ``π_k`` is the share of class k in the data, so τ = 0 is uniform over examples. With
    ``d = w·∇ℓ`` of a drawn example, ``w = π_k/q_k``, the trace of the covariance has the gradient
    ``−E_q[‖d‖² ∇_τ ln q_k]``, and every trained batch takes the step

        τ ← τ + η · (1/b) Σ_j (‖d_j‖²/D) · ((1 − λ) s_k/q_k) (e_k − s),   s = softmax(τ + ln π),

    k the class of example j and D the moving average of ``‖d‖²``, which makes η free of units.
    Within the family ``s_k ∝ π_k sqrt(mean_k ‖∇ℓ‖²)`` is where it comes to rest for λ = 0. Weights
    are ``π_k/q_k <= 1/λ``: **unbiased**.

    Deviations from the paper: ``‖∇ℓ‖`` is the recipe's score, the norm of the output gradient by
    default; the share λ and the division by D; the first pass is in the loader's own order and
    tells the classes.

    Args:
        rate: η, dimensionless, > 0.
        uniform: λ, in (0, 1].

    Raises:
        UsageError: for parameters out of range.

    Reference:
        Bouchard et al., *Online Learning to Sample*, 2015, https://arxiv.org/abs/1506.09016.

    Example:
        >>> from gradsift.records import ScoreUpdate
        >>> picker = LearntClasses().open(examples=2)
        >>> picker.passed(2)
        >>> scores, labels = torch.tensor([1.0, 3.0]), torch.tensor([0, 1])
        >>> ones = torch.ones(2, dtype=torch.float64)
        >>> picker.learn(ScoreUpdate(torch.arange(2), scores, 1, labels), ones)
        >>> picker.draw(4, torch.Generator().manual_seed(0)).weights.tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> picker.learn(ScoreUpdate(torch.arange(2), scores, 2, labels), ones)
        >>> bool((picker.draw(4, torch.Generator().manual_seed(0)).weights != 1).all())
        True
    """

    biased: ClassVar[bool] = False

    rate: float = 0.1
    uniform: float = 0.1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0 and 0 < self.uniform <= 1):
            raise UsageError(
                f"LearntClasses received rate={self.rate}, uniform={self.uniform}: expected a "
                "positive rate and a share in (0, 1]"
            )

    def open(self, examples: int) -> AbstractPicker:
        """One parameter for each class."""
        return _Learner(self, examples)


@final
class _Learner(AbstractClasses):
    """τ, and the mean of ``‖d‖²`` with the mass of its average."""

    def __init__(self, rule: LearntClasses, examples: int) -> None:
        super().__init__(examples)
        self._rule = rule
        self._tau = np.empty(0)
        self._moment = 0.0
        self._mass = 0.0

    def begin(self, groups: Groups, scores: Float64[np.ndarray, " N"]) -> None:
        """Uniform over examples."""
        del scores
        self._tau = np.zeros(len(groups.counts))

    def observe(
        self,
        groups: Groups,
        members: Int64[np.ndarray, " n"],
        scores: Float64[np.ndarray, " n"],
        weights: Float64[np.ndarray, " n"],
    ) -> None:
        """One step of stochastic gradient descent on the trace."""
        squares = (weights * scores) ** 2
        self._moment = MOMENTUM * self._moment + (1 - MOMENTUM) * float(squares.mean())
        self._mass = MOMENTUM * self._mass + (1 - MOMENTUM)
        if not self._moment > 0:
            return
        soft = self._softmax(groups)
        masses = self.masses(groups)
        factors = squares * self._mass / self._moment
        factors = factors * (1 - self._rule.uniform) * soft[members] / masses[members]
        each = np.bincount(members, factors, minlength=len(soft))
        self._tau = self._tau + self._rule.rate * (each - factors.sum() * soft) / len(factors)

    def masses(self, groups: Groups) -> Float64[np.ndarray, " classes"]:
        """``q``."""
        share = self._rule.uniform
        return (1 - share) * self._softmax(groups) + share * groups.shares

    def state_dict(self) -> dict[str, Any]:
        """τ and the average too."""
        learnt = {"tau": torch.from_numpy(self._tau.copy()), "moment": [self._moment, self._mass]}
        return {**super().state_dict(), **learnt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """τ and the average too."""
        super().load_state_dict(state)
        self._tau = state["tau"].numpy().copy()
        self._moment, self._mass = state["moment"]

    def _softmax(self, groups: Groups) -> Float64[np.ndarray, " classes"]:
        values = groups.shares * np.exp(self._tau - self._tau.max())
        return values / values.sum()
