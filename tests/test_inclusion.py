"""Inclusion probabilities: the constant is exact, at every scale and for every size."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import CASES, float64, score_set
from gradsift.errors import UsageError
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.quarantine import clean


def slow_inclusion(scores: list[float], size: float) -> list[float]:
    """Caps whatever passes one and shares out the rest again, in rational arithmetic."""
    values = [Fraction(score) for score in scores]
    capped: set[int] = set()
    while True:
        free = [place for place in range(len(values)) if place not in capped]
        total = sum((values[place] for place in free), Fraction(0))
        room = Fraction(size) - len(capped)
        over = {place for place in free if room * values[place] > total}
        if not over:
            shares = {place: room * values[place] / total for place in free}
            return [float(shares.get(place, Fraction(1))) for place in range(len(values))]
        capped |= over


def check(scores: torch.Tensor, size: float) -> None:
    inclusion = capped_inclusion(scores, size)
    expected = slow_inclusion(clean(scores).values.tolist(), size)
    torch.testing.assert_close(inclusion, float64(expected), rtol=1e-12, atol=0)
    assert float(inclusion.sum()) == pytest.approx(size, rel=1e-12)
    assert bool((inclusion > 0).all())
    assert bool((inclusion <= 1).all())


@pytest.mark.parametrize(("name", "size"), CASES)
def test_small_sets_agree_with_rational_arithmetic(name: str, size: int) -> None:
    check(score_set(name), size)


@given(
    scores=st.lists(
        st.one_of(
            st.floats(min_value=0.0, max_value=1e300),
            st.sampled_from([0.0, 1e-300, 1.0, 2.0, 1e300]),
        ),
        min_size=1,
        max_size=30,
    ),
    share=st.floats(0.01, 1.0),
    whole=st.booleans(),
)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_any_scores_and_sizes_agree_with_rational_arithmetic(
    scores: list[float], share: float, whole: bool
) -> None:
    size = share * len(scores)
    check(float64(scores), max(1, round(size)) if whole else size)


@given(
    n=st.integers(100, 5000),
    share=st.floats(0.001, 1.0),
    spread=st.floats(0.0, 20.0),
    seed=st.integers(0, 1000),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_large_sets_are_proportional_below_one_and_sum_to_the_size(
    n: int, share: float, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = (spread * torch.randn(n, dtype=torch.float64, generator=generator)).exp()
    size = max(1, round(share * n))
    inclusion = capped_inclusion(scores, size)
    assert float(inclusion.sum()) == pytest.approx(size, rel=1e-12)
    values = clean(scores).values
    open_ = inclusion < 1
    if bool(open_.any()):
        constants = inclusion[open_] / (values[open_] / values.max())
        assert float(constants.max() / constants.min()) == pytest.approx(1.0, rel=1e-12)
        capped = values[~open_] / values.max() * constants.max()
        assert bool((capped >= 1 - 1e-9).all())


def test_the_whole_set_is_certain() -> None:
    for name in ("ties", "zero", "dominant", "broken"):
        assert capped_inclusion(score_set(name), 4).tolist() == [1.0] * 4


def test_ties_share_equally() -> None:
    assert capped_inclusion(torch.full((8,), 3.7), 2).tolist() == [0.25] * 8


def test_one_dominant_score_is_certain_and_the_others_share_the_rest() -> None:
    inclusion = capped_inclusion(float64([1.0, 1.0, 1e300, 1.0]), 2)
    torch.testing.assert_close(inclusion, float64([1 / 3, 1 / 3, 1.0, 1 / 3]), rtol=1e-12, atol=0)


def test_a_size_of_one_is_the_proportional_distribution() -> None:
    scores = score_set("five")
    torch.testing.assert_close(
        capped_inclusion(scores, 1), scores / scores.sum(), rtol=1e-12, atol=0
    )


def test_rounding_never_passes_one() -> None:
    scores = [7.0, 3.0, 3.0, 1.0, 1.0, 0.8474203232281154, 15.847420323228116]
    assert float(capped_inclusion(float64(scores), 2).max()) == 1.0


def test_a_million_scores_keep_their_sum() -> None:
    scores = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)) ** 4
    assert float(capped_inclusion(scores, 1000).sum()) == pytest.approx(1000, rel=1e-12)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (5, "cannot draw 5 of 4 candidates: draw at most 4"),
        (4.5, "cannot draw 4.5 of 4 candidates"),
        (0, "cannot draw 0 of 4 candidates: expected a size of at least 1"),
        (-3, "cannot draw -3 of 4 candidates: expected a size of at least 1"),
        (math.nan, "cannot draw nan of 4 candidates"),
    ],
)
def test_sizes_out_of_range_are_refused(size: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        capped_inclusion(torch.ones(4), size)
