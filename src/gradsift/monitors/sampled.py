"""The same traces from what was drawn: gradients or norms, with the weights really used.

For a pool that is resampled with replacement the pool's own variance comes on top:
`prices.pool_ratio_measured`, `traces.pool_trace`. A single batch is very noisy: `TraceAverage`
accumulates many, and says how well they are known.
"""

import math
from collections import deque
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.monitors.averages import Estimate
from gradsift.monitors.moments import second_moments
from gradsift.monitors.traces import Traces

_UNIFORM, _DRAWN, _MEAN, _SIGNAL = range(4)


def mean_square_of_draws(
    norms: Float[Tensor, " drawn"], weights: Float[Tensor, " drawn"], batch_square: float
) -> float:
    """``‖μ‖²`` without bias, from one batch of independent draws.

    ``‖ḡ‖² − Σ‖w g − ḡ‖²/(b(b − 1))``, which is ``(b²‖ḡ‖² − Σ w² g²)/(b(b − 1))``: the squared
    norm of the batch's gradient alone is too large by the trace over ``b``. For independent draws
    only; for any other, take the inner product of two batches (`calibration.noise_of_pair`). It
    can fall below zero by chance.

    Args:
        norms: gradient norms of the drawn examples.
        weights: those they were drawn with.
        batch_square: ``‖ḡ‖²``, of the weighted mean gradient over all of them.

    Raises:
        UsageError: for fewer than two draws.

    Example:
        >>> import torch
        >>> mean_square_of_draws(torch.tensor([1.0, 1.0]), torch.ones(2), batch_square=0.5)
        0.0
    """
    b = len(norms)
    if b < 2:
        raise UsageError(f"received {b} draws, expected at least two: one tells no spread")
    weighted = weights.detach().double().cpu() * norms.detach().double().cpu()
    squares = float(weighted.square().sum())
    return (b * b * batch_square - squares) / (b * (b - 1))


def sampled_traces(
    norms: Float[Tensor, " drawn"],
    weights: Float[Tensor, " drawn"],
    size: int,
    mean_square: float,
) -> Traces:
    """Uniform, drawn and ideal traces of single draws, from one batch of independent draws.

    Args:
        norms: gradient norms of the drawn examples, computed now.
        weights: those they were drawn with, whatever the scores behind them have become.
        size: the nominal size of the draw, which divides the sums.
        mean_square: ``‖μ‖²``, as of `mean_square_of_draws`; the norm of a batch gradient alone
            makes all three too small.

    Example:
        >>> import torch
        >>> sampled_traces(torch.tensor([2.0, 1.0]), torch.tensor([0.75, 1.5]), 2, 0.25).drawn
        2.0
    """
    return Traces(second_moments(norms, weights, size), mean_square)


def sampled_trace_without_replacement(
    gradients: Float[Tensor, "drawn d"], inclusion: Float[Tensor, " drawn"], population: int
) -> float:
    """The trace of the estimator, from one batch drawn without replacement.

    ``b/(b − 1) · Σ_S (1 − π)‖z − c_S‖²`` with ``z = g/(N π)`` and ``c_S`` the mean of ``z`` with
    weights ``1 − π``. Within one or two percent for ``b >= 16``. The formula for independent draws
    would be 1.3 to 1.6 times too large. Hájek (1964), as `traces.without_replacement_trace`.

    Args:
        gradients: of the drawn examples.
        inclusion: their inclusion probabilities ``π``, in (0, 1].
        population: ``N``, which they were drawn from.

    Raises:
        UsageError: for fewer than two draws.

    Example:
        >>> import torch
        >>> gradients, inclusion = torch.tensor([[1.0], [-1.0]]), torch.full((2,), 0.5)
        >>> sampled_trace_without_replacement(gradients, inclusion, population=4)
        0.5
    """
    b = len(gradients)
    if b < 2:
        raise UsageError(f"received {b} draws, expected at least two: one tells no spread")
    pi = inclusion.detach().double().cpu()
    z = gradients.detach().double().cpu() / (population * pi).unsqueeze(1)
    masses = (1 - pi).clamp(min=0.0)
    if not float(masses.sum()) > 0:
        return 0.0
    centre = (masses.unsqueeze(1) * z).sum(0) / masses.sum()
    return b / (b - 1) * float((masses * (z - centre).square().sum(1)).sum())


