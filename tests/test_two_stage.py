"""Two stages: every first outcome times every second one, by the real function."""

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from enumeration import (
    cells,
    float64,
    multinomial_law,
    stratified_law,
    systematic_law,
)
from gradsift.errors import UsageError
from gradsift.monitors.variance import pool_ratio_capped, pool_ratio_with_replacement
from gradsift.records import Draw
from gradsift.sampling import AbstractDraw, Multinomial, Poisson, Stratified, Systematic, TopK
from gradsift.sampling import draws as draws_module
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.two_stage import (
    second_stage,
    two_stage_beats_table,
    two_stage_ratio,
    two_stage_ratio_capped,
)

FRESH = [0.2, 1.0, 3.0, 0.0]
STALE = {
    "fitting": [0.3, 1.0, 2.5, 0.2],
    "even": [1.0, 1.0, 1.0, 1.0],
    "wildly wrong": [30.0, 1.0, 0.01, 5.0],
}
SECOND_DRAWS = [Multinomial(), Stratified(), Systematic(), Poisson()]
GRADIENTS = float64([1.0, 0.5, -2.0, 0.3, 0.1, 0.4]).reshape(3, 2)
CENTRED = GRADIENTS - GRADIENTS.mean(0)
NO_FLOOR = 1e-13

PAIRS = st.lists(st.tuples(st.floats(0.01, 20.0), st.floats(0.0, 100.0)), min_size=2, max_size=12)
"""Weights of a first stage, and scores."""

Play = Callable[..., Draw]
"""``second_stage``, its uniform numbers replaced by a given list."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def candidates(weights: list[float]) -> Draw:
    ids = torch.arange(len(weights)) + 100
    return Draw(ids, float64(weights), len(weights))


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    script: list[Tensor] = []
    monkeypatch.setattr(draws_module, "_uniforms", lambda count, generator: script[-1])

    def played(uniforms: tuple[float, ...], *args: object, **options: object) -> Draw:
        script.append(float64(uniforms))
        return second_stage(*args, **options)  # type: ignore[arg-type]

    return played


def first_outcomes(kind: str, p: Tensor, size: int) -> Iterator[tuple[float, Draw]]:
    """Every first stage that can happen, with its probability and its weights."""
    n = len(p)
    if kind == "systematic":
        inclusion = capped_inclusion(p, size)
        for outcome, probability in systematic_law(inclusion).items():
            ids = torch.tensor(outcome)
            yield probability, Draw(ids, size / (n * inclusion[ids]), size)
        return
    one = multinomial_law(p).expand(size, n)
    slots = one if kind == "multinomial" else stratified_law(p, size)
    for outcome in itertools.product(range(n), repeat=size):
        probability = math.prod(float(slots[slot, i]) for slot, i in enumerate(outcome))
        if probability:
            ids = torch.tensor(outcome)
            yield probability, Draw(ids, 1 / (n * p[ids]), size)


def slow_proposal(weights: list[float], scores: list[float], uniform: float) -> Tensor:
    """The second stage's probabilities, one candidate at a time, for scores that are finite."""
    total = math.fsum(u * g for u, g in zip(weights, scores, strict=True))
    mean = total / len(weights)
    parts = [
        u * ((1 - uniform) * g / mean + uniform) if mean else u
        for u, g in zip(weights, scores, strict=True)
    ]
    return float64([part / math.fsum(parts) for part in parts])


def second_cells(
    draw: AbstractDraw, p: Tensor, size: int, order: Tensor
) -> Iterator[tuple[tuple[float, ...], float]]:
    """Uniform numbers for every outcome of the second draw, with the volume that they stand for."""
    if isinstance(draw, Multinomial):
        axes = [cells(p.cumsum(0).tolist())] * size
    elif isinstance(draw, Stratified):
        axes = [cells((size * p.cumsum(0) - slot).tolist()) for slot in range(size)]
    elif isinstance(draw, Poisson):
        axes = [cells([pi]) for pi in capped_inclusion(p, size).tolist()]
    else:
        axes = [cells((capped_inclusion(p, size)[order].cumsum(0) % 1).tolist())]
    for cell in itertools.product(*axes):
        yield tuple(middle for middle, _ in cell), math.prod(length for _, length in cell)


