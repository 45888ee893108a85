"""Covariance traces of whole populations: against loops, enumeration and the real draws."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import float64, stratified_law
from gradsift.errors import UsageError
from gradsift.monitors.moments import SecondMoments
from gradsift.monitors.traces import (
    Traces,
    pool_trace,
    population_traces,
    stratified_trace,
    without_replacement_trace,
)
from gradsift.monitors.variance import two_step_variance
from gradsift.records import Draw
from gradsift.sampling.draws import Multinomial, Stratified, Systematic
from gradsift.sampling.inclusion import capped_inclusion

GRADIENTS = torch.tensor(
    [[1.0, 0.5], [-2.0, 0.3], [0.1, 0.1], [4.0, -1.0], [0.2, 0.0]], dtype=torch.float64
)
SCORES = float64([1.0, 0.5, 2.0, 3.0, 0.25])
many = settings(derandomize=True, max_examples=60, deadline=None)
norm_lists = st.lists(st.floats(0.0, 50.0), min_size=2, max_size=12).filter(lambda g: sum(g) > 1e-3)


def cloud(n: int = 60, seed: int = 0) -> torch.Tensor:
    """Gradients of very different lengths, around a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randn(n, 1, dtype=torch.float64, generator=generator).mul(1.2).exp()
    return lengths * (torch.randn(n, 4, dtype=torch.float64, generator=generator) + 0.4)


def mean_square(gradients: torch.Tensor) -> float:
    return float(gradients.mean(0).square().sum())


