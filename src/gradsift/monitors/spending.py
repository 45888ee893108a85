"""What lower variance is worth, and the ways to spend it: a smaller batch, or a larger step.

``R`` is the variance of a uniform batch over that of a drawn one, of equal size ``b``; ``μ`` is the
mean gradient, ``g`` the norm of an example's gradient, ``trΣ = E[g²] − ‖μ‖²`` the variance of one
uniform example, and ``B_n = trΣ/‖μ‖²`` the batch size at which noise and signal are equal. Step and
progress follow from one model: a loss of curvature ``h`` falls by

    η‖μ‖² − (h η²/2)(‖μ‖² + trΣ/(b R))

in the mean of one step ``η`` along the estimated gradient. This is greatest, half of ``η‖μ‖²``,
at ``η = (1/h) / (1 + B_n/(b R))``.
"""

import math
from collections.abc import Sequence

from gradsift.errors import UsageError

ROUNDING = 1e-9
"""A batch that is too small by this share of itself is large enough."""


def equal_noise_batch(batch: float, drawn: float, uniform: float, mean_square: float) -> float:
    """``b' = b (E[w² g²] − ‖μ‖²)/(E[g²] − ‖μ‖²)``: the drawn batch as noisy as ``b`` uniform ones.

    For draws from a table, where the variance of a batch is that of one example over ``b'``. Above
    ``b`` where the draw is worse than uniform. Many more steps then pass per epoch, for whatever
    counts them: schedule, weight decay, momentum, BatchNorm.

    Args:
        batch: ``b``, examples, above 0.
        drawn: ``E[w² g²]``, `SecondMoments.drawn`, averaged over many batches.
        uniform: ``E[g²]``, `SecondMoments.uniform`, likewise.
        mean_square: ``‖μ‖²`` in the same unit; a debiased estimate below zero counts as zero.

    Returns:
        A real number of examples. It is ``b`` itself where the estimates contradict each other
        (a second moment below ``‖μ‖²``), or leave no noise to equal.

    Raises:
        UsageError: for a batch that is not above 0, or a moment that is negative or not finite.

    Example:
        >>> equal_noise_batch(64, drawn=2.5, uniform=4.0, mean_square=1.0)
        32.0
    """
    _check_positive("batch", batch)
    _check_moments(drawn=drawn, uniform=uniform)
    signal = _signal(mean_square)
    if uniform <= signal or drawn < signal:
        return float(batch)
    return batch * (drawn - signal) / (uniform - signal)


def fastest_batch(
    batch: float, equal: float, noise_scale: float, fixed: float, sizes: Sequence[int]
) -> int:
    """Of the sizes that are no noisier than ``b`` uniform examples, the one that gets on fastest.

    A step of ``s`` drawn examples has ``equal/s`` times the noise of ``b`` uniform ones, so at an
    unchanged step size, with ``x = B_n/b`` and a step of ``b`` as the unit of seconds, it makes

        (2 − (1 + x equal/s)/(1 + x)) / (φ + (1 − φ) s/b)

    of progress per second. Where a step takes as long whatever its size (``φ = 1``) that is
    greatest at ``b``: all of the gain is lower noise. Where seconds are in proportion to examples
    (``φ = 0``) it is greatest at ``equal``, where the noise is that of before.

    Args:
        batch: ``b``, examples, above 0.
        equal: examples at which the noise is that of ``b`` uniform ones, `equal_noise_batch`.
        noise_scale: ``B_n``, `noise_scale`, examples, >= 0 or infinity.
        fixed: ``φ``, the share of the seconds of a step of ``b`` that do not depend on its size;
            what is measured outside [0, 1] counts as the nearer end.
        sizes: positive sizes in any order, none above ``b``: few of them mean few shapes to
            compile, and a batch that does not follow every estimate.

    Returns:
        The largest size where none is quiet enough.

    Raises:
        UsageError: for numbers out of range, no sizes, or a size below 1.

    Example:
        >>> eighths = range(8, 65, 8)
        >>> [fastest_batch(64, 16.0, float("inf"), fixed, eighths) for fixed in (0.0, 0.3, 1.0)]
        [16, 24, 64]
    """
    _check_positive("batch", batch)
    if not (equal >= 0 and not math.isnan(fixed)):
        raise UsageError(
            f"fastest_batch received equal {equal} and fixed {fixed}, expected examples >= 0 and "
            "a share of the seconds of a step"
        )
    if len(sizes) == 0 or min(sizes) < 1:
        raise UsageError(
            f"fastest_batch received sizes {list(sizes)}, expected at least one, each >= 1: "
            "pass the sizes that a batch may have"
        )
    share = min(max(fixed, 0.0), 1.0)

    def speed(size: int) -> float:
        ratio = size / max(equal, ROUNDING * batch)
        return kept_step_gain(ratio, noise_scale, batch) / (share + (1 - share) * size / batch)

    quiet = [size for size in sizes if size >= equal * (1 - ROUNDING)]
    return max(sorted(quiet, reverse=True), key=speed, default=max(sizes))


