"""One selection: the parts in a row, counted once, and unbiased as a whole."""

import math

import pytest
import torch

from enumeration import float64, moments, multinomial_law, score_set, systematic_law
from gradsift.errors import UsageError
from gradsift.sampling import (
    AbstractDistribution,
    AbstractDraw,
    Clip,
    Mixed,
    Multinomial,
    Poisson,
    Power,
    Proportional,
    Stratified,
    Systematic,
    TopK,
)
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.select import select

DISTRIBUTIONS = [
    Proportional(),
    Power(0.5),
    Mixed(Power(0.5), uniform=0.1),
    Mixed(Proportional(), 1),
]
DRAWS = [Multinomial(), Stratified(), Systematic(), Poisson(), TopK()]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["uneven", "five", "zero", "dominant", "all zero", "broken"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("draw", DRAWS, ids=repr)
def test_it_is_the_parts_in_a_row(
    draw: AbstractDraw, distribution: AbstractDistribution, name: str
) -> None:
    scores = score_set(name)
    p = distribution.probabilities(scores)
    for seed in range(3):
        got = select(scores, distribution, draw, 2, seeded(seed))
        by_hand = draw.draw(p, 2, seeded(seed))
        assert torch.equal(got.positions, by_hand.positions)
        torch.testing.assert_close(got.weights, by_hand.weights, rtol=1e-12, atol=0)
        assert got.size == 2


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("name", ["uneven", "zero", "broken"])
def test_weights_times_law_are_the_mean_over_candidates(
    distribution: AbstractDistribution, name: str
) -> None:
    scores, size, n = score_set(name), 2, 4
    p = distribution.probabilities(scores)
    inclusion = capped_inclusion(p, size)
    with_copies = _weight_table(scores, distribution, Multinomial(), size)
    without = _weight_table(scores, distribution, Systematic(), size)
    even = torch.full((n,), size / n, dtype=torch.float64)
    law = size * multinomial_law(p)
    seen = ~with_copies.isnan()
    torch.testing.assert_close((law * with_copies)[seen], even[seen], rtol=1e-9, atol=0)
    seen = ~without.isnan()
    mean, _ = moments(systematic_law(inclusion), without.nan_to_num())
    torch.testing.assert_close(mean[seen], even[seen], rtol=1e-9, atol=0)
    assert int(seen.sum()) >= 3


def _weight_table(
    scores: torch.Tensor, distribution: AbstractDistribution, draw: AbstractDraw, size: int
) -> torch.Tensor:
    """The weight that each candidate got, over many seeds; nan where it never came."""
    table = torch.full((len(scores),), math.nan, dtype=torch.float64)
    for seed in range(60):
        drawn = select(scores, distribution, draw, size, seeded(seed))
        table[drawn.positions] = drawn.weights
    return table


def test_scores_that_are_not_finite_are_counted_once() -> None:
    scores = float64([1.0, math.nan, 2.0, math.inf])
    for draw in DRAWS:
        assert select(scores, Mixed(Power(0.5), 0.1), draw, 2, seeded(0)).quarantined == 2


def test_a_correction_changes_the_weights_and_nothing_else() -> None:
    scores = score_set("five")
    for seed in range(10):
        plain = select(scores, Proportional(), Multinomial(), 5, seeded(seed))
        clipped = select(scores, Proportional(), Multinomial(), 5, seeded(seed), Clip(1.0))
        assert torch.equal(clipped.positions, plain.positions)
        assert torch.equal(clipped.weights, plain.weights.clamp(max=1.0))


@pytest.mark.parametrize("draw", [Multinomial(), Stratified(), Systematic(), Poisson()], ids=repr)
def test_a_mixture_bounds_the_weights_of_every_draw(draw: AbstractDraw) -> None:
    scores = torch.rand(200, generator=seeded(0)) ** 12
    proposal = Mixed(Proportional(), uniform=0.2)
    largest = max(
        float(select(scores, proposal, draw, 60, seeded(seed)).weights.max()) for seed in range(20)
    )
    assert 2.0 < largest <= 5.0 + 1e-9


def test_low_precision_scores_keep_float64_weights() -> None:
    drawn = select(torch.ones(5, dtype=torch.bfloat16), Proportional(), Systematic(), 3, seeded(0))
    assert drawn.weights.tolist() == pytest.approx([1.0, 1.0, 1.0], rel=1e-12)
    assert drawn.weights.dtype == torch.float64


@pytest.mark.parametrize(
    ("scores", "size", "message"),
    [
        ([1.0, 2.0], 3, "cannot draw 3 of 2"),
        ([1.0, 2.0], 0, "at least 1"),
        ([1.0, -2.0], 1, "1 of 2 scores are negative"),
        ([], 1, "no scores"),
    ],
)
def test_wrong_input_is_refused(scores: list[float], size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select(float64(scores), Proportional(), Systematic(), size, seeded(0))