def slow_trace(gradients: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Of one weighted draw, from the definition: coordinate by coordinate, example by example."""
    n, d = gradients.shape
    total = 0.0
    for axis in range(d):
        outcomes = [
            (float(p), float(g[axis]) / (n * float(p)))
            for g, p in zip(gradients, probabilities, strict=True)
        ]
        mean = math.fsum(p * value for p, value in outcomes)
        total += math.fsum(p * (value - mean) ** 2 for p, value in outcomes)
    return total


def traces(gradients: torch.Tensor, scores: torch.Tensor) -> Traces:
    return population_traces(gradients.norm(dim=1), scores, mean_square(gradients))


@pytest.mark.parametrize("seed", range(3))
def test_the_three_traces_are_those_of_the_definition(seed: int) -> None:
    gradients = cloud(12, seed)
    norms = gradients.norm(dim=1)
    scores = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = traces(gradients, scores)
    even = torch.full((12,), 1 / 12, dtype=torch.float64)
    assert found.uniform == pytest.approx(slow_trace(gradients, even), rel=1e-12)
    assert found.drawn == pytest.approx(slow_trace(gradients, scores / scores.sum()), rel=1e-12)
    assert found.ideal == pytest.approx(slow_trace(gradients, norms / norms.sum()), rel=1e-12)


@given(norms=norm_lists, seed=st.integers(0, 1000))
@many
def test_no_proposal_is_below_the_ideal_one(norms: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(len(norms), dtype=torch.float64, generator=generator) + 1e-3
    found = population_traces(float64(norms), scores, 0.0)
    assert found.ideal <= found.drawn * (1 + 1e-12)
    assert found.ideal <= found.uniform * (1 + 1e-12)


@given(norms=norm_lists)
@many
def test_the_norms_themselves_are_ideal_and_their_squares_exactly_uniform(
    norms: list[float],
) -> None:
    g = float64(norms)
    assert population_traces(g, g, 0.0).drawn == pytest.approx(float(g.mean()) ** 2, rel=1e-12)
    if float(g.square().min()) > 0:
        squared = population_traces(g, g.square(), 0.0)
        assert squared.drawn == pytest.approx(squared.uniform, rel=1e-12)


def test_a_growing_constant_leads_from_stale_to_uniform() -> None:
    gradients = cloud()
    stale = cloud(seed=5).norm(dim=1)
    found = [traces(gradients, stale + c).drawn for c in (0.0, 1e-9, 1.0, 1e3, 1e9)]
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    uniform = traces(gradients, stale).uniform
    assert found[-1] == pytest.approx(uniform, rel=1e-7)
    assert abs(found[3] - uniform) < abs(found[2] - uniform)
    assert found[0] > uniform, "these old norms are worse than uniform draws"


def test_a_gradient_without_a_chance_has_an_infinite_trace() -> None:
    found = population_traces(float64([1.0, 2.0]), float64([1.0, 0.0]), 0.0)
    assert found.drawn == math.inf
    assert found.variance_ratio == 0.0
    silent = population_traces(float64([1.0, 0.0]), float64([1.0, 0.0]), 0.0)
    assert silent.drawn == 0.25


def test_the_second_moment_ratio_is_on_the_same_side_and_closer_to_one() -> None:
    gradients = cloud()
    better = traces(gradients, gradients.norm(dim=1) + 0.1)
    assert 1 < better.second_moment_ratio < better.variance_ratio
    worse = traces(gradients, 1 / gradients.norm(dim=1))
    assert 1 > worse.second_moment_ratio > worse.variance_ratio
    assert math.isnan(Traces(SecondMoments(2.0, 1.0, 1.0), 1.0).variance_ratio)


def draws_of(draw: Multinomial | Stratified | Systematic, size: int, count: int) -> list[float]:
    """``‖ĝ − μ‖²`` of many real draws by a proposal that is neither ideal nor uniform."""
    gradients, generator = cloud(), torch.Generator().manual_seed(3)
    scores = gradients.norm(dim=1).sqrt()
    mu = gradients.mean(0)
    found = []
    for _ in range(count):
        drawn: Draw = draw.draw(scores, size, generator)
        estimate = (drawn.weights.unsqueeze(1) * gradients[drawn.positions]).sum(0) / size
        found.append(float((estimate - mu).square().sum()))
    return found


def formula_of(draw: Multinomial | Stratified | Systematic, size: int) -> float:
    gradients = cloud()
    scores = gradients.norm(dim=1).sqrt()
    if isinstance(draw, Systematic):
        return without_replacement_trace(gradients, capped_inclusion(scores, size))
    if isinstance(draw, Stratified):
        return stratified_trace(gradients, scores, size)
    return traces(gradients, scores).drawn / size


@pytest.mark.parametrize("draw", [Multinomial(), Stratified(), Systematic()], ids=repr)
@pytest.mark.parametrize("size", [8, 20])
def test_the_formula_of_each_draw_is_the_variance_of_its_real_draws(
    draw: Multinomial | Stratified | Systematic, size: int
) -> None:
    found = torch.tensor(draws_of(draw, size, 400), dtype=torch.float64)
    error = float(found.std()) / math.sqrt(len(found))
    allowed = 0.04 * float(found.mean()) if isinstance(draw, Systematic) else 0.0
    assert float(found.mean()) == pytest.approx(formula_of(draw, size), abs=3.5 * error + allowed)


def test_the_formula_with_replacement_is_too_large_without() -> None:
    wrong, right = (formula_of(draw, 20) for draw in (Multinomial(), Systematic()))
    assert wrong > 1.3 * right


def test_hajek_is_the_variance_of_a_simple_random_sample_but_for_one_factor() -> None:
    gradients, n, size = cloud(6), 6, 2
    estimates = [gradients[list(pair)].mean(0) for pair in itertools.combinations(range(n), size)]
    deviations = torch.stack(estimates) - gradients.mean(0)
    exact = float(deviations.square().sum(1).mean())
    inclusion = torch.full((n,), size / n, dtype=torch.float64)
    assert without_replacement_trace(gradients, inclusion) == pytest.approx(
        exact * (n - 1) / n, rel=1e-12
    )


def test_what_is_sure_to_be_drawn_adds_nothing() -> None:
    inclusion = float64([1.0, 0.5, 0.5, 0.5, 0.5])
    far = GRADIENTS.clone()
    far[0] *= 1e6
    assert without_replacement_trace(far, inclusion) == pytest.approx(
        without_replacement_trace(GRADIENTS, inclusion), rel=1e-9
    )
    assert without_replacement_trace(GRADIENTS, torch.ones(5).double()) == 0.0


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_stratified_trace_is_that_of_its_exact_law(size: int) -> None:
    p = SCORES / SCORES.sum()
    weighted = GRADIENTS / (len(p) * p).unsqueeze(1)
    exact = 0.0
    for law in stratified_law(p, size):
        mean = (law.unsqueeze(1) * weighted).sum(0)
        exact += float((law * weighted.square().sum(1)).sum() - mean.square().sum())
    found = stratified_trace(GRADIENTS, SCORES, size)
    assert found == pytest.approx(exact / size**2, rel=1e-10)
    independent = traces(GRADIENTS, SCORES).drawn / size
    assert found <= independent * (1 + 1e-12)


def enumerated_pool(scores: torch.Tensor, pool_size: int, size: int) -> float:
    """Over every pool and every second step, each with its probability."""
    n = len(GRADIENTS)
    s = scores.tolist()
    mean, second = torch.zeros(2, dtype=torch.float64), 0.0
    for pool in itertools.product(range(n), repeat=pool_size):
        total = sum(s[i] for i in pool)
        for chosen in itertools.product(pool, repeat=size):
            probability = math.prod(s[i] / total for i in chosen) / n**pool_size
            parts = [GRADIENTS[i] * total / (pool_size * s[i]) for i in chosen]
            estimate = torch.stack(parts).mean(0)
            mean += probability * estimate
            second += probability * float(estimate.square().sum())
    torch.testing.assert_close(mean, GRADIENTS.mean(0), rtol=0, atol=1e-13)
    return second - float(mean.square().sum())


@pytest.mark.parametrize("scores", [SCORES, torch.ones(5).double(), GRADIENTS.norm(dim=1)])
@pytest.mark.parametrize(("pool_size", "size"), [(3, 2), (2, 1), (1, 2)])
def test_a_pool_with_any_scores_is_that_of_enumeration(
    scores: torch.Tensor, pool_size: int, size: int
) -> None:
    exact = enumerated_pool(scores, pool_size, size)
    assert pool_trace(GRADIENTS, scores, pool_size, size) == pytest.approx(exact, rel=1e-12)


def test_a_pool_scored_by_its_norms_is_the_published_scheme() -> None:
    ours = pool_trace(GRADIENTS, GRADIENTS.norm(dim=1), 6, 2)
    assert two_step_variance(GRADIENTS, 6, 2) == pytest.approx(ours, rel=1e-15)
    assert pool_trace(torch.zeros(3, 2), torch.zeros(3), 6, 2) == 0.0


def test_what_cannot_be_a_proposal_is_refused() -> None:
    for scores in ([-1.0, 2.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(UsageError, match="negative, not finite or all zero"):
            population_traces(float64([1.0, 1.0]), float64(scores), 0.0)
    with pytest.raises(UsageError, match="outside"):
        without_replacement_trace(GRADIENTS, float64([0.0, 1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(UsageError, match="received size 0"):
        stratified_trace(GRADIENTS, SCORES, 0)
    with pytest.raises(UsageError, match="smallest probability 0"):
        stratified_trace(GRADIENTS, SCORES - SCORES.min(), 1)
    with pytest.raises(UsageError, match="received pool_size 0"):
        pool_trace(GRADIENTS, SCORES, 0, 1)