def nested(
    play: Play,
    first: Iterator[tuple[float, Draw]],
    fresh: list[float],
    size: int,
    draw: AbstractDraw,
    uniform: float,
) -> Iterator[tuple[float, Draw, Draw]]:
    """Both stages, for scores by example id: probability, candidates, chosen."""
    for seed, (probability, drawn) in enumerate(first):
        scores = [fresh[i] for i in drawn.positions.tolist()]
        p = slow_proposal(drawn.weights.tolist(), scores, uniform)
        order = torch.randperm(drawn.size, generator=seeded(seed))
        for numbers, volume in second_cells(draw, p, size, order):
            chosen = play(
                numbers, drawn, float64(scores), size, seeded(seed), uniform=uniform, draw=draw
            )
            yield probability * volume, drawn, chosen


def expectation(outcomes: Iterator[tuple[float, Draw, Draw]], n: int, size: int) -> Tensor:
    """``E[(1/b) Σ w v]`` for all unit vectors ``v`` at once."""
    total = torch.zeros(n, dtype=torch.float64)
    for probability, first, chosen in outcomes:
        ids = first.positions[chosen.positions]
        total.index_add_(0, ids, probability * chosen.weights / size)
    return total


@pytest.mark.parametrize("stale", STALE)
@pytest.mark.parametrize("kind", ["multinomial", "stratified", "systematic"])
@pytest.mark.parametrize("draw", SECOND_DRAWS, ids=repr)
def test_it_is_unbiased_over_both_stages(
    play: Play, draw: AbstractDraw, kind: str, stale: str
) -> None:
    n = 4 if kind == "systematic" else 3
    p = float64(STALE[stale][-n:]) / sum(STALE[stale][-n:])
    first = first_outcomes(kind, p, 3)
    mean = expectation(nested(play, first, FRESH[-n:], 2, draw, 0.2), n, 2)
    torch.testing.assert_close(mean, torch.full_like(mean, 1 / n), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1, 2])
def test_it_is_unbiased_for_four_examples_of_a_wildly_wrong_table(play: Play, size: int) -> None:
    p = float64(STALE["wildly wrong"]) / sum(STALE["wildly wrong"])
    outcomes = nested(play, first_outcomes("multinomial", p, 2), FRESH, size, Systematic(), 0.1)
    mean = expectation(outcomes, 4, size)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.25), rtol=1e-12, atol=0)


def trace(play: Play, gradients: Tensor, p: Tensor, pool: int, size: int) -> float:
    """The covariance trace of both stages with replacement, without a floor, by enumeration."""
    norms = gradients.norm(dim=1).tolist()
    first = first_outcomes("multinomial", p, pool)
    second_moment = 0.0
    for probability, drawn, chosen in nested(play, first, norms, size, Multinomial(), NO_FLOOR):
        ids = drawn.positions[chosen.positions]
        estimate = (chosen.weights[:, None] * gradients[ids]).sum(0) / size
        second_moment += probability * float(estimate.square().sum())
    return second_moment - float(gradients.mean(0).square().sum())


