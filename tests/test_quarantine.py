"""Cleaned scores: finite, positive, in order, counted, at every scale."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import float64
from gradsift.errors import UsageError
from gradsift.sampling.quarantine import FLOOR, clean, neutralise

any_score = st.one_of(
    st.floats(min_value=0.0, max_value=1.7e308),
    st.sampled_from([0.0, 1e-300, 1e300, 5e-324, math.nan, math.inf, -math.inf]),
)


def slow_clean(scores: list[float]) -> list[float]:
    """Loops; for scores of ordinary scale."""
    known = [score for score in scores if math.isfinite(score)]
    if not known or max(known) == 0:
        return [1.0] * len(scores)
    neutral = math.sqrt(sum(score**2 for score in known) / len(known))
    filled = [score if math.isfinite(score) else neutral for score in scores]
    floor = 0.0
    for _ in range(50):
        floor = FLOOR * math.fsum(max(score, floor) for score in filled) / len(filled)
    return [max(score, floor) for score in filled]


@pytest.mark.parametrize(
    "scores",
    [
        [1.0, 2.0, 3.0],
        [0.0, 2.0, 0.0, 4.0],
        [1e-9, 1.0, 0.0],
        [math.nan, 1.0, 7.0, math.inf],
        [math.nan, 0.0, 3.0],
        [0.0, 0.0],
        [math.nan, math.inf],
        [math.nan, 0.0],
        [5.0],
    ],
)
def test_agrees_with_a_loop(scores: list[float]) -> None:
    cleaned = clean(float64(scores))
    torch.testing.assert_close(
        cleaned.values, float64(slow_clean(scores)), rtol=1e-12, atol=0, check_dtype=True
    )
    assert cleaned.quarantined == sum(not math.isfinite(score) for score in scores)


def test_good_scores_are_untouched() -> None:
    scores = float64([0.1, 1 / 3, 1e5])
    assert torch.equal(clean(scores).values, scores)


def test_neutralise_keeps_zeros_and_fills_with_the_root_mean_square() -> None:
    filled = neutralise(float64([0.0, 2.0, math.nan, -math.inf]))
    assert filled.values.tolist() == pytest.approx([0.0, 2.0, math.sqrt(2), math.sqrt(2)], 1e-15)
    assert filled.quarantined == 2


@given(scores=st.lists(any_score, min_size=1, max_size=20))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_always_positive_finite_ordered_and_idempotent(scores: list[float]) -> None:
    values = clean(float64(scores)).values
    assert bool(torch.isfinite(values).all())
    assert bool((values > 0).all())
    relative = values / values.max()
    assert bool((relative >= FLOOR * relative.mean() * (1 - 1e-12)).all())
    finite = [place for place, score in enumerate(scores) if math.isfinite(score)]
    by_score = sorted(finite, key=lambda place: scores[place])
    assert bool((values[by_score].diff() >= 0).all())
    again = clean(values)
    torch.testing.assert_close(again.values, values, rtol=1e-12, atol=0)
    assert again.quarantined == 0


@given(
    scores=st.lists(st.floats(0.01, 100.0), min_size=2, max_size=8), power=st.integers(-250, 250)
)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_the_scale_does_not_matter(scores: list[float], power: int) -> None:
    scale = 2.0**power
    plain = clean(float64([*scores, 0.0, math.nan])).values
    scaled = clean(float64([*(score * scale for score in scores), 0.0, math.nan])).values
    torch.testing.assert_close(scaled / scale, plain, rtol=1e-12, atol=0)


def test_squares_and_sums_of_huge_scores_do_not_overflow() -> None:
    values = clean(float64([1.7e308, 1.7e308, math.nan, 0.0])).values
    assert values[2] == pytest.approx(1.7e308 * math.sqrt(2 / 3), rel=1e-12)
    assert values[3] == pytest.approx(FLOOR * 1.7e308 / 4 * (2 + math.sqrt(2 / 3)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type_becomes_float64_on_the_cpu(dtype: torch.dtype) -> None:
    scores = torch.tensor([0.0, 1.5, torch.inf], dtype=dtype, requires_grad=True)
    cleaned = clean(scores)
    assert cleaned.values.dtype == torch.float64
    assert not cleaned.values.requires_grad
    assert cleaned.values[1] == 1.5
    assert cleaned.quarantined == 1


def test_the_input_is_not_written_to() -> None:
    scores = float64([0.0, math.nan, 1.0])
    clean(scores)
    assert scores[0] == 0.0
    assert bool(scores[1].isnan())


def test_negative_scores_are_refused_with_count_position_and_value() -> None:
    with pytest.raises(UsageError, match=r"2 of 4 scores.*position 1 is -0\.5; expected .* >= 0"):
        clean(float64([1.0, -0.5, math.nan, -3.0]))


def test_no_scores_are_refused() -> None:
    with pytest.raises(UsageError, match="no scores, expected at least one"):
        clean(float64([]))