def noise_scale(trace: float, mean_square: float) -> float:
    """``B_n = trΣ/‖μ‖²``, in examples: at this batch size noise and signal are equal.

    McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training" (2018), where
    it is the simple noise scale.

    Args:
        trace: ``trΣ = E[g²] − ‖μ‖²`` of one uniform example; below zero counts as zero.
        mean_square: ``‖μ‖²`` in the same unit. A debiased estimate that is not above zero tells
            that no signal was measured: the result is infinity.

    Raises:
        UsageError: for a number that is nan.

    Example:
        >>> noise_scale(trace=12.0, mean_square=0.5), noise_scale(trace=12.0, mean_square=-0.1)
        (24.0, inf)
    """
    if math.isnan(trace):
        raise UsageError("received trace nan, expected a variance: average over finite gradients")
    signal = _signal(mean_square)
    return max(0.0, trace) / signal if signal else math.inf


def lr_factor(batch: float, ratio: float, noise_scale: float, cap: float = 2.0) -> float:
    """How much larger a step may be: ``min((1 + B_n/b)/(1 + B_n/(b R)), sqrt(R), cap)``.

    The first is the quotient of the best steps of the model above, at ``R`` and at one: it is 1
    where signal dominates and ``R`` where noise does. The model knows one curvature and no
    momentum, so the square root and the cap bound it. It is 1 where ``R`` is not above one: nothing
    is known to be gained, so nothing is spent.

    Args:
        batch: ``b``, examples, above 0.
        ratio: ``R``, of variances: its lower confidence bound, >= 0.
        noise_scale: ``B_n``, `noise_scale`, examples, >= 0 or infinity.
        cap: the largest factor, at least 1.

    Raises:
        UsageError: for numbers out of range.

    Example:
        >>> [round(lr_factor(64, 2.0, scale), 3) for scale in (0.0, 16.0, 64.0, float("inf"))]
        [1.0, 1.111, 1.333, 1.414]
    """
    if not cap >= 1:
        raise UsageError(f"lr_factor received cap {cap}, expected at least 1: 1 changes nothing")
    rule = progress(ratio, noise_scale, batch) / progress(1.0, noise_scale, batch)
    return max(1.0, min(rule, math.sqrt(ratio), cap))


def progress(ratio: float, noise_scale: float, batch: float) -> float:
    """What the best step achieves: ``(1 + B_n) / (1 + B_n/(b R))``, dimensionless.

    By the model above it lowers the loss by ``‖μ‖⁴ / (2h (‖μ‖² + trΣ/(b R)))``. The unit is the
    best step along **one** uniform example, so that sources of different batch sizes compare:
    from 1 where signal dominates, however large the batch, to ``b R`` where noise does.

    Args:
        ratio: ``R``, of variances, >= 0; 1 for uniform batches. Where it is 0 the result is 0.
        noise_scale: ``B_n``, examples, >= 0 or infinity.
        batch: ``b``, examples, above 0.

    Raises:
        UsageError: for numbers out of range.

    Example:
        >>> progress(ratio=2.0, noise_scale=0.0, batch=64)
        1.0
        >>> progress(ratio=2.0, noise_scale=float("inf"), batch=64)
        128.0
    """
    _check_positive("batch", batch)
    _check_ratio(ratio, noise_scale)
    equivalent = batch * ratio
    if equivalent == 0 or math.isinf(noise_scale):
        return equivalent
    return (1 + noise_scale) / (1 + noise_scale / equivalent)


def kept_step_gain(ratio: float, noise_scale: float, batch: float) -> float:
    """Progress of a drawn step over that of a uniform one, when the step size stays as it is.

    By the model above, at the step ``η`` that is the best for **uniform** batches::

        2 − (1 + B_n/(b R)) / (1 + B_n/b)

    It is 1 at ``R = 1`` or where signal dominates, and ``2 − 1/R`` where noise does: a step that
    is not lengthened gains at most a factor of two, however little noise is left. (`progress` is
    for steps that are.) Divide by the relative seconds of a step: then it is above one where the
    drawn batches get further in the same time. Below zero a step leads away from the minimum.

    Args:
        ratio: ``R``, of variances, >= 0.
        noise_scale: ``B_n``, examples, >= 0 or infinity.
        batch: ``b``, examples, above 0.

    Raises:
        UsageError: for numbers out of range.

    Example:
        >>> [round(kept_step_gain(2.16, scale, 64), 2) for scale in (0.0, 64.0, float("inf"))]
        [1.0, 1.27, 1.54]
    """
    _check_positive("batch", batch)
    _check_ratio(ratio, noise_scale)
    if ratio == 0:
        return -math.inf if noise_scale else 1.0
    if math.isinf(noise_scale):
        return 2 - 1 / ratio
    noise = noise_scale / batch
    return 2 - (1 + noise / ratio) / (1 + noise)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UsageError(f"received {name} {value}, expected a finite number above 0")


def _check_ratio(ratio: float, noise_scale: float) -> None:
    if not (0 <= ratio < math.inf and noise_scale >= 0):
        raise UsageError(
            f"received ratio {ratio} and noise_scale {noise_scale}, expected a finite ratio >= 0 "
            "of variances and examples >= 0"
        )


def _signal(mean_square: float) -> float:
    if math.isnan(mean_square):
        raise UsageError("received mean_square nan, expected ‖μ‖²: average over finite gradients")
    return max(0.0, mean_square)


def _check_moments(**moments: float) -> None:
    for name, value in moments.items():
        if not 0 <= value < math.inf:
            raise UsageError(
                f"received {name} moment {value}, expected a finite number >= 0: "
                "average over batches with finite scores"
            )
