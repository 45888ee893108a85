"""Clipped weights: the bias is exactly the one that the docstring states."""

import math

import pytest
import torch

from enumeration import CASES, float64, moments, multinomial_law, score_set, systematic_law
from gradsift.errors import UsageError
from gradsift.sampling.corrections import Clip, Unweighted
from gradsift.sampling.distributions import Power, Proportional
from gradsift.sampling.inclusion import capped_inclusion

LIMITS = [0.5, 1.0, 1.7, 10.0, math.inf]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("exponent", [0.5, 1.0])
@pytest.mark.parametrize("name", ["ties", "uneven", "five", "broken"])
def test_the_bias_with_replacement_is_exact(name: str, exponent: float, limit: float) -> None:
    p = Power(exponent).probabilities(score_set(name))
    n, size = len(p), 3
    clipped = Clip(limit).apply(1 / (n * p))
    mean = size * multinomial_law(p) * clipped
    expected = [size / n * min(1.0, limit * n * probability) for probability in p.tolist()]
    torch.testing.assert_close(mean, float64(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    ("name", "size"), [case for case in CASES if case[0] in ("uneven", "five")]
)
def test_the_bias_without_replacement_is_exact(name: str, size: int, limit: float) -> None:
    inclusion = capped_inclusion(score_set(name), size)
    n = len(inclusion)
    clipped = Clip(limit).apply(size / (n * inclusion))
    mean, _ = moments(systematic_law(inclusion), clipped)
    expected = [size / n * min(1.0, limit * n * pi / size) for pi in inclusion.tolist()]
    torch.testing.assert_close(mean, float64(expected), rtol=1e-12, atol=0)


def test_it_lowers_the_second_moment_it_is_meant_to_lower() -> None:
    p = Proportional().probabilities(score_set("zero"))
    weights = 1 / (len(p) * p)
    clipped = Clip(5.0).apply(weights)
    assert float((p * clipped.square()).sum()) < 0.01 * float((p * weights.square()).sum())


def test_it_is_declared_biased_and_leaves_its_input_alone() -> None:
    weights = float64([0.5, 3.0])
    assert Clip.biased
    assert Clip(2).apply(weights).tolist() == [0.5, 2.0]
    assert weights.tolist() == [0.5, 3.0]


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_limits_that_are_not_positive_are_refused(limit: float) -> None:
    with pytest.raises(UsageError, match=f"limit {limit}, expected a weight above 0"):
        Clip(limit)


def test_without_weights_the_expectation_is_that_of_the_probabilities() -> None:
    """``E[Σ_j 1{i_j = i} w_j] = b p_i``: the bias that the docstring states, for every example."""
    assert Unweighted.biased
    p = Proportional().probabilities(score_set("uneven"))
    n, size = len(p), 4
    mean = size * multinomial_law(p) * Unweighted().apply(1 / (n * p))
    torch.testing.assert_close(mean, size * p, rtol=1e-12, atol=0)
    assert not torch.allclose(mean, torch.full_like(p, size / n))
