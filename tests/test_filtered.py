"""The 2015 draw, against enumeration; and what its filter costs in bias."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsift import ScoreTable, UsageError
from gradsift.sampling.filtered import FilteredWeights

SCORES = st.lists(st.floats(0, 1e6), min_size=1, max_size=8)


@given(SCORES, st.lists(st.booleans(), min_size=8, max_size=8), st.floats(0, 100))
def test_the_law_is_the_published_one(scores: list[float], usable: list[bool], c: float) -> None:
    kept = np.array(usable[: len(scores)])
    if not kept.any():
        with pytest.raises(UsageError, match="no example has a usable score"):
            FilteredWeights(np.array(scores), kept, c)
        return
    weights = FilteredWeights(np.array(scores), kept, c)
    slow = [score + c if use else 0.0 for score, use in zip(scores, kept, strict=True)]
    if math.fsum(slow) == 0:
        slow = [float(use) for use in kept]
    mean = math.fsum(slow) / int(kept.sum())
    for place, value in enumerate(slow):
        assert weights.probabilities[place] == pytest.approx(value / math.fsum(slow), rel=1e-12)
        expected = mean / value if value else math.inf
        assert weights.importance[place] == pytest.approx(expected, rel=1e-12)


def test_draws_follow_the_law_by_integration() -> None:
    """A draw is a step function of its uniform number: each cell is as long as its probability."""
    scores = np.array([0.5, np.nan, 3.0, 1.0, 0.0])
    weights = FilteredWeights(scores, np.array([True, True, True, False, True]), 0.5)
    draw = weights.draw(20_000, torch.Generator().manual_seed(1))
    counts = torch.bincount(draw.positions, minlength=5).double().numpy() / 20_000
    np.testing.assert_allclose(counts, weights.probabilities, atol=0.015)
    assert counts[[1, 3]].tolist() == [0, 0]
    assert torch.equal(draw.weights, torch.from_numpy(weights.importance[draw.positions]))


def expectation(weights: FilteredWeights, values: np.ndarray) -> float:
    """``E[w v]``, exactly: a sum over all examples that can be drawn."""
    return sum(
        float(p * w * v)
        for p, w, v in zip(weights.probabilities, weights.importance, values, strict=True)
        if p > 0
    )


def test_with_everything_usable_it_is_unbiased_and_with_a_filter_it_is_not() -> None:
    values = np.arange(10.0) ** 2
    scores = np.linspace(0, 3, 10)
    everything = FilteredWeights(scores, np.ones(10, dtype=bool), 0.1)
    assert expectation(everything, values) == pytest.approx(values.mean(), rel=1e-12)
    fresh = np.arange(10) >= 8
    filtered = FilteredWeights(scores, fresh, 0.1)
    assert expectation(filtered, values) == pytest.approx(values[8:].mean(), rel=1e-12)
    assert abs(expectation(filtered, values) - values.mean()) > 40


def test_the_neutral_value_stays_unbiased_and_is_that_of_the_unseen() -> None:
    table = ScoreTable(10)
    ids = torch.arange(10)
    table.update(ids, torch.linspace(0, 3, 10), version=4)
    table.forget(torch.arange(8))
    assert table.seen == 2
    assert table.relative(ids[:8]).tolist() == [1.0] * 8
    assert table.ages(ids, 9).tolist() == [-1] * 8 + [5, 5]
    p = table.probabilities(ids)
    values = ids.double() ** 2
    drawn = table.draw(10, torch.Generator().manual_seed(0))
    weight = {int(i): float(w) for i, w in zip(drawn.positions, drawn.weights, strict=True)}
    for i, w in weight.items():
        assert w == pytest.approx(1 / (10 * float(p[i])), rel=1e-12)
    assert float((p * (1 / (10 * p)) * values).sum()) == pytest.approx(float(values.mean()))
    assert float(p.min()) > 0


def test_forgetting_twice_or_unseen_changes_nothing_and_new_scores_are_taken_whole() -> None:
    table = ScoreTable(4, smoothing=0.9)
    table.update(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]), version=1)
    table.forget(torch.tensor([1, 1, 2]))
    table.forget(torch.tensor([1]))
    assert table.seen == 1
    table.update(torch.tensor([1]), torch.tensor([3.0]), version=2)
    assert table.seen == 2
    assert float(table.relative(torch.tensor([1]))) == pytest.approx(3.0 / table.level)
    with pytest.raises(UsageError, match="received id 4"):
        table.forget(torch.tensor([4]))
