"""What cheap scores do not say: the gradients behind them, and noise beside signal.

Both are measured on probes, a few examples or two batches now and then, and accumulated: one
probe of 32 examples leaves half of a ratio unknown.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.monitors.averages import Estimate, RatioAverage


class Calibration:
    """From a second-moment ratio of scores ``s`` to that of gradient norms ``g``.

    ``R_g = R_s · factor`` with sums over the examples of all probes, drawn with weights ``w``::

        factor = (Σ w g² / Σ w s²) / (Σ w² g² / Σ w² s²)

    The ratio of ratios cancels much of the noise that both share. Its standard error is the
    jackknife's, each probe left out in turn. The factor is 1 where nothing is known.

    Args:
        window: the latest probes that count. Gradients shrink by orders of magnitude during
            training: sums over all of it would speak of its beginning.

    Raises:
        UsageError: for a window below 2.

    Reference:
        Tukey, "Bias and confidence in not-quite large samples" (1958).

    Example:
        >>> import torch
        >>> calibration = Calibration()
        >>> ones = torch.ones(2)
        >>> for norms in ([1.0, 2.0], [1.0, 2.5]):
        ...     calibration.add(ones, torch.tensor(norms), torch.tensor([1.5, 0.5]))
        >>> calibration.factor
        Estimate(value=1.43..., standard_error=0.085...)
        >>> round(calibration.of_gradients(Estimate(2.0, 0.0)).value, 2)
        2.88
    """

    def __init__(self, window: int = 256) -> None:
        if window < 2:
            raise UsageError(f"received window {window}, expected at least 2 probes")
        self._sums: deque[list[float]] = deque(maxlen=window)

    @property
    def probes(self) -> int:
        """How many count."""
        return len(self._sums)

    def add(
        self,
        scores: Float[Tensor, " probed"],
        norms: Float[Tensor, " probed"],
        weights: Float[Tensor, " probed"],
    ) -> None:
        """Takes one probe in; one with a number that is not finite is left out.

        Args:
            scores: ``s``, the cheap scores.
            norms: ``g``, exact gradient norms of the same examples at the same parameters
                (`scores.gradient_loop.gradient_norms`).
            weights: those that the examples were drawn with.

        Raises:
            UsageError: for different numbers of them.
        """
        if not scores.shape == norms.shape == weights.shape:
            raise UsageError(
                f"received {len(scores)} scores, {len(norms)} norms and {len(weights)} weights, "
                "expected as many of each"
            )
        s, g, w = (values.detach().cpu().double() for values in (scores, norms, weights))
        sums = [
            float(value.sum())
            for value in (w * g * g, (w * s).square(), (w * g).square(), w * s * s)
        ]
        if math.isfinite(sum(sums)):
            self._sums.append(sums)

    @property
    def factor(self) -> Estimate:
        """1 ± infinity before two probes, or while scores or norms are all zero."""
        sums = np.array(self._sums, np.float64).reshape(-1, 4)
        total = sums.sum(0, keepdims=True)
        if self.probes < 2 or not total.min() > 0:
            return Estimate(1.0, math.inf)
        value = float(_factors(total)[0])
        left_out = total - sums
        if not left_out.min() > 0:
            return Estimate(value, math.inf)
        replicates = _factors(left_out)
        deviations = replicates - replicates.mean()
        return Estimate(value, math.sqrt((1 - 1 / len(sums)) * float(deviations @ deviations)))

    def of_gradients(self, ratio: Estimate) -> Estimate:
        """``R_s · factor``; relative errors add in squares, as if they were independent."""
        factor = self.factor
        error = math.hypot(ratio.standard_error * factor.value, factor.standard_error * ratio.value)
        return Estimate(ratio.value * factor.value, error)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, from which `load_state_dict` goes on to the bit."""
        return {"sums": [list(sums) for sums in self._sums]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another calibration; the latest probes that fit this window count."""
        self._sums.clear()
        self._sums.extend(list(sums) for sums in state["sums"])


class Noise:
    """The noise scale ``B_n = tr Σ/‖μ‖²``, in examples, from pairs of independent batches.

    Two gradients at the same parameters, each the mean over its own ``b`` examples, tell without
    bias ``‖μ‖² = E⟨g₁, g₂⟩`` and ``tr Σ = (b/2)·E‖g₁ − g₂‖²``. The ratio is that of their running
    means. ``Σ`` is the covariance of one example's (weighted) gradient under the draw that made
    the batches; the two batches must share neither examples nor a pool except by chance.
    Momentum and Adam do not matter: these are raw gradients.

    Args:
        momentum: of the running means over pairs, from 0 to below 1.

    Raises:
        UsageError: for another momentum.

    Reference:
        McCandlish et al., "An empirical model of large-batch training" (2018), who compare two
        batch sizes; here two equal ones.

    Example:
        >>> import torch
        >>> noise = Noise()
        >>> noise.add([torch.tensor([2.0, 1.0])], [torch.tensor([2.0, -1.0])], size=8)
        >>> noise.scale.value, noise.ratio(8).value
        (5.333..., 0.666...)
    """

    def __init__(self, momentum: float = 0.95) -> None:
        self._average = RatioAverage(1, momentum)

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor], size: int) -> None:
        """Takes one pair in; one that is not finite is left out.

        Args:
            first: the gradient of one batch's mean loss, one tensor per parameter.
            second: that of the other batch.
            size: ``b``, of both.

        Raises:
            UsageError: for gradients of different shapes, or a size below 1.
        """
        self._average.add(*noise_of_pair(first, second, size))

    @property
    def pairs(self) -> int:
        """How many were taken in."""
        return self._average.batches

    @property
    def trace(self) -> float:
        """``tr Σ`` of one example; nan before the first pair."""
        return float(self._average.means[0, 0])

    @property
    def mean_square(self) -> float:
        """``‖μ‖²``; below zero by chance where there is next to no signal."""
        return float(self._average.means[1, 0])

    @property
    def scale(self) -> Estimate:
        """``B_n``; infinite, with an infinite error, while no signal is seen."""
        if self.mean_square <= 0:
            return Estimate(math.inf, math.inf)
        return self._average.estimate()

    def ratio(self, size: int) -> Estimate:
        """``B_n/b``: the noise of a batch of ``b`` beside the signal."""
        scale = self.scale
        return Estimate(scale.value / size, scale.standard_error / size)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors, from which `load_state_dict` goes on to the bit."""
        return self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another object's state.

        Raises:
            UsageError: for another momentum.
        """
        self._average.load_state_dict(state)


def noise_of_pair(
    first: Sequence[Tensor], second: Sequence[Tensor], size: int
) -> tuple[float, float]:
    """Unbiased ``tr Σ`` and ``‖μ‖²`` from the gradients of two independent batches of ``size``.

    Raises:
        UsageError: for gradients of different shapes, or a size below 1.

    Example:
        >>> import torch
        >>> noise_of_pair([torch.tensor([2.0, 1.0])], [torch.tensor([2.0, -1.0])], size=8)
        (16.0, 3.0)
    """
    if [part.shape for part in first] != [part.shape for part in second] or size < 1:
        raise UsageError(
            f"received gradients of {len(first)} and {len(second)} tensors and size {size}, "
            "expected the same shapes in both and a size of at least 1"
        )
    trace = signal = 0.0
    for one, other in zip(first, second, strict=True):
        a, b = (_precise(part) for part in (one, other))
        trace += float((a - b).square().sum(dtype=torch.float64)) * size / 2
        signal += float((a * b).sum(dtype=torch.float64))
    return trace, signal


def _precise(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))


def _factors(sums: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, " n"]:
    """The factor of each row of sums, in the order in which `Calibration.add` keeps them."""
    return sums[:, 0] / sums[:, 3] * (sums[:, 1] / sums[:, 2])
