"""Probabilities: positive, with sum one, and what their formulas say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import float64, score_set
from gradsift.errors import UsageError
from gradsift.sampling.distributions import (
    AbstractDistribution,
    Mixed,
    Power,
    Proportional,
    Ranked,
)
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.quarantine import FLOOR

EVERY = [
    Proportional(),
    Power(0.0),
    Power(0.5),
    Power(3),
    Mixed(Proportional(), uniform=0.2),
    Mixed(Power(0.5), uniform=0.1),
    Mixed(Mixed(Proportional(), 0.5), 1),
    Ranked(1.0),
    Ranked(2.5),
]


def slow_power(scores: list[float], exponent: float, uniform: float) -> list[float]:
    powers = [score**exponent for score in scores]
    total = math.fsum(powers)
    return [(1 - uniform) * power / total + uniform / len(scores) for power in powers]


@pytest.mark.parametrize("scores", [[1.0, 2.0, 3.0], [4.0], [0.3, 0.3, 17.0, 2.0]])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("uniform", [0.05, 0.5, 1.0])
def test_powers_and_mixtures_agree_with_a_loop(
    scores: list[float], exponent: float, uniform: float
) -> None:
    p = Mixed(Power(exponent), uniform=uniform).probabilities(float64(scores))
    expected = slow_power(scores, exponent, uniform)
    torch.testing.assert_close(p, float64(expected), rtol=1e-12, atol=0)


def test_proportional_agrees_with_a_loop() -> None:
    scores = [0.7, 2.0, 5.5]
    torch.testing.assert_close(
        Proportional().probabilities(float64(scores)),
        float64(slow_power(scores, 1.0, 0.0)),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("distribution", EVERY, ids=repr)
@given(
    scores=st.lists(
        st.one_of(
            st.floats(min_value=0.0, max_value=1.7e308),
            st.sampled_from([0.0, 1e-300, 1e300, math.nan, math.inf]),
        ),
        min_size=1,
        max_size=12,
    )
)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_positive_with_sum_one_for_any_scores(
    distribution: AbstractDistribution, scores: list[float]
) -> None:
    p = distribution.probabilities(float64(scores))
    assert p.dtype == torch.float64
    assert bool((p > 0).all())
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)


def test_the_floor_bounds_the_weights_of_a_proportional_draw() -> None:
    p = Proportional().probabilities(score_set("zero"))
    assert float((1 / (4 * p)).max()) == pytest.approx(1 / FLOOR, rel=1e-9)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_a_mixture_bounds_the_weights_by_one_over_its_share(share: float) -> None:
    p = Mixed(Proportional(), uniform=share).probabilities(score_set("dominant"))
    assert float((1 / (len(p) * p)).max()) <= 1 / share + 1e-12


@pytest.mark.parametrize("smoothing", [0.1, 1.0, 4.0])
def test_additive_smoothing_is_the_mixture(smoothing: float) -> None:
    scores = score_set("uneven")
    smoothed = Proportional().probabilities(scores + smoothing * scores.mean())
    mixed = Mixed(Proportional(), uniform=smoothing / (1 + smoothing)).probabilities(scores)
    torch.testing.assert_close(mixed, smoothed, rtol=1e-12, atol=0)


def test_all_zero_scores_mean_uniform() -> None:
    for distribution in EVERY:
        p = distribution.probabilities(score_set("all zero"))
        torch.testing.assert_close(p, torch.full_like(p, 1 / 3), rtol=1e-12, atol=0)


def test_a_score_that_is_not_finite_counts_like_the_root_mean_square() -> None:
    p = Proportional().probabilities(score_set("broken"))
    neutral = math.sqrt(2.5)
    expected = float64([1.0, neutral, 2.0, neutral]) / (3 + 2 * neutral)
    torch.testing.assert_close(p, expected, rtol=1e-12, atol=0)


def test_low_precision_scores_are_summed_in_float64() -> None:
    p = Proportional().probabilities(torch.ones(1000, dtype=torch.bfloat16))
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("exponent", [-0.1, math.nan, math.inf])
def test_exponents_out_of_range_are_refused(exponent: float) -> None:
    with pytest.raises(UsageError, match=rf"exponent {exponent}, expected a finite number >= 0"):
        Power(exponent)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(UsageError, match=rf"uniform={share}, expected a share in \(0, 1\]"):
        Mixed(Proportional(), uniform=share)


def test_distributions_are_values() -> None:
    assert Mixed(Power(0.5), uniform=0.1) == Mixed(Power(0.5), uniform=0.1)
    assert Mixed(Power(0.5), uniform=0.1) != Mixed(Power(0.6), uniform=0.1)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@given(scores=st.lists(st.sampled_from([0.0, 1e-9, 0.5, 0.5, 2.0, 7.0]), min_size=1, max_size=9))
def test_percentiles_agree_with_a_loop(exponent: float, scores: list[float]) -> None:
    """Ties share a percentile; scores of zero among others keep their place."""
    shares = [sum(other <= score for other in scores) / len(scores) for score in scores]
    powers = [share**exponent for share in shares]
    slow = [power / math.fsum(powers) for power in powers]
    found = Ranked(exponent).probabilities(float64(scores))
    torch.testing.assert_close(found, float64(slow), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1, 4, 32])
def test_one_of_two_candidates_is_kept_by_its_percentile(size: int) -> None:
    """``π = P·b/(b + ½)`` for 2b different scores: the published acceptance, up to rounding."""
    count = 2 * size
    scores = torch.arange(1.0, count + 1).double() ** 3
    inclusion = capped_inclusion(Ranked(1.0).probabilities(scores), size)
    percentiles = torch.arange(1, count + 1).double() / count
    torch.testing.assert_close(inclusion, percentiles * size / (size + 0.5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("exponent", [-1.0, math.nan, math.inf])
def test_exponents_of_ranks_are_checked(exponent: float) -> None:
    with pytest.raises(UsageError, match=f"Ranked received exponent {exponent}"):
        Ranked(exponent)
