"""Two-stage sampling: candidates from a table, scored now, then drawn once more.

A table's scores are free and stale, a pool's are fresh and cost a forward pass. Here ``B``
candidates are drawn by stale scores, so that fresh ones are spent where they are likely to
matter. Staleness costs variance and never bias: the final weight is the product of the two
inverse probabilities, whatever the table held.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import Draw
from gradsift.sampling.draws import AbstractDraw, Systematic
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.quarantine import CleanScores, neutralise

WITHOUT_COPIES = Systematic()
"""The second draw, unless another is asked for."""


def second_stage(
    first: Draw,
    scores: Float[Tensor, " candidates"],
    size: int,
    generator: torch.Generator,
    uniform: float = 0.1,
    draw: AbstractDraw = WITHOUT_COPIES,
) -> Draw:
    """Draws ``b`` of ``B`` candidates that have weights already, by their fresh scores.

    With first-stage weights ``u_k = 1/(N p_k)`` and fresh scores ``g_k`` the second-stage score is
    ``g_k · u_k``, **not** ``g_k``: a candidate stands for ``u_k`` examples. One floor, inside::

        t_k = ((1 − λ) g_k/ḡ + λ) · u_k,   ḡ = (1/B) Σ u g,   w = u_k · (second-stage weight of t)

    Given the candidates, ``(1/b) Σ w v`` has the expectation ``(1/B) Σ u v``, so over both stages
    it has ``mean(v)``, for every ``v`` and however wrong the first stage's scores were.

    **Bound.** ``(1/B) Σ t = 1 − λ + λ U`` with ``U = (1/B) Σ u``, whose expectation is one. So
    drawn with replacement ``w = (1 − λ + λU) / ((1 − λ) g/ḡ + λ) <= 1/λ + U − 1``, reached where
    ``g = 0``. Two floors, one per stage, would only give ``1/(λ_1 λ_2)``. Without replacement
    the same holds where ``π < 1``; a candidate that is taken for certain has ``w = u·b/B``, so at
    most ``b/(B λ_1)`` after a first stage with floor ``λ_1``. (The floor of `quarantine.clean` can
    add a millionth.) ``ḡ`` estimates ``E g``. The plain mean over candidates is about ``τ²`` times
    larger after a good table, and the floor would take far more than its share λ.

    Args:
        first: the candidates. Its ``size`` is ``B``, its weights are ``1/(N p)``, or ``B/(N π)``
            without replacement; its positions are example ids and are not used here.
        scores: one fresh score >= 0 per candidate, in the order of ``first``, on any device. Their
            scale does not matter. Scores that are not finite count as the root of the weighted
            mean square of the others, the best common score: it minimises
            ``Σ u g²/s + s Σ u`` over the unknown ones.
        size: the nominal number ``b`` of examples, from 1 to ``B``.
        generator: a CPU generator, the only source of randomness.
        uniform: the share λ, in (0, 1].
        draw: second-stage scores to positions and weights.

    Returns:
        Positions **into the candidates**, as `select` returns them for a pool; example ids are
        ``first.positions[result.positions]``. ``quarantined`` counts the fresh scores that were
        not finite.

    Raises:
        UsageError: for a share outside (0, 1], another number of scores than candidates, a first
            stage of random size, a size outside ``1..B``, or a negative score.

    Reference:
        Two-phase sampling: Särndal, Swensson, Wretman, "Model assisted survey sampling" (1992),
        chapter 9. Deviation: the second phase weighs by the first, with the floor above.

    Example:
        >>> import torch
        >>> from gradsift.sampling.draws import Multinomial
        >>> u = torch.tensor([0.5, 0.5, 2.0], dtype=torch.float64)
        >>> first = Draw(torch.tensor([70, 81, 9]), u, size=3)
        >>> seeded = torch.Generator().manual_seed(0)
        >>> drawn = second_stage(first, torch.tensor([4.0, 0.0, 1.0]), 2, seeded)
        >>> first.positions[drawn.positions].tolist()
        [9, 70]
        >>> weights = second_stage(
        ...     first, torch.tensor([4.0, 0.0, 1.0]), 3, seeded, draw=Multinomial()
        ... ).weights
        >>> bool(weights.max() <= 1 / 0.1)
        True
    """
    _check_stage(first, scores, uniform)
    u = first.weights
    fresh = _neutralise_weighted(scores, u)
    drawn = draw.draw(_proposal(fresh.values, u, uniform), size, generator)
    return replace(drawn, weights=drawn.weights * u[drawn.positions], quarantined=fresh.quarantined)


def two_stage_ratio(first_ratio: float, ratio: float, batch: int, tau: float) -> float:
    """``1/R = 1/(r R_1) + (1 − 1/(r b))/τ²``: uniform over two-stage variance.

    Exact where both stages draw independently with replacement, the fresh scores are the gradient
    norms, there is no floor, and the mean gradient is zero. In general, with
    ``D_1 = E[u² g²]`` of the first stage and ``μ`` the mean gradient, the covariance trace is::

        D_1/B + (1 − 1/B)(E g)²/b − (1/b + 1/B − 1/(b B))‖μ‖²,   B = r·b

    The first term is what the candidates leave, and no fresh score can remove it. With
    ``R_1 = 1`` the candidates are a uniform pool: `monitors.pool_ratio_with_replacement`. Without
    replacement in the second stage ``R`` is much higher: `two_stage_ratio_capped`.

    Args:
        first_ratio: ``R_1``, uniform over drawn second moment of the table alone, above 0.
        ratio: ``r = B/b``, candidates per trained example, at least 1.
        batch: ``b``, at least 1.
        tau: ``τ = sqrt(E g²)/E g`` over the population, at least 1.

    Raises:
        UsageError: for numbers out of range.

    Example:
        >>> round(two_stage_ratio(first_ratio=2.0, ratio=3, batch=64, tau=3.0), 2)
        3.61
    """
    _check_moments(first_ratio, tau)
    if not (1 <= ratio < math.inf and batch >= 1):
        raise UsageError(
            f"received ratio {ratio} and batch {batch}, expected at least one of each: "
            "candidates per trained example, and trained examples"
        )
    return 1 / (1 / (ratio * first_ratio) + (1 - 1 / (ratio * batch)) / tau**2)


def two_stage_ratio_capped(
    scores: Float[Tensor, " n"], weights: Float64[Tensor, " n"], ratio: float, uniform: float = 0.1
) -> float:
    """``R(r) = r · E[u g²] / E[(u g)²/π]``, ``π = min(1, c·t)``, ``E[π] = 1/r``: no copies.

    The same for a second stage without replacement, with `second_stage`'s scores ``t`` and
    expectations over candidates of the first stage. Where nothing is capped and without a floor
    it is ``τ²``, however stale the table, and it is never above ``min(τ², r R_1)``. So two stages
    can beat the table only where ``ρ + R_1/τ² < 1``. With weights of one it is
    `monitors.pool_ratio_capped`. A ratio of second moments: the mean gradient is small, the first
    stage draws independently, and pools are large.

    Args:
        scores: fresh scores ``g`` of examples that the first stage drew, each >= 0.
        weights: ``u``, with which it drew them.
        ratio: ``r = B/b``, candidates per trained example, at least 1.
        uniform: the share λ of `second_stage`, in (0, 1].

    Raises:
        UsageError: for numbers out of range, no scores, or a negative score.

    Example:
        >>> import torch
        >>> u = torch.tensor([0.5, 0.5, 2.0, 2.0], dtype=torch.float64)
        >>> scores = torch.tensor([4.0, 3.0, 0.5, 1.5])
        >>> round(two_stage_ratio_capped(scores, u, ratio=2), 2)
        1.23
    """
    _check_share(uniform)
    if not 1 <= ratio < math.inf:
        raise UsageError(f"received ratio {ratio}, expected at least 1: candidates per example")
    g = _neutralise_weighted(scores, weights).values
    inclusion = capped_inclusion(_proposal(g, weights, uniform), len(g) / ratio)
    return float(
        ratio * (weights * g.square()).mean() / ((weights * g).square() / inclusion).mean()
    )


def two_stage_beats_table(cost_ratio: float, first_ratio: float, tau: float) -> bool:
    """Whether some pool ratio makes two stages better per second: ``sqrt(ρ) + sqrt(R_1)/τ < 1``.

    A step costs ``1 + r·ρ`` times that of the table alone, so two stages pay where
    ``R/(1 + r·ρ) > R_1``. For a large batch ``(1 + r·ρ)(1/(r R_1) + 1/τ²)`` is least at
    ``r = τ/sqrt(ρ R_1)``, where it is ``(sqrt(ρ/R_1) + 1/τ)²``. That ``r`` is above one wherever
    the rule holds. The conditions are those of `two_stage_ratio`. A finite batch does better than
    the rule assumes, and a second stage without replacement far better (`two_stage_ratio_capped`):
    the table is the safe side.

    Args:
        cost_ratio: ``ρ``, seconds to fetch and score over seconds to fetch and train one example,
            at least 0.
        first_ratio: ``R_1``, uniform over drawn second moment of the table alone, above 0.
        tau: ``sqrt(E g²)/E g`` over the population, at least 1.

    Raises:
        UsageError: for numbers out of range.

    Example:
        >>> two_stage_beats_table(cost_ratio=0.1, first_ratio=2.0, tau=3.0)
        True
        >>> two_stage_beats_table(cost_ratio=1 / 3, first_ratio=2.0, tau=3.0)
        False
    """
    _check_moments(first_ratio, tau)
    if not cost_ratio >= 0:
        raise UsageError(f"received cost_ratio {cost_ratio}, expected seconds over seconds, >= 0")
    return math.sqrt(cost_ratio) + math.sqrt(first_ratio) / tau < 1


def _proposal(
    g: Float64[Tensor, " n"], weights: Float64[Tensor, " n"], uniform: float
) -> Float64[Tensor, " n"]:
    return ((1 - uniform) * g / (weights * g).mean() + uniform) * weights


def _neutralise_weighted(
    scores: Float[Tensor, " candidates"], weights: Float64[Tensor, " candidates"]
) -> CleanScores:
    """`neutralise`, with the root of the weighted mean square, and relative to the largest."""
    cleaned = neutralise(scores)
    values = cleaned.values / cleaned.values.max()
    known = torch.isfinite(scores.detach().cpu())
    if cleaned.quarantined and bool(known.any()):
        squares = weights[known] * values[known].square()
        neutral = float((squares.sum() / weights[known].sum()).sqrt())
        values = torch.where(known, values, neutral)
    return CleanScores(values, cleaned.quarantined)


def _check_stage(first: Draw, scores: Tensor, uniform: float) -> None:
    _check_share(uniform)
    if len(first.positions) != first.size:
        raise UsageError(
            f"second_stage received {len(first.positions)} candidates of a draw of nominal size "
            f"{first.size}, expected as many: draw the first stage with a fixed size"
        )
    if len(scores) != first.size:
        raise UsageError(
            f"second_stage received {len(scores)} scores for {first.size} candidates: "
            "pass one fresh score per candidate, in their order"
        )


def _check_share(uniform: float) -> None:
    if not 0 < uniform <= 1:
        raise UsageError(
            f"received uniform={uniform}, expected a share in (0, 1]: "
            "weights are bounded by about 1/uniform"
        )


def _check_moments(first_ratio: float, tau: float) -> None:
    if not 0 < first_ratio < math.inf:
        raise UsageError(f"received first_ratio {first_ratio}, expected a finite number above 0")
    if not tau >= 1:
        raise UsageError(f"received tau {tau}, expected at least 1: tau is sqrt(E s²)/E s")
