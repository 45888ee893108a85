"""Every unbiased draw has E[Σ_j 1{i_j = i} w_j] = b/N for every candidate: exactly."""

import pytest
import torch

from enumeration import (
    CASES,
    counts,
    float64,
    moments,
    multinomial_law,
    poisson_law,
    score_set,
    stratified_law,
    systematic_law,
    systematic_law_in_order,
)
from gradsift.errors import UsageError
from gradsift.sampling.distributions import Proportional
from gradsift.sampling.draws import (
    AbstractDraw,
    Multinomial,
    Poisson,
    Stratified,
    Systematic,
    TopK,
)
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.positions import (
    multinomial_positions,
    poisson_positions,
    stratified_positions,
    systematic_positions,
)

WITH_REPLACEMENT = [Multinomial(), Stratified()]
WITHOUT_REPLACEMENT = [Systematic(), Poisson()]
EVERY = [*WITH_REPLACEMENT, *WITHOUT_REPLACEMENT, TopK()]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_weights(draw: AbstractDraw, name: str, size: int) -> torch.Tensor:
    """The weight of every candidate, by the formulas of Hansen-Hurwitz and Horvitz-Thompson."""
    scores = score_set(name)
    if draw in WITH_REPLACEMENT:
        return 1 / (len(scores) * Proportional().probabilities(scores))
    return size / (len(scores) * capped_inclusion(scores, size))


def assert_unbiased(mean: torch.Tensor, size: int) -> None:
    torch.testing.assert_close(mean, torch.full_like(mean, size / len(mean)), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "size"), CASES)
@pytest.mark.parametrize("draw", EVERY[:4], ids=repr)
def test_the_weights_of_a_draw_are_those_of_its_positions(
    draw: AbstractDraw, name: str, size: int
) -> None:
    table = all_weights(draw, name, size)
    for seed in range(5):
        drawn = draw.draw(score_set(name), size, seeded(seed))
        torch.testing.assert_close(drawn.weights, table[drawn.positions], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name, size in CASES if size == 1 and name != "zero"])
