"""From scores to probabilities: how strongly a draw prefers high scores.

Only the ratios of the scores matter. Every distribution cleans its input (`quarantine.clean`) and
gives each candidate a probability above zero, so every unbiased draw stays unbiased.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.sampling.quarantine import clean, neutralise


class AbstractDistribution(ABC):
    """A rule that turns scores into probabilities."""

    @abstractmethod
    def probabilities(self, scores: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """One probability per score: float64 on the CPU, all above zero, with sum one."""


@dataclass(frozen=True)
class Proportional(AbstractDistribution):
    """``p_i = s_i / Σ s``: the smallest variance where the scores are exact gradient norms.

    Needell, Srebro, Ward, "Stochastic gradient descent, weighted sampling, and the randomized
    Kaczmarz algorithm" (2014); Zhao, Zhang, "Stochastic optimization with importance sampling"
    (2015). Deviation: scores below a millionth of the mean are raised to it.

    Example:
        >>> import torch
        >>> Proportional().probabilities(torch.tensor([1.0, 3.0])).tolist()
        [0.25, 0.75]
    """

    def probabilities(self, scores: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Scores over their sum."""
        return _normalise(clean(scores).values)


@dataclass(frozen=True)
class Power(AbstractDistribution):
    """``p_i ∝ s_i^exponent``: 0 is uniform, 1 proportional, between them a flatter proposal.

    A flatter proposal loses less where scores are stale or only a proxy. Above 1 it is sharper
    than any unbiased purpose asks for. Schaul et al., "Prioritized experience replay" (2016), use
    0.5 to 0.7.

    Args:
        exponent: dimensionless, finite and >= 0.

    Raises:
        UsageError: for any other exponent.

    Example:
        >>> import torch
        >>> Power(0.5).probabilities(torch.tensor([1.0, 9.0])).tolist()
        [0.25, 0.75]
    """

    exponent: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise UsageError(
                f"Power received exponent {self.exponent}, expected a finite number >= 0: "
                "0 is uniform, 1 is proportional"
            )

    def probabilities(self, scores: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Powers of the scores over their sum; powers that underflow get the floor of `clean`."""
        values = clean(scores).values
        return _normalise(clean((values / values.max()) ** self.exponent).values)


@dataclass(frozen=True)
class Ranked(AbstractDistribution):
    """``p_i ∝ P_i^exponent`` with ``P_i`` the share of candidates whose score is at most ``s_i``.

    Only the order of the scores counts: equal scores are equally probable, and the largest is at
    most ``n^exponent`` times as probable as the smallest. Over n candidates the mean of ``P^β`` is
    about ``1/(β + 1)``, so one of ``β + 1`` candidates drawn without replacement is kept with
    probability ``P^β`` itself.

    Jiang et al., "Accelerating deep learning by focusing on the biggest losers" (2019), whose
    percentiles are those of the last losses of the run, not of the candidates.

    Args:
        exponent: β, dimensionless, finite and >= 0; 0 is uniform.

    Raises:
        UsageError: for any other exponent.

    Example:
        >>> import torch
        >>> Ranked(1.0).probabilities(torch.tensor([5.0, 1.0, 1.0, 0.1])).round(decimals=3).tolist()
        [0.364, 0.273, 0.273, 0.091]
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise UsageError(
                f"Ranked received exponent {self.exponent}, expected a finite number >= 0: "
                "0 is uniform, larger numbers prefer high scores"
            )

    def probabilities(self, scores: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Powers of the percentiles over their sum."""
        values = neutralise(scores).values
        below = torch.searchsorted(values.sort().values, values, right=True)
        return _normalise((below.double() / len(values)) ** self.exponent)


@dataclass(frozen=True)
class Mixed(AbstractDistribution):
    """``p_i = (1 − λ) q_i + λ/N``: a share λ of uniform draws inside another distribution.

    This is what bounds the weights. A weight is ``1/(N p)`` with replacement and at most that
    without, and ``p >= λ/N``, so ``w <= 1/λ``. Adding a constant ``c = κ · mean(s)`` to every
    score is the same mixture with ``λ = κ/(1 + κ)``.

    Args:
        inner: the distribution ``q``.
        uniform: the share λ, in (0, 1].

    Raises:
        UsageError: when the share is outside (0, 1].

    Example:
        >>> import torch
        >>> mixed = Mixed(Power(0.5), uniform=0.1)
        >>> p = mixed.probabilities(torch.tensor([0.0, 1.0, 4.0, 9.0]))
        >>> bool((1 / (4 * p)).max() <= 1 / 0.1)
        True
    """

    inner: AbstractDistribution
    uniform: float

    def __post_init__(self) -> None:
        if not 0 < self.uniform <= 1:
            raise UsageError(
                f"Mixed received uniform={self.uniform}, expected a share in (0, 1]: "
                "weights are bounded by 1/uniform; use the inner distribution alone for no share"
            )

    def probabilities(self, scores: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """The mixture of the inner probabilities with ``1/N``."""
        inner = self.inner.probabilities(scores)
        return (1 - self.uniform) * inner + self.uniform / len(inner)


def _normalise(values: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Positive values over their sum; divided by the largest first, so that no sum overflows."""
    relative = values / values.max()
    return relative / relative.sum()
