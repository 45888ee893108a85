"""Variance ratios of pools, against enumeration, quadrature and the published numbers."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import float64
from gradsift.errors import UsageError
from gradsift.monitors.moments import tau
from gradsift.monitors.variance import (
    break_even_tau,
    pool_ratio_capped,
    pool_ratio_with_replacement,
    two_step_variance,
)
from gradsift.sampling.inclusion import capped_inclusion

N, B, b = 5, 3, 2
GRADIENTS = torch.tensor(
    [[1.0, 0.5], [-2.0, 0.3], [0.1, 0.1], [4.0, -1.0], [0.0, 0.0]], dtype=torch.float64
)
CENTRED = GRADIENTS - GRADIENTS.mean(0)


def enumerated_trace(gradients: torch.Tensor, pool_size: int, size: int) -> float:
    """The covariance trace over every pool and every second step, each with its probability."""
    n = len(gradients)
    norms = gradients.norm(dim=1).tolist()
    mean = torch.zeros(gradients.shape[1], dtype=torch.float64)
    second = 0.0
    for pool in itertools.product(range(n), repeat=pool_size):
        total = sum(norms[i] for i in pool)
        for chosen in itertools.product(pool, repeat=size):
            # An outcome of scores that are all zero has the gradient zero, however it is drawn.
            probability = math.prod(norms[i] / total for i in chosen) if total else 0.0
            if probability:
                probability /= n**pool_size
                parts = [gradients[i] * total / (pool_size * norms[i]) for i in chosen]
                estimate = torch.stack(parts).mean(0)
                mean += probability * estimate
                second += probability * float(estimate.square().sum())
    torch.testing.assert_close(mean, gradients.mean(0), rtol=0, atol=1e-13)
    return second - float(mean.square().sum())


def lognormal(sigma: float, n: int = 500_000) -> torch.Tensor:
    """An even grid of quantiles."""
    x = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    return (sigma * x).exp()


def sigma_of(tau_wanted: float) -> float:
    return math.sqrt(2 * math.log(tau_wanted))


@pytest.mark.parametrize("gradients", [GRADIENTS, CENTRED, GRADIENTS[:, :1]])
@pytest.mark.parametrize(("pool_size", "size"), [(B, b), (2, 1), (1, 2), (3, 3)])
def test_the_two_step_variance_is_that_of_enumeration(
    gradients: torch.Tensor, pool_size: int, size: int
) -> None:
    exact = enumerated_trace(gradients, pool_size, size)
    assert two_step_variance(gradients, pool_size, size) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("pool_size", "size"), [(B, b), (4, 1), (2, 2)])
def test_the_ratio_without_a_mean_gradient_is_that_of_enumeration(
    pool_size: int, size: int
) -> None:
    uniform = float(CENTRED.square().sum(1).mean()) / size
    ratio = pool_ratio_with_replacement(
        tau(CENTRED.norm(dim=1)), pool_size / size, pool_size=pool_size
    )
    assert ratio == pytest.approx(uniform / enumerated_trace(CENTRED, pool_size, size), rel=1e-12)


def test_a_pool_of_one_candidate_is_a_uniform_draw() -> None:
    v = float(CENTRED.square().sum(1).mean())
    assert two_step_variance(CENTRED, 1, 1) == pytest.approx(v, rel=1e-12)


def test_a_large_pool_needs_no_size() -> None:
    exact = pool_ratio_with_replacement(1.65, 3, pool_size=10**9)
    assert pool_ratio_with_replacement(1.65, 3) == pytest.approx(exact, rel=1e-8)
    assert pool_ratio_with_replacement(1.65, 3) == pytest.approx(1 / (1 / 3 + 1 / 1.65**2))


def test_the_pool_without_replacement_beats_the_published_scheme() -> None:
    scores = lognormal(sigma_of(1.65))
    assert tau(scores) == pytest.approx(1.65, rel=2e-3)
    assert pool_ratio_capped(scores, 3) == pytest.approx(2.221, abs=0.005)
    assert pool_ratio_with_replacement(1.65, 3) == pytest.approx(1.427, abs=0.001)
    assert pool_ratio_with_replacement(1.65, 3, pool_size=24) == pytest.approx(1.459, abs=0.001)


def test_the_capped_ratio_agrees_with_a_loop() -> None:
    scores, ratio = [0.5, 1.0, 2.0, 9.0], 2.0
    inclusion = capped_inclusion(float64(scores), len(scores) / ratio).tolist()
    assert inclusion[3] == 1.0
    uniform = sum(g * g * ratio for g in scores)
    drawn = sum(g * g / pi for g, pi in zip(scores, inclusion, strict=True))
    assert pool_ratio_capped(float64(scores), ratio) == pytest.approx(uniform / drawn, rel=1e-12)


@given(
    scores=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=40),
    ratio=st.floats(1.0, 30.0),
)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_the_capped_ratio_lies_between_one_and_its_ceilings(
    scores: list[float], ratio: float
) -> None:
    values = float64(scores)
    gain = pool_ratio_capped(values, ratio)
    assert 1 - 1e-5 <= gain <= min(ratio, tau(values) ** 2) * (1 + 1e-5)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 0.8, 1.5, 3.0])
@pytest.mark.parametrize("ratio", [1.0, 1.5, 3.0, 10.0])
def test_the_capped_ratio_of_lognormal_scores_lies_between_one_and_its_ceilings(
    sigma: float, ratio: float
) -> None:
    scores = lognormal(sigma, 2000)
    gain = pool_ratio_capped(scores, ratio)
    assert 1 - 1e-12 <= gain <= min(ratio, tau(scores) ** 2) * (1 + 1e-12)
    assert gain >= pool_ratio_with_replacement(tau(scores), ratio) * (1 - 1e-12)


def test_the_capped_ratio_is_tau_squared_while_nothing_is_capped() -> None:
    scores = float64([1.0, 1.2, 1.5, 1.6])
    assert float(capped_inclusion(scores, 1.6).max()) < 1
    assert pool_ratio_capped(scores, 2.5) == pytest.approx(tau(scores) ** 2, rel=1e-12)


def test_the_capped_ratio_is_the_enumerated_pool_of_unrelated_gradients() -> None:
    """Uniform: ``b`` of ``B`` with replacement; drawn: Σ g²/(B² π). Second moments, as stated."""
    g = float64([0.2, 1.0, 3.0, 3.5])
    inclusion = capped_inclusion(g, 2)
    uniform = float(g.square().sum()) / (4 * 2)
    drawn = float((g.square() / inclusion).sum()) / 16
    assert pool_ratio_capped(g, 2.0) == pytest.approx(uniform / drawn, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_the_capped_ratio_does_not_depend_on_the_scale(scale: float) -> None:
    scores = float64([1.0, 2.0, 8.0])
    assert pool_ratio_capped(scale * scores, 1.5) == pytest.approx(
        pool_ratio_capped(scores, 1.5), rel=1e-12
    )


@pytest.mark.parametrize(
    ("cost", "expected"), [(1 / 3, 2.37), (0.244, 1.98), (1 / 6, 1.69), (0.1, 1.46)]
)
def test_break_even_is_where_the_best_ratio_just_pays(cost: float, expected: float) -> None:
    threshold = break_even_tau(cost)
    assert threshold == pytest.approx(expected, abs=0.006)
    ratios = [1 + step / 200 for step in range(8000)]
    for level, sign in ((0.99, -1), (1.01, 1)):
        gain = max(
            pool_ratio_with_replacement(threshold * level, r) / (1 + r * cost) for r in ratios
        )
        assert (gain - 1) * sign > 0


def test_free_scoring_always_pays_and_scoring_as_dear_as_training_never() -> None:
    assert break_even_tau(0.0) == 1.0
    assert break_even_tau(1) == math.inf
    assert break_even_tau(2.5) == math.inf


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"received tau 0\.9, expected at least 1"):
        pool_ratio_with_replacement(0.9, 3)
    with pytest.raises(UsageError, match=r"received ratio 0\.5, expected at least 1"):
        pool_ratio_with_replacement(2.0, 0.5)
    with pytest.raises(UsageError, match=r"received ratio 0\.5, expected at least 1"):
        pool_ratio_capped(torch.ones(3), 0.5)
    with pytest.raises(UsageError, match="received pool_size 0"):
        pool_ratio_with_replacement(2.0, 3, pool_size=0)
    with pytest.raises(UsageError, match="received cost_ratio -1"):
        break_even_tau(-1)
    with pytest.raises(UsageError, match="received pool_size 0 and size 2"):
        two_step_variance(GRADIENTS, 0, 2)
