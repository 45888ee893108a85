"""How much variance a pool saves, before and after paying for its scores.

``R`` is the variance of ``b`` uniform draws over that of ``b`` examples chosen from a pool of
``B = r·b`` scored candidates. It assumes scores that are gradient norms and a mean gradient that
is small beside them.
"""

import math

from jaxtyping import Float
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.monitors.traces import pool_trace
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.quarantine import neutralise


def pool_ratio_with_replacement(tau: float, ratio: float, pool_size: int | None = None) -> float:
    """``1/R = 1/r + (1 − 1/B)/τ²``: the published scheme, which resamples with replacement.

    The first term is the variance of the pool itself, which no score can remove. ``R < 1``, a
    loss, is common: where scores are even, the same example is drawn twice for nothing. Derived
    from the scheme of Katharopoulos, Fleuret (2018), whose own estimate ``τ²`` leaves the first
    term out.

    Args:
        tau: `moments.tau` of the population's scores, at least 1.
        ratio: candidates per trained example, ``r = B/b``, at least 1.
        pool_size: ``B``, or None for a large pool.

    Raises:
        UsageError: for numbers out of range.

    Example:
        >>> round(pool_ratio_with_replacement(1.65, 3), 2)
        1.43
    """
    _check_ratio(ratio)
    if not tau >= 1:
        raise UsageError(f"received tau {tau}, expected at least 1: tau is sqrt(E s²)/E s")
    if pool_size is not None and pool_size < 1:
        raise UsageError(f"received pool_size {pool_size}, expected a number of candidates")
    inside = 1.0 if pool_size is None else 1 - 1 / pool_size
    return 1 / (1 / ratio + inside / tau**2)


def pool_ratio_capped(scores: Float[Tensor, " n"], ratio: float) -> float:
    """``R(r) = r · E[g²] / E[g²/π]`` with ``π = min(1, c·g)`` and ``E[π] = 1/r``.

    The same pool, drawn without replacement by capped inclusion probabilities. It is about
    ``τ²`` while nothing is capped, never above ``min(r, τ²)`` and never below 1: with exact
    scores such a pool cannot raise the variance. There is no closed form for the best ``r``;
    try several.

    Args:
        scores: a sample or an evenly weighted grid of the population's scores, each >= 0.
        ratio: candidates per trained example, ``r = B/b``, at least 1.

    Raises:
        UsageError: for a ratio below 1, no scores, or a negative score.

    Example:
        >>> import torch
        >>> pool_ratio_capped(torch.tensor([1.0, 1.0, 1.0, 1.0]), 2)
        1.0
        >>> round(pool_ratio_capped(torch.tensor([0.1, 0.1, 0.1, 2.7]), 2), 3)
        1.984
    """
    _check_ratio(ratio)
    values = neutralise(scores).values
    squares = (values / values.max()).square()
    inclusion = capped_inclusion(values, len(values) / ratio)
    return float(ratio * squares.mean() / (squares / inclusion).mean())


def break_even_tau(cost_ratio: float) -> float:
    """The ``τ`` above which some pool with replacement pays: ``1/(1 − sqrt(ρ))``.

    Per second a pool gains ``R/(1 + r·ρ)``. With ``1/R = 1/r + 1/τ²`` the best ratio is
    ``r = τ/sqrt(ρ)``, and its gain ``1/(sqrt(ρ) + 1/τ)²`` passes one here. Without replacement
    the threshold is lower, and depends on the whole histogram: `pool_ratio_capped`.

    Args:
        cost_ratio: ``ρ``, seconds to score over seconds to train one example, at least 0.

    Returns:
        A tau of at least 1; infinity where scoring costs as much as training.

    Raises:
        UsageError: for a negative ratio.

    Example:
        >>> round(break_even_tau(1 / 3), 2)
        2.37
    """
    if not cost_ratio >= 0:
        raise UsageError(f"received cost_ratio {cost_ratio}, expected seconds over seconds, >= 0")
    return math.inf if cost_ratio >= 1 else 1 / (1 - math.sqrt(cost_ratio))


def two_step_variance(gradients: Float[Tensor, "n d"], pool_size: int, size: int) -> float:
    """The covariance trace of the published two-step scheme, exactly.

    `traces.pool_trace` with scores that are the norms: ``B`` candidates are drawn uniformly with
    replacement, then ``b`` of them with replacement by ``p ∝ ‖g‖``, with weights ``1/(B p)``. With
    ``m1 = E‖g‖``, ``m2 = E‖g‖²``, ``μ = E g`` and ``v = m2 − ‖μ‖²``::

        trace = v/B + (1/b) · [(1 − 1/B)·m1² + m2/B − ‖μ‖² − v/B]

    The unit is that of a squared gradient. One uniform draw has ``v``, and ``b`` have ``v/b``.

    Args:
        gradients: one gradient per example of the whole population.
        pool_size: ``B``, at least 1.
        size: ``b``, at least 1.

    Raises:
        UsageError: for sizes below 1.

    Example:
        >>> import torch
        >>> two_step_variance(torch.tensor([[1.0], [-1.0]]), pool_size=4, size=2)
        0.625
    """
    return pool_trace(gradients, gradients.detach().double().norm(dim=1), pool_size, size)


def _check_ratio(ratio: float) -> None:
    if not ratio >= 1:
        raise UsageError(
            f"received ratio {ratio}, expected at least 1: candidates scored per trained example"
        )
