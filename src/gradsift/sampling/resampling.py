"""Candidates drawn by score once more, with weights to a power: the soft max-loss of 2017.

Of a presample of B uniform candidates with scores ``s``, b are drawn with replacement by
``p_j = s_j/Σs``. The weight ``m/s_j`` with ``m = mean(s)`` would be unbiased. The power k changes
what is learnt: with a normaliser ``c`` that the past alone determines::

    w_j = (m/s_j) · s_j^(1−k) / c,     E[(1/b) Σ_j w_j v_j | past] = (1/c) · mean(s^(1−k) v)

over the data, for every v. With the exact loss as the score and ``v = ∇L`` this is the gradient of
``mean(L^(2−k))/((2−k) c)``: k = 1 is the mean loss, 0 the mean squared one, and ``k → −∞`` goes to
the largest loss. With a predicted loss ``ŝ`` it is ``mean(ŝ^(1−k) ∇L)``, the gradient of no fixed
function; with a constant added it is ``mean((L + a)^(1−k) ∇L)``, and with the power α it is
``mean(L^(α(1−k)) ∇L)``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import Draw
from gradsift.sampling.inclusion import check_size
from gradsift.sampling.positions import multinomial_positions
from gradsift.sampling.quarantine import clean, neutralise
from gradsift.sampling.smoothing import AbstractSmoothing

Normaliser = Literal["previous", "population", "batch"]

MOMENTUM = 0.9
"""Of the averages over earlier presamples, as published for the adaptive smoothing."""

LEAST = -20.0
"""The smallest k: far below it powers of losses overflow, and the largest loss is all there is."""


@dataclass(frozen=True)
class Resampling:
    """How candidates are drawn once more, and what they weigh.

    Args:
        exponent: k, at most 1 and at least `LEAST`. **Biased** below 1, on purpose: see above.
        normaliser: c. "previous" is ``Σ s^(2−k)/Σ s`` with moving averages over earlier
            presamples, which are larger while losses fall: steps are smaller then; "population" is
            the same over all examples, surveyed once per epoch; "batch" is
            ``mean(s^(1−k))`` of the batch itself, as in the authors' code, which depends on the
            draw: the objective is then no longer the one above. All keep the mean of weighted
            scores at ``mean(s)``, the first two on average. With k = 1 all are 1.
        smoothing: of the scores; None for none, the published default.

    Raises:
        UsageError: for a value out of range.

    Example:
        >>> Resampling().biased, Resampling(exponent=1.0).biased
        (True, False)
    """

    exponent: float = 0.5
    normaliser: str = "previous"
    smoothing: AbstractSmoothing | None = None

    def __post_init__(self) -> None:
        if not LEAST <= self.exponent <= 1:
            raise UsageError(
                f"a resampling received exponent {self.exponent}, expected {LEAST:g} to 1: 1 is "
                "unbiased, smaller ones prefer large losses"
            )
        if self.normaliser not in get_args(Normaliser):
            raise UsageError(
                f"a resampling received normaliser {self.normaliser!r}, expected one of "
                f"{', '.join(get_args(Normaliser))}"
            )

    @property
    def biased(self) -> bool:
        """Whether the weighted mean differs from the mean over the data, on purpose."""
        return self.exponent != 1


class Resampler:
    """Draws candidates by score once more, and remembers what earlier presamples told.

    Before there was any other presample, or survey, nothing is known of ``c``: that first draw has
    k = 1, so it is unbiased.

    Katharopoulos & Fleuret, "Biased importance sampling for deep neural network training" (2017),
    arXiv:1706.00043. Deviation: the default normaliser (`Resampling`).

    Args:
        resampling: what to do.

    Example:
        >>> resampler = Resampler(Resampling(exponent=0.0))
        >>> scores, seeded = torch.tensor([1.0, 3.0]), torch.Generator().manual_seed(0)
        >>> first = resampler.draw(scores, 2, seeded)  # k = 1: w s = m
        >>> (first.weights * scores[first.positions]).tolist()
        [2.0, 2.0]
        >>> second = resampler.draw(scores, 2, seeded)  # k = 0: m/c = 2/2.5, whatever was drawn
        >>> second.weights.round(decimals=6).tolist()
        [0.8, 0.8]
    """

    def __init__(self, resampling: Resampling) -> None:
        self.resampling = resampling
        self._level = 1.0
        self._top = self._bottom = 0.0
        self._surveyed: float | None = None

    @property
    def normaliser(self) -> float | None:
        """``c`` of the next draw; None where nothing is known of it, or the batch decides."""
        found = self._surveyed if self.resampling.normaliser == "population" else None
        if self.resampling.normaliser == "previous" and self._bottom > 0:
            found = self._top / self._bottom
        return found if found is not None and 0 < found < math.inf else None

    def draw(self, scores: Float[Tensor, " n"], size: int, generator: torch.Generator) -> Draw:
        """Draws ``size`` of the candidates with replacement.

        Args:
            scores: one per candidate, >= 0; those that are not finite count as the root mean
                square of the others.
            size: b, from 1 to the number of candidates.
            generator: a CPU generator, the only source of randomness.

        Raises:
            UsageError: for a size out of range, or a negative score.
        """
        check_size(size, len(scores))
        smoothed = self.smoothed(scores)
        uniforms = torch.rand(size, dtype=torch.float64, generator=generator)
        positions = multinomial_positions(smoothed / smoothed.sum(), uniforms)
        weights = self.weights(smoothed, positions)
        self.observe(scores)
        return Draw(positions, weights, size, neutralise(scores).quarantined)

    def smoothed(self, scores: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """What the next draw is by: ``s`` above, smoothed and positive."""
        values = neutralise(scores).values
        smoothing = self.resampling.smoothing
        return clean(values if smoothing is None else smoothing.smooth(values, self._level)).values

    def weights(
        self, smoothed: Float64[Tensor, " n"], positions: Int64[Tensor, " drawn"]
    ) -> Float64[Tensor, " drawn"]:
        """What the drawn candidates weigh.

        Args:
            smoothed: of all candidates.
            positions: of the drawn ones, all of them.
        """
        drawn = smoothed[positions]
        inverse = smoothed.mean() / drawn
        factor = drawn ** (1 - self.resampling.exponent)
        batch = self.resampling.normaliser == "batch"
        normaliser = float(factor.mean()) if batch else self.normaliser
        return inverse * factor / normaliser if normaliser else inverse

    def observe(self, scores: Float[Tensor, " n"]) -> None:
        """Learns from a presample, for the draws to come."""
        smoothed = self.smoothed(scores)
        power = float((smoothed ** (2 - self.resampling.exponent)).mean())
        self._top = MOMENTUM * self._top + (1 - MOMENTUM) * power
        self._bottom = MOMENTUM * self._bottom + (1 - MOMENTUM) * float(smoothed.mean())
        mean = float(neutralise(scores).values.mean())
        self._level = MOMENTUM * self._level + (1 - MOMENTUM) * mean

    def survey(self, scores: Float[Tensor, " N"]) -> None:
        """Takes the normaliser of the whole population, for the draws to come."""
        smoothed = self.smoothed(scores)
        power = smoothed ** (2 - self.resampling.exponent)
        self._surveyed = float(power.mean() / smoothed.mean())

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "level": self._level,
            "top": self._top,
            "bottom": self._bottom,
            "surveyed": self._surveyed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another resampler of the same kind."""
        self._level, self._top = state["level"], state["top"]
        self._bottom, self._surveyed = state["bottom"], state["surveyed"]
