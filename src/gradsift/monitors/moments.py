"""What the scores and weights of one batch tell for free: tau, second moments, sample size."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.sampling.quarantine import neutralise


def tau(scores: Float[Tensor, " n"]) -> float:
    """How uneven the scores are: ``τ = sqrt(E[s²]) / E[s]``, dimensionless, at least one.

    ``τ² = 1 + CV²``: the ratio of the second moments of uniform draws and of draws with
    ``p ∝ s``, both with replacement, for scores that are gradient norms. Constant or all-zero
    scores give 1; ``n`` scores give at most ``sqrt(n)``; their scale does not matter.

    Katharopoulos, Fleuret, "Not all samples are created equal" (2018), equations 23 to 25, write
    it as ``(1 − ‖g − u‖² / Σ g_i²)^(−1/2)`` with ``g = s/Σ s`` and ``u = 1/n``, which is the same
    number. Deviation: scores that are not finite are replaced by the root mean square of the
    others.

    Args:
        scores: at least one score, each >= 0, of any floating type.

    Raises:
        UsageError: when there is no score, or a finite score below zero.

    Example:
        >>> import torch
        >>> tau(torch.tensor([0.0, 0.0, 0.0, 5.0]))
        2.0
    """
    values = neutralise(scores).values
    relative = values / values.max()
    return max(1.0, float(relative.square().mean().sqrt() / relative.mean()))


@dataclass(frozen=True)
class SecondMoments:
    """Second moments of the estimator, estimated from one drawn batch.

    All three are in the unit of the squared scores, and speak of gradients only as far as the
    scores are gradient norms.

    Attributes:
        uniform: ``E[w g²]``: what uniform draws would have.
        drawn: ``E[w² g²]``: what the draw in use has.
        ideal: ``(E[w g])²``: what probabilities in proportion to ``g`` would have.

    Example:
        >>> moments = SecondMoments(uniform=6.0, drawn=4.0, ideal=3.0)
        >>> moments.ratio, moments.efficiency
        (1.5, 0.75)
    """

    uniform: float
    drawn: float
    ideal: float

    @property
    def ratio(self) -> float:
        """Uniform over drawn: above one where the draw helps; nan where all scores are zero.

        A ratio of second moments. It lies on the same side of one as the ratio of variances,
        which subtracts ``‖μ‖²`` from both, and closer to one. For a pool that is resampled with
        replacement it leaves out the variance of the pool.
        """
        return self.uniform / self.drawn if self.drawn else math.nan

    @property
    def efficiency(self) -> float:
        """Ideal over drawn, ``κ`` in [0, 1]: one where the proposal fits the scores exactly."""
        return self.ideal / self.drawn if self.drawn else math.nan


def second_moments(
    scores: Float[Tensor, " drawn"], weights: Float[Tensor, " drawn"], size: int
) -> SecondMoments:
    """The three second moments from the scores and weights of one drawn batch.

    ``uniform`` and ``drawn`` are unbiased estimates. ``ideal`` squares an unbiased estimate of
    ``E[g]``, so it is a little too large. One batch is very noisy: accumulate many.

    Args:
        scores: fresh scores ``g`` of the drawn examples, finite and >= 0.
        weights: the weights with which these examples were drawn.
        size: the nominal size of the draw, which divides the sums.

    Raises:
        UsageError: when the size is not positive.

    Example:
        >>> import torch
        >>> moments = second_moments(torch.tensor([2.0, 1.0]), torch.tensor([0.75, 1.5]), 2)
        >>> moments
        SecondMoments(uniform=2.25, drawn=2.25, ideal=2.25)
        >>> moments.ratio, moments.efficiency
        (1.0, 1.0)
    """
    if size < 1:
        raise UsageError(f"second_moments received size {size}, expected the nominal batch size")
    g, w = scores.detach().double().cpu(), weights.detach().double().cpu()
    return SecondMoments(
        uniform=float((w * g * g).sum() / size),
        drawn=float((w * g).square().sum() / size),
        ideal=float((w * g).sum() / size) ** 2,
    )


def effective_sample_size(weights: Float[Tensor, " drawn"]) -> float:
    """``(Σ w)² / Σ w²``, in examples, from 0 (nothing drawn) to their number (equal weights).

    Report it, never steer by it: it is small exactly when importance sampling is right. At the
    ideal proposal for lognormal scores with σ = 1.5 it is a tenth of the batch.
    Kong, "A note on importance sampling using standardized weights" (1992).

    Example:
        >>> import torch
        >>> effective_sample_size(torch.tensor([1.0, 1.0, 2.0]))
        2.666...
    """
    w = weights.detach().double().cpu()
    squares = float(w.square().sum())
    return float(w.sum()) ** 2 / squares if squares else 0.0
