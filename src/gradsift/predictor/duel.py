"""Two proposals side by side, on batches that neither of them has learnt from."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from gradsift.monitors.averages import Estimate, RatioAverage

ENOUGH = 6
"""Batches before the challenger may win."""

LEAD = 0.01
"""Share of the holder's price by which the challenger must be cheaper: less does not pay for it."""

PARTS = 8
"""Groups of examples by forecast, over which the calibration is looked at."""


class Duel:
    """Prices ``E[w w' g²]`` of the holder's and the challenger's weights ``w'``, on the same draws.

    Both proposals were made before the batch was scored, so the price of each is unbiased whatever
    the batch was drawn by. Their difference is known far better than either, as both prices rise
    and fall with the same examples. The challenger takes over once it is cheaper by `LEAD`, and
    certainly cheaper, by two standard errors of the difference; it stays while it is cheaper.

    Args:
        momentum: of the running means over batches.

    Attributes:
        wins: whether the challenger is in use.

    Example:
        >>> duel = Duel(momentum=0.9)
        >>> g, w = np.array([0.1, 0.1, 4.0]), np.ones(3)
        >>> for scale in (1.0, 1.1) * 4:
        ...     duel.add(scale * g, w, holder=np.ones(3), challenger=3 * g / g.sum())
        >>> duel.wins, round(duel.holder.value, 2), round(duel.challenger.value, 2)
        (True, 1.0, 2.72)
    """

    def __init__(self, momentum: float) -> None:
        self.wins = False
        self._average = RatioAverage(3, momentum)
        self._calibration = RatioAverage(PARTS, momentum)

    @property
    def batches(self) -> int:
        """How many were taken in."""
        return self._average.batches

    @property
    def holder(self) -> Estimate:
        """Its variance ratio to uniform draws, of second moments."""
        return self._average.estimate(0).inverse

    @property
    def challenger(self) -> Estimate:
        """Likewise."""
        return self._average.estimate(1).inverse

    @property
    def difference(self) -> Estimate:
        """Challenger's price less the holder's, in units of uniform's: below zero where it wins."""
        return self._average.estimate(2)

    def add(
        self,
        fresh: Float64[np.ndarray, " n"],
        weights: Float64[np.ndarray, " n"],
        holder: Float64[np.ndarray, " n"],
        challenger: Float64[np.ndarray, " n"],
    ) -> None:
        """Takes a batch in, and decides.

        Args:
            fresh: g, finite and >= 0, in the same unit for all batches.
            weights: those that the examples were drawn with.
            holder: ``N p`` of each example by the holder's proposal, above zero.
            challenger: likewise by the challenger's.
        """
        squares = weights * fresh * fresh / max(len(fresh), 1)
        prices = float((squares / holder).sum()), float((squares / challenger).sum())
        tops = np.array([*prices, prices[1] - prices[0]])
        self._average.add(tops, float(squares.sum()))
        leads = self.difference.value < -LEAD * float(self._average.value[0])
        certain = self.batches >= ENOUGH and leads and self.difference.upper < 0
        self.wins = certain or (self.wins and self.difference.value < 0)

    def calibrate(
        self,
        fresh: Float64[np.ndarray, " n"],
        weights: Float64[np.ndarray, " n"],
        forecast: Float64[np.ndarray, " n"],
    ) -> None:
        """Compares forecasts with the scores that came, in groups of like forecasts."""
        if len(fresh) < PARTS:
            return
        groups = np.array_split(forecast.argsort(kind="stable"), PARTS)
        tops, bottoms = (
            np.array([float((weights[part] * values[part] ** 2).sum()) for part in groups])
            for values in (fresh, forecast)
        )
        self._calibration.add(tops, bottoms)

    @property
    def calibration_error(self) -> float:
        """By how much the root mean square of scores typically differs from what is forecast.

        In groups of like forecasts, after one common factor for all, which no proposal depends on:
        ``exp(rms_k log(r_k/r)) − 1`` with ``r_k = sqrt(Σ w g²/Σ w f²)`` in group k. Zero is exact;
        nan before anything is known.
        """
        tops, bottoms = self._calibration.means
        known = (tops > 0) & (bottoms > 0)
        if not known.any():
            return math.nan
        ratios = np.log(tops[known] / bottoms[known]) / 2
        common = math.log(float(tops[known].sum()) / float(bottoms[known].sum())) / 2
        return math.expm1(math.sqrt(float(np.square(ratios - common).mean())))

    def listed(self) -> dict[str, float | bool]:
        """For logs and reports."""
        return {
            "in_use": self.wins,
            "ratio_last_seen": self.holder.value,
            "ratio_forecast": self.challenger.value,
            "price_difference": self.difference.value,
            "standard_error": self.difference.standard_error,
            "calibration_error": self.calibration_error,
        }

    def __str__(self) -> str:
        share = self.challenger.value / self.holder.value
        verdict = "drawn by" if self.wins else "left aside"
        return (
            f"forecasts are {verdict}: their variance ratio is {share:.2f} times that of the last "
            f"scores (price difference {self.difference.value:+.3f} ± "
            f"{2 * self.difference.standard_error:.3f})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""
        return {
            "wins": self.wins,
            "average": self._average.state_dict(),
            "calibration": self._calibration.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another duel with the same momentum."""
        self.wins = state["wins"]
        self._average.load_state_dict(state["average"])
        self._calibration.load_state_dict(state["calibration"])
