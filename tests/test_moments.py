"""tau and the second moments of a batch, against loops, quadrature and exact laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import float64
from gradsift.errors import UsageError
from gradsift.monitors.moments import SecondMoments, effective_sample_size, second_moments, tau
from gradsift.sampling.distributions import Power, Proportional

ALMOST_EVEN = [1.0, *[1 - 2**-52] * 4, 1.0]
"""Their quotient is below one by rounding."""


def published_tau(scores: list[float]) -> float:
    """Katharopoulos and Fleuret, equation 25, with loops."""
    total = math.fsum(scores)
    g = [score / total for score in scores]
    u = 1 / len(scores)
    distance = math.fsum((share - u) ** 2 for share in g)
    return (1 - distance / math.fsum(share**2 for share in g)) ** -0.5


@given(scores=st.lists(st.floats(0.01, 50.0), min_size=2, max_size=40))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_tau_is_the_published_number(scores: list[float]) -> None:
    assert tau(float64(scores)) == pytest.approx(published_tau(scores), rel=1e-12)


@pytest.mark.parametrize("scores", [[1.0, 2.0, 3.0], [0.0, 0.0, 1.0], [1e-9, 5.0], [0.3] * 7])
def test_tau_is_root_mean_square_over_mean(scores: list[float]) -> None:
    n = len(scores)
    expected = math.sqrt(math.fsum(s * s for s in scores) / n) / (math.fsum(scores) / n)
    assert tau(float64(scores)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scores", [[1.0, 2.0, 3.0], [0.0, 4.0], [0.1, 7.0, 7.0, 2.0]])
def test_tau_squared_is_uniform_over_ideal(scores: list[float]) -> None:
    values = float64(scores)
    moments = second_moments(values, torch.ones_like(values), len(values))
    assert tau(values) ** 2 == pytest.approx(moments.uniform / moments.ideal, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_lognormal_scores_by_quadrature(sigma: float) -> None:
    """The trapezoidal rule on a normal density is exact to rounding."""
    x = torch.linspace(-14.0, 14.0, 2801, dtype=torch.float64)
    density = (-x.square() / 2).exp()
    moments = second_moments((sigma * x).exp(), len(x) * density / density.sum(), len(x))
    expected = math.exp(sigma**2 / 2)
    assert math.sqrt(moments.uniform / moments.ideal) == pytest.approx(expected, rel=1e-12)
    assert sigma < 1.5 or expected == pytest.approx(3.0802, abs=5e-5)


def test_tau_of_a_lognormal_on_a_grid_of_quantiles() -> None:
    """Evenly weighted quantiles miss 1.4 % of the second moment in the tail."""
    n = 2**22
    x = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    assert tau((1.5 * x).exp()) == pytest.approx(math.exp(1.125), rel=0.01)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e300])
def test_tau_does_not_depend_on_the_scale(scale: float) -> None:
    assert tau(scale * float64([1.0, 2.0, 4.0])) == pytest.approx(tau(float64([1.0, 2.0, 4.0])))


@pytest.mark.parametrize(
    "scores", [[0.0, 0.0, 0.0], [0.1] * 10, [1 / 3], ALMOST_EVEN, [math.nan, math.inf]]
)
def test_tau_of_even_scores_is_exactly_one(scores: list[float]) -> None:
    assert tau(float64(scores)) == 1.0


def test_tau_reads_low_precision_and_ignores_what_is_not_finite() -> None:
    scores = torch.tensor([1.0, 3.0, torch.nan], dtype=torch.bfloat16)
    assert tau(scores) == pytest.approx(tau(float64([1.0, 3.0, math.sqrt(5)])), rel=1e-12)


def test_tau_refuses_nothing_and_negative_scores() -> None:
    with pytest.raises(UsageError, match="no scores"):
        tau(float64([]))
    with pytest.raises(UsageError, match="negative"):
        tau(float64([1.0, -1.0]))


def test_second_moments_agree_with_a_loop() -> None:
    g, w, size = [0.5, 2.0, 3.0], [2.0, 0.7, 0.0], 4
    moments = second_moments(float64(g), float64(w), size)
    pairs = list(zip(w, g, strict=True))
    assert moments.uniform == pytest.approx(sum(a * b * b for a, b in pairs) / 4, rel=1e-15)
    assert moments.drawn == pytest.approx(sum(a * a * b * b for a, b in pairs) / 4, rel=1e-15)
    assert moments.ideal == pytest.approx((sum(a * b for a, b in pairs) / 4) ** 2, rel=1e-15)
    assert moments.ratio == pytest.approx(moments.uniform / moments.drawn)
    assert moments.efficiency == pytest.approx(moments.ideal / moments.drawn)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_one_draw_estimates_the_first_two_without_bias(exponent: float) -> None:
    """Expectation over all single draws: uniform's E g², and the draw's own Σ g²/(N² p)."""
    g = float64([0.2, 1.0, 1.5, 4.0])
    p = Power(exponent).probabilities(g)
    weights = 1 / (4 * p)
    each = [second_moments(g[i : i + 1], weights[i : i + 1], 1) for i in range(4)]
    uniform = sum(q * one.uniform for q, one in zip(p.tolist(), each, strict=True))
    drawn = sum(q * one.drawn for q, one in zip(p.tolist(), each, strict=True))
    assert uniform == pytest.approx(float(g.square().mean()), rel=1e-12)
    assert drawn == pytest.approx(float((g.square() / (16 * p)).sum()), rel=1e-12)
    if exponent == 1.0:
        assert uniform / drawn == pytest.approx(tau(g) ** 2, rel=1e-12)


def test_the_ideal_proposal_has_efficiency_one_for_every_batch() -> None:
    g = float64([0.2, 1.0, 1.5, 4.0])
    weights = 1 / (4 * Proportional().probabilities(g))
    chosen = torch.tensor([0, 3, 3, 1])
    moments = second_moments(g[chosen], weights[chosen], 4)
    assert moments.efficiency == pytest.approx(1.0, rel=1e-12)


@given(
    pairs=st.lists(st.tuples(st.floats(0.01, 9.0), st.floats(0.01, 9.0)), min_size=1, max_size=20)
)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_efficiency_never_passes_one(pairs: list[tuple[float, float]]) -> None:
    g, w = (float64(column) for column in zip(*pairs, strict=True))
    assert 0 < second_moments(g, w, len(pairs)).efficiency <= 1 + 1e-12


def test_nothing_measured_is_nan_and_no_error() -> None:
    moments = second_moments(torch.zeros(3), torch.ones(3), 3)
    assert moments == SecondMoments(0.0, 0.0, 0.0)
    assert math.isnan(moments.ratio)
    assert math.isnan(moments.efficiency)
    with pytest.raises(UsageError, match="received size 0, expected the nominal batch size"):
        second_moments(torch.zeros(3), torch.ones(3), 0)


def test_the_nominal_size_divides_and_not_the_number_drawn() -> None:
    one = second_moments(float64([2.0]), float64([1.0]), 4)
    assert one == SecondMoments(uniform=1.0, drawn=1.0, ideal=0.25)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0, 1.0, 1.0], 3.0), ([1.0, 0.0], 1.0), ([2.0, 1.0], 1.8), ([], 0.0)],
)
def test_effective_sample_size(weights: list[float], expected: float) -> None:
    assert effective_sample_size(float64(weights)) == pytest.approx(expected, rel=1e-15)


def test_effective_sample_size_is_small_exactly_where_the_proposal_is_ideal() -> None:
    """At ``p ∝ s`` for lognormal scores, σ = 1.5: a share ``1/(E s · E 1/s) = exp(−σ²)``."""
    x = torch.linspace(-10.0, 10.0, 81, dtype=torch.float64)
    s = (1.5 * x).exp()
    drawn = (-x.square() / 2).exp() * s
    copies = (drawn / drawn.max() * 1e6).round().long()
    weights = (1 / s).repeat_interleave(copies)
    share = effective_sample_size(weights) / len(weights)
    assert share == pytest.approx(math.exp(-2.25), rel=0.02)