@pytest.mark.parametrize(("pool", "size"), [(3, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("stale", [[1.0, 1.0, 1.0], [1.0, 2.0, 0.5], [3.0, 0.2, 2.0]])
def test_the_ratio_is_that_of_enumeration(
    play: Play, stale: list[float], pool: int, size: int
) -> None:
    p = float64(stale) / sum(stale)
    g = CENTRED.norm(dim=1)
    uniform = float(g.square().mean())
    first_ratio = uniform / float((g.square() / (9 * p)).sum())
    tau = math.sqrt(uniform) / float(g.mean())
    exact = uniform / size / trace(play, CENTRED, p, pool, size)
    assert two_stage_ratio(first_ratio, pool / size, size, tau) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("pool", "size"), [(3, 2), (2, 1)])
def test_the_variance_with_a_mean_gradient_is_the_documented_one(
    play: Play, pool: int, size: int
) -> None:
    p = float64([0.2, 0.3, 0.5])
    g = GRADIENTS.norm(dim=1)
    d1, m1 = float((g.square() / (9 * p)).sum()), float(g.mean())
    signal = float(GRADIENTS.mean(0).square().sum())
    seen = 1 / size + 1 / pool - 1 / (size * pool)
    expected = d1 / pool + (1 - 1 / pool) * m1**2 / size - seen * signal
    assert trace(play, GRADIENTS, p, pool, size) == pytest.approx(expected, rel=1e-9)


def test_candidates_of_a_uniform_first_stage_are_a_pool() -> None:
    for tau, ratio, batch in itertools.product([1.0, 1.65, 4.0], [1.0, 3.0], [1, 64]):
        pool = pool_ratio_with_replacement(tau, ratio, pool_size=round(ratio * batch))
        assert two_stage_ratio(1.0, ratio, batch, tau) == pytest.approx(pool, rel=1e-12)


@pytest.mark.parametrize("cost", [0.0, 0.05, 1 / 3, 0.9, 1.0])
@pytest.mark.parametrize("first_ratio", [0.3, 1.0, 2.5])
def test_two_stages_beat_the_table_where_some_ratio_does(cost: float, first_ratio: float) -> None:
    ratios = [1.02**k for k in range(1200)]
    for tau in (1.0, 1.2, 1.7, 2.5, 4.0, 30.0):
        gains = (two_stage_ratio(first_ratio, r, 10**9, tau) / (1 + r * cost) for r in ratios)
        slow = max(gains) > first_ratio
        assert two_stage_beats_table(cost, first_ratio, tau) == slow


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("uniform", [NO_FLOOR, 0.3])
def test_the_capped_ratio_is_that_of_enumeration(play: Play, size: int, uniform: float) -> None:
    """Unrelated gradients, so every candidate adds its square; one fixed set of candidates."""
    weights, scores = [0.5, 0.4, 2.0, 9.0], [4.0, 3.0, 0.5, 0.3]
    first = iter([(1.0, Draw(torch.arange(4), float64(weights), 4))])
    squares = float64(scores).square()
    drawn = 0.0
    for probability, _, chosen in nested(play, first, scores, size, Systematic(), uniform):
        drawn += probability * float((chosen.weights.square() * squares[chosen.positions]).sum())
    alone = float((float64(weights) * squares).mean()) / size
    exact = alone / (drawn / size**2)
    got = two_stage_ratio_capped(float64(scores), float64(weights), 4 / size, uniform)
    assert got == pytest.approx(exact, rel=1e-9)


@given(pairs=PAIRS, ratio=st.floats(1.0, 10.0), uniform=st.floats(1e-6, 1.0))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_the_capped_ratio_keeps_below_its_ceilings(
    pairs: list[tuple[float, float]], ratio: float, uniform: float
) -> None:
    u, g = (float64(column) for column in zip(*pairs, strict=True))
    got = two_stage_ratio_capped(g, u, ratio, uniform)
    if float(g.max()):
        alone = float((u * g.square()).mean())
        first_ratio = alone / float((u * g).square().mean())
        ideal = alone / float((u * g).mean()) ** 2
        assert got <= min(ratio * first_ratio, ideal) * (1 + 1e-9)
    flat = two_stage_ratio_capped(g, torch.ones_like(g), ratio, NO_FLOOR)
    assert flat == pytest.approx(pool_ratio_capped(g, ratio), rel=1e-4)


@pytest.mark.parametrize("draw", [*SECOND_DRAWS, TopK()], ids=repr)
def test_it_is_the_parts_in_a_row(draw: AbstractDraw) -> None:
    weights, scores = [0.5, 3.0, 0.1, 1.0, 0.5], [2.0, 0.3, 9.0, 0.0, 2.0]
    p = slow_proposal(weights, scores, 0.3)
    for seed in range(5):
        got = second_stage(
            candidates(weights), float64(scores), 2, seeded(seed), uniform=0.3, draw=draw
        )
        by_hand = draw.draw(p, 2, seeded(seed))
        assert got.positions.tolist() == by_hand.positions.tolist()
        expected = by_hand.weights * float64(weights)[by_hand.positions]
        torch.testing.assert_close(got.weights, expected, rtol=1e-12, atol=0)
        assert (got.size, got.quarantined) == (2, 0)


def test_without_a_floor_every_choice_contributes_the_same() -> None:
    """So the scores are ``g·u``: by ``g`` alone contributions would differ by the weights."""
    weights, scores = [0.5, 4.0, 0.1, 1.0], float64([2.0, 0.3, 9.0, 1.0])
    drawn = second_stage(
        candidates(weights), scores, 4, seeded(), uniform=NO_FLOOR, draw=Multinomial()
    )
    mean = (float64(weights) * scores).mean().expand(4)
    torch.testing.assert_close(drawn.weights * scores[drawn.positions], mean, rtol=1e-9, atol=0)


@given(pairs=PAIRS, uniform=st.floats(0.01, 1.0), seed=st.integers(0, 99))
@settings(derandomize=True, max_examples=30, deadline=None)
@pytest.mark.parametrize("draw", SECOND_DRAWS, ids=repr)
def test_one_floor_bounds_the_weights(
    draw: AbstractDraw, pairs: list[tuple[float, float]], uniform: float, seed: int
) -> None:
    weights = [weight for weight, _ in pairs]
    size = (len(pairs) + 1) // 2
    drawn = second_stage(
        candidates(weights), float64(g for _, g in pairs), size, seeded(seed), uniform, draw
    )
    u = float64(weights)
    bound = torch.full_like(drawn.weights, 1 / uniform + float(u.mean()) - 1)
    if draw in (Systematic(), Poisson()):
        bound = bound.maximum(u[drawn.positions] * size / len(pairs))
    assert bool((drawn.weights <= bound * (1 + 2e-6)).all())


@pytest.mark.parametrize("uniform", [0.1, 0.5, 1.0])
def test_a_score_of_zero_reaches_the_bound(uniform: float) -> None:
    weights = [0.2, 7.0, 1.0, 1.4]
    scores, reached = float64([5.0, 0.0, 1.0, 0.0]), 1 / uniform + sum(weights) / 4 - 1
    largest = max(
        float(
            second_stage(candidates(weights), scores, 4, seeded(seed), uniform, draw).weights.max()
        )
        for seed in range(20)
        for draw in [Multinomial(), Stratified()]
    )
    assert largest == pytest.approx(reached, rel=1e-12)


def test_a_certain_candidate_keeps_the_weight_of_its_first_stage() -> None:
    """It stands for many examples and can come only once, whatever λ is."""
    first = candidates([40.0, 0.5, 0.5, 0.5])
    drawn = second_stage(first, torch.ones(4), 2, seeded(), uniform=0.5)
    weight = drawn.weights[drawn.positions == 0]
    assert weight.tolist() == pytest.approx([40.0 * 2 / 4], rel=1e-12)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_not_finite_count_as_the_weighted_root_mean_square(broken: float) -> None:
    weights, finite = [0.5, 2.0, 1.0, 4.0], [3.0, 1.0]
    squares = 0.5 * 3.0**2 + 1.0 * 1.0**2
    neutral = math.sqrt(squares / 1.5)
    got = second_stage(
        candidates(weights), float64([finite[0], broken, finite[1], broken]), 4, seeded(),
        draw=Multinomial(),
    )  # fmt: skip
    same = second_stage(
        candidates(weights), float64([finite[0], neutral, finite[1], neutral]), 4, seeded(),
        draw=Multinomial(),
    )  # fmt: skip
    assert (got.quarantined, same.quarantined) == (2, 0)
    assert torch.equal(got.positions, same.positions)
    torch.testing.assert_close(got.weights, same.weights, rtol=1e-12, atol=0)


def test_the_neutral_score_has_the_least_second_moment_over_the_unknown() -> None:
    u, g = float64([0.5, 2.0, 1.0]), float64([3.0, 1.0, 2.0])

    def price(score: float) -> float:
        return float((u * g.square()).sum() / score + score * u.sum())

    best = min((1 + step / 1000 for step in range(2000)), key=price)
    assert best == pytest.approx(float(((u * g.square()).sum() / u.sum()).sqrt()), abs=1e-3)


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [math.nan] * 3, [0.0, math.inf, 0.0]])
def test_scores_that_say_nothing_leave_the_first_stage_as_it_is(scores: list[float]) -> None:
    """Drawn by ``u``: every example of the population is as likely as every other."""
    weights = [0.5, 2.0, 1.1]
    drawn = second_stage(candidates(weights), float64(scores), 3, seeded(), draw=Multinomial())
    assert drawn.weights.tolist() == pytest.approx([1.2] * 3, rel=1e-12)
    assert drawn.quarantined == sum(not math.isfinite(score) for score in scores)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_the_scale_of_the_scores_does_not_matter(scale: float) -> None:
    first, scores = candidates([0.5, 2.0, 1.0, 1.5]), float64([1.0, 4.0, 2.0, math.nan])
    got = second_stage(first, scale * scores, 2, seeded(3))
    same = second_stage(first, scores, 2, seeded(3))
    assert torch.equal(got.positions, same.positions)
    torch.testing.assert_close(got.weights, same.weights, rtol=1e-12, atol=0)


