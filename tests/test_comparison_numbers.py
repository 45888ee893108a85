"""Seconds to a target, paired ratios and their intervals, against slow twins."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from comparisons import QUIET, SUMMARY, lines
from gradsift.comparison.estimates import against, half_width, ratio
from gradsift.comparison.targets import first_reached, with_targets
from gradsift.report.compared import Measured
from gradsift.report.runs import Run


def slow_first_reached(times, values, target):
    """Walks along the curve in a hundred thousand steps of its logarithm."""
    for place in range(len(values)):
        if values[place] <= target:
            if place == 0:
                return times[0]
            share = np.linspace(0, 1, 100_001)
            curve = values[place - 1] * (values[place] / values[place - 1]) ** share
            first = share[np.argmax(curve <= target * (1 + 1e-12))]
            return times[place - 1] + first * (times[place] - times[place - 1])
    return None


@given(
    values=st.lists(st.floats(1e-3, 10), min_size=2, max_size=6),
    target=st.floats(1e-3, 10),
)
def test_the_first_crossing_agrees_with_a_walk_along_the_curve(values, target):
    times = [3.0 * place for place in range(len(values))]
    found, slow = first_reached(times, values, target), slow_first_reached(times, values, target)
    assert (found is None) == (slow is None) == (min(values) > target)
    if found is not None and slow is not None:
        assert found == pytest.approx(slow, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        ([1.0, 0.5], 0.5, 10.0),
        ([1.0, 0.5], 1.0, 0.0),
        ([1.0, 0.5, 1.0, 0.1], 0.5, 10.0),
        ([1.0, 0.0], 0.25, 7.5),
        ([1.0, 0.0], 0.0, 10.0),
        ([0.0, 0.0], 0.0, 0.0),
        ([1.0, 0.5], 0.4, None),
        ([], 0.4, None),
    ],
)
def test_crossings_at_the_edges(values, target, expected):
    times = [10.0 * place for place in range(len(values))]
    assert first_reached(times, values, target) == expected


def t_quantile(degrees):
    """The 97.5 % point of Student's t, by integrating its density and bisection."""
    constant = math.gamma((degrees + 1) / 2) / (
        math.sqrt(degrees * math.pi) * math.gamma(degrees / 2)
    )

    def above_zero(end):
        grid = np.linspace(0, end, 200_001)
        return np.trapezoid(constant * (1 + grid**2 / degrees) ** (-(degrees + 1) / 2), grid)

    low, high = 0.0, 50.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if above_zero(middle) < 0.475 else (low, middle)
    return low


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_interval_is_that_of_student(count):
    values = [math.sin(place) for place in range(count)]
    error = np.std(values, ddof=1) / math.sqrt(count)
    assert half_width(values) == pytest.approx(t_quantile(count - 1) * error, rel=1e-6)


def test_one_value_has_no_interval():
    assert half_width([0.3]) is None
    found = ratio([0.5], [1.0])
    assert (found.value, found.low, found.high) == (0.5, None, None)


@given(st.lists(st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)), min_size=2, max_size=6))
def test_a_ratio_turns_over_with_its_arms_and_knows_no_unit(both):
    first, second = zip(*both, strict=True)
    found, turned = ratio(first, second), ratio(second, first)
    scaled = ratio([7 * value for value in first], [7 * value for value in second])
    assert found.low is not None
    assert found.high is not None
    assert turned.high is not None
    assume(found.low > 1e-300 and found.high < 1e300)
    assert found.value == pytest.approx(1 / turned.value)
    assert found.low == pytest.approx(1 / turned.high, rel=1e-6)
    assert found.low <= found.value * (1 + 1e-9)
    assert found.value <= found.high * (1 + 1e-9)
    assert scaled.value == pytest.approx(found.value)
    assert scaled.high == pytest.approx(found.high, rel=1e-6)


def test_a_zero_makes_a_difference_out_of_a_ratio():
    found = ratio([0.0, 0.02, 0.01], [0.01, 0.03, 0.01])
    assert (found.kind, found.each) == ("difference", pytest.approx((-0.01, -0.01, 0.0)))
    half = half_width([-0.01, -0.01, 0.0])
    assert half is not None
    assert found.value == pytest.approx(-0.02 / 3)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))


def test_an_interval_of_two_pairs_far_apart_is_written_down_all_the_same():
    found = ratio([1e-150, 1e150], [1.0, 1.0])
    assert (found.low, found.high) == (0.0, pytest.approx(math.exp(700)))


def test_the_interval_covers_as_often_as_it_says():
    """5,000 A/A comparisons of five pairs each: 1 is inside in 95 % of them."""
    draws = np.random.default_rng(0).normal(0, 0.3, size=(5000, 2, 5))
    inside = 0
    for arm, reference in np.exp(draws):
        found = ratio(arm.tolist(), reference.tolist())
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 1 <= found.high
    assert inside / 5000 == pytest.approx(0.95, abs=0.01)


def measured(arm, seed, **changes):
    summary = replace(SUMMARY, seed=seed, **changes)
    return Measured(arm, seed, f"{arm}/seed-{seed}", None, QUIET, Run(summary, lines(summary)))


def test_targets_are_those_of_the_reference_with_the_same_seed():
    runs = [
        measured("a", 0, train_loss=0.1),
        measured("b", 0, train_loss=0.01),
        measured("a", 1, train_loss=0.01),
        measured("b", 1, train_loss=0.1),
        measured("b", 2, train_loss=0.1),
    ]
    found = with_targets(runs, "a")
    seconds = [run.seconds_to_train_loss for run in found]
    assert seconds[:3] == pytest.approx([10.0, 5.0, 10.0])
    assert seconds[3:] == [None, None]
    assert found[1].seconds_to_test_error == pytest.approx(10.0)
    assert [run.seconds_to_test_error for run in found][4] is None


def test_pairs_are_those_of_seeds_that_both_have():
    reference = [measured("a", 0, train_loss=0.1), measured("a", 2, train_loss=0.3)]
    arm = [measured("b", seed, train_loss=0.2) for seed in (0, 1, 2)]
    found = against(arm, reference)["train_loss"]
    assert found is not None
    assert found.each == pytest.approx((2.0, 2 / 3))
    assert against(arm[1:2], reference)["train_loss"] is None


def test_a_target_that_one_pair_missed_gives_no_ratio():
    runs = [
        *(measured("a", seed, train_loss=0.1) for seed in (0, 1)),
        measured("b", 0, train_loss=0.01),
        measured("b", 1, train_loss=0.2),
    ]
    found = with_targets(runs, "a")
    assert [run.seconds_to_train_loss for run in found[2:]] == [pytest.approx(5.0), None]
    estimates = against(found[2:], found[:2])
    assert estimates["seconds_to_train_loss"] is None
    assert estimates["train_loss"] is not None


def test_a_failed_run_is_no_pair():
    failed = Measured("b", 0, "b/seed-0", "not finite", QUIET, None)
    assert set(against([failed], [measured("a", 0)]).values()) == {None}