def sampled_trace_stratified(
    gradients: Float[Tensor, "drawn d"], weights: Float[Tensor, " drawn"]
) -> float:
    """The trace of the estimator, from one stratified batch: differences of paired slots.

    ``(1/b²) Σ ‖w g − w' g'‖²`` over pairs of neighbouring slots, a last odd one paired with the
    one before it. One draw per slot tells nothing about the spread inside it; the difference to
    its neighbour tells both spreads, plus the square of how much the slots' means differ. So it is
    too large by that, and by the neighbour of a last odd one; never too small on average. Särndal,
    Swensson, Wretman, "Model Assisted Survey Sampling" (1992), on collapsed strata.

    Args:
        gradients: of the drawn examples, in the order of the slots.
        weights: those they were drawn with.

    Raises:
        UsageError: for fewer than two draws.

    Example:
        >>> import torch
        >>> sampled_trace_stratified(torch.tensor([[1.0], [2.0]]), torch.ones(2))
        0.25
    """
    b = len(gradients)
    if b < 2:
        raise UsageError(f"received {b} draws, expected at least two: one tells no spread")
    values = (weights.detach().double() * gradients.detach().double().T).T.cpu()
    even = b - b % 2
    squares = (values[0:even:2] - values[1:even:2]).square().sum(1)
    total = float(squares.sum())
    if b % 2:
        total += float((values[-1] - values[-2]).square().sum())
    return total / b**2


class TraceAverage:
    """Traces of independent draws over many batches, with jackknife standard errors.

    Every number is a function of the means over the batches: ``E[w g²]``, ``E[w² g²]``, ``E[w g]``
    and ``‖μ‖²``. The standard error leaves each batch out in turn, so it covers what the numbers
    share. Infinite before two batches.

    Args:
        window: the latest batches that count: gradients shrink by orders of magnitude in training.

    Raises:
        UsageError: for a window below 2.

    Reference:
        Tukey, "Bias and confidence in not-quite large samples" (1958).

    Example:
        >>> import torch
        >>> average = TraceAverage()
        >>> for norms in ([2.0, 1.0], [2.5, 1.0]):
        ...     average.add(torch.tensor(norms), torch.tensor([0.75, 1.5]), 2, mean_square=0.5)
        >>> average.drawn
        Estimate(value=2.066..., standard_error=0.316...)
        >>> average.variance_ratio.value > average.second_moment_ratio.value > 1
        True
    """

    def __init__(self, window: int = 256) -> None:
        if window < 2:
            raise UsageError(f"received window {window}, expected at least 2 batches")
        self._rows: deque[list[float]] = deque(maxlen=window)

    @property
    def batches(self) -> int:
        """How many count."""
        return len(self._rows)

    def add(
        self,
        norms: Float[Tensor, " drawn"],
        weights: Float[Tensor, " drawn"],
        size: int,
        mean_square: float,
    ) -> None:
        """Takes one batch in, as `sampled_traces` does; one that is not finite is left out."""
        moments = second_moments(norms, weights, size)
        row = [moments.uniform, moments.drawn, math.sqrt(moments.ideal), mean_square]
        if math.isfinite(sum(row)):
            self._rows.append(row)

    @property
    def uniform(self) -> Estimate:
        """``A − ‖μ‖²``."""
        return self._estimate(lambda rows: rows[:, _UNIFORM] - rows[:, _SIGNAL])

    @property
    def drawn(self) -> Estimate:
        """``D − ‖μ‖²``."""
        return self._estimate(lambda rows: rows[:, _DRAWN] - rows[:, _SIGNAL])

    @property
    def ideal(self) -> Estimate:
        """``(E[w g])² − ‖μ‖²``."""
        return self._estimate(lambda rows: rows[:, _MEAN] ** 2 - rows[:, _SIGNAL])

    @property
    def second_moment_ratio(self) -> Estimate:
        """``A/D``."""
        return self._estimate(lambda rows: rows[:, _UNIFORM] / rows[:, _DRAWN])

    @property
    def variance_ratio(self) -> Estimate:
        """``(A − ‖μ‖²)/(D − ‖μ‖²)``."""
        return self._estimate(
            lambda rows: (
                (rows[:, _UNIFORM] - rows[:, _SIGNAL]) / (rows[:, _DRAWN] - rows[:, _SIGNAL])
            )
        )

    def _estimate(
        self, number: Callable[[Float64[np.ndarray, "n 4"]], Float64[np.ndarray, " n"]]
    ) -> Estimate:
        if not self._rows:
            return Estimate(math.nan, math.inf)
        return jackknife(np.array(self._rows, np.float64), number)


def jackknife(
    rows: Float64[np.ndarray, "n k"],
    number: Callable[[Float64[np.ndarray, "m k"]], Float64[np.ndarray, " m"]],
) -> Estimate:
    """A function of the means of ``k`` columns, with the jackknife's standard error.

    Args:
        rows: one per batch or checkpoint.
        number: of means, for several rows of means at once.

    Returns:
        An infinite standard error for a single row, or where leaving one out leaves nothing.

    Example:
        >>> rows = np.array([[1.0, 1.0], [3.0, 1.0], [2.0, 1.0]])
        >>> jackknife(rows, lambda means: means[:, 0] / means[:, 1])
        Estimate(value=2.0, standard_error=0.577...)
    """
    n = len(rows)
    total = rows.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(number(total / n)[0])
        if n < 2:
            return Estimate(value, math.inf)
        replicates = number((total - rows) / (n - 1))
    if not np.isfinite(replicates).all():
        return Estimate(value, math.inf)
    deviations = replicates - replicates.mean()
    return Estimate(value, math.sqrt((n - 1) / n * float(deviations @ deviations)))