def test_multinomial_is_unbiased(name: str) -> None:
    law = multinomial_law(Proportional().probabilities(score_set(name)))
    mean = 3 * law * all_weights(Multinomial(), name, 3)
    torch.testing.assert_close(mean, torch.full_like(mean, 3 / len(mean)), rtol=1e-8, atol=0)
    p = Proportional().probabilities(score_set(name))
    torch.testing.assert_close(law, p, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_stratified_is_unbiased(name: str, size: int) -> None:
    p = Proportional().probabilities(score_set(name))
    law = stratified_law(p, size)
    torch.testing.assert_close(
        law.sum(1), torch.ones(size, dtype=torch.float64), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(law.sum(0), size * p, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_systematic_is_unbiased_in_random_order_and_in_every_order(name: str, size: int) -> None:
    inclusion = capped_inclusion(score_set(name), size)
    ones = torch.ones_like(inclusion)
    mean, _ = moments(systematic_law(inclusion), ones)
    torch.testing.assert_close(mean, inclusion, rtol=0, atol=1e-14)
    for order in (inclusion, inclusion.flip(0), inclusion.roll(1)):
        mean, _ = moments(systematic_law_in_order(order), ones)
        torch.testing.assert_close(mean, order, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_poisson_is_unbiased(name: str, size: int) -> None:
    inclusion = capped_inclusion(score_set(name), size)
    law = poisson_law(inclusion)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    mean, covariance = moments(law, size / (len(inclusion) * inclusion))
    assert_unbiased(mean, size)
    variances = (size / len(inclusion)) ** 2 * (1 / inclusion - 1)
    torch.testing.assert_close(covariance, variances.diag(), rtol=1e-9, atol=1e-9)
    drawn = sum(probability * len(outcome) for outcome, probability in law.items())
    assert drawn == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_unit_vectors_through_weights_and_laws_together(size: int) -> None:
    p = Proportional().probabilities(score_set("uneven"))
    weights = all_weights(Multinomial(), "uneven", size)
    assert_unbiased(size * multinomial_law(p) * weights, size)
    assert_unbiased(stratified_law(p, size).sum(0) * weights, size)
    inclusion = capped_inclusion(score_set("uneven"), size)
    weights = all_weights(Systematic(), "uneven", size)
    assert_unbiased(moments(systematic_law(inclusion), weights)[0], size)


def test_the_classes_only_pass_uniform_numbers_on() -> None:
    scores, size = score_set("five"), 3
    p, inclusion = Proportional().probabilities(scores), capped_inclusion(scores, size)
    for seed in range(20):
        three = torch.rand(3, dtype=torch.float64, generator=seeded(seed))
        five = torch.rand(5, dtype=torch.float64, generator=seeded(seed))
        walk = seeded(seed)
        order = torch.randperm(5, generator=walk)
        offset = float(torch.rand(1, dtype=torch.float64, generator=walk))
        expected = {
            Multinomial(): multinomial_positions(p, three),
            Stratified(): stratified_positions(p, three),
            Poisson(): poisson_positions(inclusion, five),
            Systematic(): order[systematic_positions(inclusion[order], offset)],
        }
        for draw, positions in expected.items():
            assert torch.equal(draw.draw(scores, size, seeded(seed)).positions, positions)


def test_systematic_takes_a_new_order_for_each_draw() -> None:
    scores = torch.ones(6)
    generator = seeded(0)
    neighbours = set()
    for _ in range(60):
        neighbours.add(tuple(sorted(Systematic().draw(scores, 2, generator).positions.tolist())))
    assert len(neighbours) == 15


@pytest.mark.parametrize("draw", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_types_sizes_and_the_count_of_quarantined_scores(
    draw: AbstractDraw, dtype: torch.dtype
) -> None:
    scores = torch.tensor([1.0, torch.nan, 4.0, torch.inf, 0.0], dtype=dtype)
    drawn = draw.draw(scores, 3, seeded(1))
    assert drawn.positions.dtype == torch.int64
    assert drawn.weights.dtype == torch.float64
    assert drawn.size == 3
    assert drawn.quarantined == 2
    assert isinstance(draw, Poisson) or len(drawn.positions) == 3


@pytest.mark.parametrize("draw", EVERY, ids=repr)
def test_only_the_generator_is_used_and_it_repeats(draw: AbstractDraw) -> None:
    before = torch.get_rng_state()
    first = draw.draw(score_set("five"), 2, seeded(3))
    again = draw.draw(score_set("five"), 2, seeded(3))
    assert torch.equal(first.positions, again.positions)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draw", EVERY, ids=repr)
@pytest.mark.parametrize(
    ("size", "message"), [(5, "cannot draw 5 of 4 .*: draw at most 4"), (0, "size of at least 1")]
)
def test_sizes_out_of_range_are_refused(draw: AbstractDraw, size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw.draw(torch.ones(4), size, seeded(0))


@pytest.mark.parametrize("draw", [*WITHOUT_REPLACEMENT, TopK()], ids=repr)
@pytest.mark.parametrize("name", ["uneven", "zero", "dominant", "all zero", "broken"])
def test_the_whole_pool_comes_once_with_weight_one(draw: AbstractDraw, name: str) -> None:
    scores = score_set(name)
    drawn = draw.draw(scores, len(scores), seeded(5))
    assert sorted(drawn.positions.tolist()) == list(range(len(scores)))
    torch.testing.assert_close(drawn.weights, torch.ones_like(drawn.weights), rtol=1e-12, atol=0)


def test_a_dominant_score_comes_once_without_and_often_with_replacement() -> None:
    scores = score_set("dominant")
    assert sorted(Systematic().draw(scores, 2, seeded(0)).positions.tolist()).count(3) == 1
    assert Multinomial().draw(scores, 4, seeded(0)).positions.tolist() == [3, 3, 3, 3]


def test_a_poisson_draw_can_be_empty_and_keeps_its_nominal_size() -> None:
    sizes = {len(Poisson().draw(torch.ones(4), 1, seeded(seed)).positions) for seed in range(40)}
    assert 0 in sizes
    assert len(sizes) > 2
    empty = next(
        drawn
        for drawn in (Poisson().draw(torch.ones(4), 1, seeded(seed)) for seed in range(40))
        if not len(drawn.positions)
    )
    assert empty.size == 1
    assert empty.weights.shape == (0,)


def test_top_k_takes_the_highest_scores_with_the_bias_it_states() -> None:
    scores = float64([1.0, 5.0, 3.0, 5.0, 0.0])
    drawn = TopK().draw(scores, 2, seeded(0))
    assert drawn.positions.tolist() == [1, 3]
    assert drawn.weights.tolist() == [1.0, 1.0]
    unit = counts(tuple(drawn.positions.tolist()), 5)
    assert float(unit @ scores / 2 - scores.mean()) == pytest.approx(5.0 - 2.8)


def test_top_k_gives_ties_to_the_earlier_candidates() -> None:
    scores = torch.arange(3000).remainder(3).float()
    expected = [place for place in range(3000) if place % 3 == 2][:500]
    assert TopK().draw(scores, 500, seeded(0)).positions.tolist() == expected


def test_only_top_k_is_declared_biased() -> None:
    assert [draw.biased for draw in EVERY] == [False, False, False, False, True]


def test_positions_beyond_two_to_the_24() -> None:
    n = 2**24 + 100
    scores = torch.zeros(n)
    scores[-64:] = 1.0
    drawn = Multinomial().draw(scores, 64, seeded(0))
    assert int(drawn.positions.min()) >= n - 64
    assert len(set(drawn.positions.tolist())) > 30
    expected = torch.full((64,), 64 / n, dtype=torch.float64)
    torch.testing.assert_close(drawn.weights, expected, rtol=2e-6, atol=0)
