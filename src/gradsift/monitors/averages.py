"""Running ratios of two means, with a standard error that admits what it does not know.

A ratio of averages, never an average of ratios: one batch's ratio is heavy-tailed and biased.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from gradsift.errors import UsageError

LARGEST_CORRELATION = 0.95
"""At most this correlation of neighbouring batches is believed: errors grow by up to 6.2."""

_MEANS, _SQUARES, _PRODUCT = slice(0, 2), slice(2, 4), 4
_LAG_SQUARES, _LAG_PRODUCT, _LAG_SUMS = slice(5, 7), 7, slice(8, 10)
_ROWS, _FIRST_LAG = 10, 5


@dataclass(frozen=True)
class Estimate:
    """A number, and how well it is known.

    Attributes:
        value: nan where nothing is known.
        standard_error: in the unit of the value, infinite where nothing is known about it.
        ends: of its interval, where that is not two standard errors to either side.

    Example:
        >>> ratio = Estimate(2.0, 0.25)
        >>> ratio.lower, ratio.upper, ratio.inverse.lower, ratio.inverse.standard_error
        (1.5, 2.5, 0.4, 0.0625)
    """

    value: float
    standard_error: float
    ends: tuple[float, float] | None = field(default=None, repr=False)

    @property
    def lower(self) -> float:
        """Two standard errors below, or the end of its own interval."""
        return self.value - 2 * self.standard_error if self.ends is None else self.ends[0]

    @property
    def upper(self) -> float:
        """Two standard errors above, or the end of its own interval."""
        return self.value + 2 * self.standard_error if self.ends is None else self.ends[1]

    @property
    def inverse(self) -> "Estimate":
        """One over a number that cannot be negative, with one over the ends of its interval.

        The interval of a small number is wide beside it, and its inverse has one that is lopsided:
        two standard errors below one over it may be far too low. Unknown where the value is not
        above zero, or unknown.
        """
        if not 0 < self.value < math.inf:
            return Estimate(math.nan, math.inf)
        ends = 1 / self.upper, (1 / self.lower if self.lower > 0 else math.inf)
        return Estimate(1 / self.value, self.standard_error / self.value**2, ends)


class RatioAverage:
    """``x̄/ȳ^p`` of running means over batches, for ``width`` pairs of numbers side by side.

    The weights of the ``n`` batches are those of a bias-corrected moving average,
    ``ω_i = (1 − β) β^(n−i)`` over their sum. Standard error by the delta method, from the
    residuals ``e_i = (x_i − x̄) − p·(x̄/ȳ)·(y_i − ȳ)``, whose mean is zero::

        se² = Σ ω e² / (m − 1) · (1 + ϱ)/(1 − ϱ) / ȳ^2p,    m = (Σ ω)²/Σ ω² → (1 + β)/(1 − β)

    with the residuals' correlation from one batch to the next, ``ϱ`` in [0, 0.95]; a ratio that
    drifts raises it. For independent batches and ``ȳ`` known, ``se²`` is unbiased. It knows only
    what it has seen: heavy tails that no batch has shown yet are not in it.

    Args:
        width: how many ratios, ``k``.
        momentum: ``β``, from 0 to below 1.
        power: ``p``, one for all ratios or one for each.

    Attributes:
        batches: how many were added.
        skipped: how many were left out because a number in them, or its square, was not finite.

    Raises:
        UsageError: for a width below 1, another momentum, or a number of powers that is neither one
            nor the width.

    Example:
        >>> average = RatioAverage(momentum=0.9)
        >>> for top, bottom in [(3.0, 1.0), (5.0, 3.0), (4.0, 2.0)]:
        ...     average.add(top, bottom)
        >>> average.estimate()
        Estimate(value=1.98..., standard_error=0.27...)
        >>> round(average.effective_batches, 2)
        2.98
    """

    def __init__(
        self,
        width: int = 1,
        momentum: float = 0.99,
        power: float | Float64[np.ndarray, " width"] = 1.0,
    ) -> None:
        if width < 1 or not 0 <= momentum < 1:
            raise UsageError(
                f"received width {width} and momentum {momentum}, expected at least one ratio and "
                "a momentum from 0 to below 1"
            )
        if np.size(power) not in (1, width):
            raise UsageError(f"received {np.size(power)} powers, expected one or {width}")
        self.width = width
        self.momentum = momentum
        self.batches = 0
        self.skipped = 0
        self._power = np.broadcast_to(np.asarray(power, np.float64), (width,)).copy()
        self._averages = np.zeros((_ROWS, width))
        self._last = np.zeros((2, width))
        self._now = np.zeros((2, width))
        self._row = np.zeros((_ROWS, width))

    def add(
        self,
        top: float | Float64[np.ndarray, " width"],
        bottom: float | Float64[np.ndarray, " width"],
    ) -> None:
        """Takes one batch in; either side may be one number that all ratios share.

        Raises:
            UsageError: for another number of numbers.
        """
        now, last, row = self._now, self._last, self._row
        try:
            now[0], now[1] = top, bottom
        except ValueError as error:
            raise UsageError(
                f"received {np.size(top)} tops and {np.size(bottom)} bottoms, expected one or "
                f"{self.width} of each"
            ) from error
        with np.errstate(over="ignore", invalid="ignore"):
            row[_MEANS] = now
            np.multiply(now, now, out=row[_SQUARES])
            np.multiply(now[0], now[1], out=row[_PRODUCT])
            np.multiply(now, last, out=row[_LAG_SQUARES])
            np.add(now[0] * last[1], now[1] * last[0], out=row[_LAG_PRODUCT])
            np.add(now, last, out=row[_LAG_SUMS])
            finite = math.isfinite(row.sum())
        if not finite:
            self.skipped += 1
            return
        if self.batches == 0:
            row[_FIRST_LAG:] = 0.0
        row *= 1 - self.momentum
        self._averages *= self.momentum
        self._averages += row
        self._now, self._last = last, now
        self.batches += 1

    @property
    def effective_batches(self) -> float:
        """``m``: as many batches of equal weight would average as well; 0 without any."""
        faded = self.momentum**self.batches
        return (1 - faded) / (1 + faded) * (1 + self.momentum) / (1 - self.momentum)

    @property
    def means(self) -> Float64[np.ndarray, "2 width"]:
        """``x̄`` and ``ȳ``; nan without batches."""
        if self.batches == 0:
            return np.full((2, self.width), math.nan)
        return self._averages[_MEANS] / (1 - self.momentum**self.batches)

    @property
    def value(self) -> Float64[np.ndarray, " width"]:
        """``x̄/ȳ^p``; nan where ``ȳ`` is not above zero."""
        top, bottom = self.means
        known = bottom > 0
        return np.where(known, top / np.where(known, bottom, 1.0) ** self._power, math.nan)

    @property
    def standard_error(self) -> Float64[np.ndarray, " width"]:
        """Infinite before two batches, for momentum 0, and where the value is nan."""
        if self.batches < 2 or self.momentum == 0:
            return np.full(self.width, math.inf)
        top, bottom = self.means
        known = bottom > 0
        scale = np.where(known, bottom, 1.0)
        variance, correlation = self._residuals(top, self._power * top / scale)
        inflation = (1 + correlation) / (1 - correlation)
        error = np.sqrt(variance * inflation / (self.effective_batches - 1)) / scale**self._power
        return np.where(known, error, math.inf)

    @property
    def lower(self) -> Float64[np.ndarray, " width"]:
        """Two standard errors below the value."""
        return self.value - 2 * self.standard_error

    @property
    def upper(self) -> Float64[np.ndarray, " width"]:
        """Two standard errors above the value."""
        return self.value + 2 * self.standard_error

    def estimate(self, place: int = 0) -> Estimate:
        """One of the ratios with its standard error."""
        return Estimate(float(self.value[place]), float(self.standard_error[place]))

    def _residuals(
        self, top: Float64[np.ndarray, " width"], slope: Float64[np.ndarray, " width"]
    ) -> tuple[Float64[np.ndarray, " width"], Float64[np.ndarray, " width"]]:
        """Variance of ``u = x − slope·y`` around its mean, and its correlation with the last."""
        rows = self._averages / (1 - self.momentum**self.batches)
        lags = self._averages / (1 - self.momentum ** (self.batches - 1))
        centre = top * (1 - self._power)
        (xx, yy), xy = rows[_SQUARES], rows[_PRODUCT]
        variance = np.maximum(xx - 2 * slope * xy + slope**2 * yy - centre**2, 0.0)
        (xx, yy), xy = lags[_LAG_SQUARES], lags[_LAG_PRODUCT]
        sums = lags[_LAG_SUMS][0] - slope * lags[_LAG_SUMS][1]
        covariance = xx - slope * xy + slope**2 * yy - centre * sums + centre**2
        correlation = covariance / np.where(variance > 0, variance, math.inf)
        return variance, np.clip(correlation, 0.0, LARGEST_CORRELATION)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors, from which `load_state_dict` goes on to the bit."""
        return {
            "momentum": self.momentum,
            "power": torch.from_numpy(self._power.copy()),
            "batches": self.batches,
            "skipped": self.skipped,
            "averages": torch.from_numpy(self._averages.copy()),
            "last": torch.from_numpy(self._last.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another average of the same kind.

        Raises:
            UsageError: for another width, momentum or power, before anything is changed.
        """
        mine = (self.momentum, self._power.tolist())
        theirs = (state["momentum"], state["power"].tolist())
        if mine != theirs:
            raise UsageError(
                f"received the state of {len(theirs[1])} ratios with momentum {theirs[0]} and "
                f"powers {theirs[1]}, expected {self.width} with momentum {mine[0]} and powers "
                f"{mine[1]}: load it into the kind of average that it came from"
            )
        self.batches, self.skipped = int(state["batches"]), int(state["skipped"])
        self._averages[:] = state["averages"].numpy()
        self._last[:] = state["last"].numpy()