def test_low_precision_scores_keep_float64_weights() -> None:
    first = candidates([0.5, 2.0, 1.0])
    drawn = second_stage(first, torch.ones(3, dtype=torch.bfloat16), 2, seeded())
    assert drawn.weights.dtype == torch.float64


@pytest.mark.parametrize(
    ("weights", "scores", "size", "uniform", "message"),
    [
        ([1.0, 1.0], [1.0, 2.0, 3.0], 1, 0.1, "3 scores for 2 candidates"),
        ([1.0, 1.0], [1.0, 2.0], 3, 0.1, "cannot draw 3 of 2"),
        ([1.0, 1.0], [1.0, 2.0], 1, 0.0, r"uniform=0\.0, expected a share in \(0, 1\]"),
        ([1.0, 1.0], [1.0, 2.0], 1, math.nan, "uniform=nan"),
        ([1.0, 1.0], [1.0, -2.0], 1, 0.1, "1 of 2 scores are negative"),
        ([], [], 1, 0.1, "no scores"),
    ],
)
def test_wrong_input_is_refused(
    weights: list[float], scores: list[float], size: int, uniform: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        second_stage(candidates(weights), float64(scores), size, seeded(), uniform)


def test_a_first_stage_of_random_size_is_refused() -> None:
    first = Poisson().draw(float64([1.0, 1.0, 1.0, 9.0]), 2, seeded(0))
    assert len(first.positions) != 2
    with pytest.raises(UsageError, match="draw the first stage with a fixed size"):
        second_stage(first, torch.ones(len(first.positions)), 1, seeded())


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"received ratio 0\.5, expected at least 1"):
        two_stage_ratio_capped(torch.ones(2), float64([1.0, 1.0]), 0.5)
    with pytest.raises(UsageError, match=r"received uniform=0\.0, expected a share"):
        two_stage_ratio_capped(torch.ones(2), float64([1.0, 1.0]), 2.0, 0.0)
    with pytest.raises(UsageError, match="received first_ratio 0, expected a finite number"):
        two_stage_ratio(0, 2.0, 64, 2.0)
    with pytest.raises(UsageError, match=r"received tau 0\.5, expected at least 1"):
        two_stage_beats_table(0.1, 1.0, 0.5)
    with pytest.raises(UsageError, match=r"received ratio 0\.5 and batch 64"):
        two_stage_ratio(1.0, 0.5, 64, 2.0)
    with pytest.raises(UsageError, match=r"received ratio 2\.0 and batch 0"):
        two_stage_ratio(1.0, 2.0, 0, 2.0)
    with pytest.raises(UsageError, match="received cost_ratio -1"):
        two_stage_beats_table(-1, 1.0, 2.0)
