"""Running ratios, against lists of batches with explicit weights and a numeric delta method."""

import io
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsift.errors import UsageError
from gradsift.monitors import averages
from gradsift.monitors.averages import Estimate, RatioAverage

Batches = list[tuple[float, float]]
WIDTH, POWERS = 3, np.array([1.0, 2.0, 0.5])


def explicit_weights(count: int, momentum: float) -> list[float]:
    """Of every batch, the oldest first; their sum is one."""
    raw = [(1 - momentum) * momentum ** (count - 1 - place) for place in range(count)]
    return [weight / math.fsum(raw) for weight in raw]


def slow_means(batches: Batches, momentum: float) -> list[float]:
    weights = explicit_weights(len(batches), momentum)
    return [
        math.fsum(w * b[side] for w, b in zip(weights, batches, strict=True)) for side in (0, 1)
    ]


def slow_size(count: int, momentum: float) -> float:
    weights = explicit_weights(count, momentum)
    return math.fsum(weights) ** 2 / math.fsum(weight**2 for weight in weights)


def slope(function: Callable[[float, float], float], at: list[float], side: int) -> float:
    """A derivative by differences that are exact to about 1e-10."""
    step = 1e-4 * at[side]
    shifts = {1: 2 / 3, 2: -1 / 12}
    total = 0.0
    for sign, (times, share) in itertools.product((1, -1), shifts.items()):
        moved = list(at)
        moved[side] += sign * times * step
        total += sign * share * function(*moved)
    return total / step


def slow_correlation(batches: Batches, momentum: float, gradient: list[float]) -> float:
    """Of neighbouring residuals, whose means are those of all batches."""
    means = slow_means(batches, momentum)
    residuals = [
        math.fsum(d * (value - mean) for d, value, mean in zip(gradient, batch, means, strict=True))
        for batch in batches
    ]
    pairs = itertools.pairwise(residuals)
    weights = explicit_weights(len(batches), momentum)
    later = explicit_weights(len(batches) - 1, momentum)
    variance = math.fsum(w * e * e for w, e in zip(weights, residuals, strict=True))
    covariance = math.fsum(w * a * b for w, (a, b) in zip(later, pairs, strict=True))
    return min(max(covariance / variance, 0.0), 0.95)


def slow_error(batches: Batches, momentum: float, power: float) -> float:
    """The delta method: gradient, covariance matrix, effective number, autocorrelation."""
    means = slow_means(batches, momentum)
    gradient = [slope(lambda x, y: x / y**power, means, side) for side in (0, 1)]
    weights = explicit_weights(len(batches), momentum)
    variance = math.fsum(
        weight * gradient[i] * gradient[j] * (batch[i] - means[i]) * (batch[j] - means[j])
        for weight, batch in zip(weights, batches, strict=True)
        for i, j in itertools.product((0, 1), repeat=2)
    )
    r = slow_correlation(batches, momentum, gradient)
    spread = variance / (slow_size(len(batches), momentum) - 1)
    return math.sqrt(spread * (1 + r) / (1 - r))


def filled(batches: Batches, momentum: float, power: float = 1.0) -> RatioAverage:
    average = RatioAverage(1, momentum, power)
    for top, bottom in batches:
        average.add(top, bottom)
    return average


def normal_batches(seed: int, count: int) -> np.ndarray:
    return np.exp(0.7 * np.random.default_rng(seed).standard_normal((count, 2, WIDTH)))


@given(seed=st.integers(0, 10_000), count=st.integers(2, 25), momentum=st.floats(0.05, 0.995))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_the_average_is_that_of_the_list(seed: int, count: int, momentum: float) -> None:
    average = RatioAverage(WIDTH, momentum, POWERS)
    numbers = normal_batches(seed, count)
    for top, bottom in numbers:
        average.add(top, bottom)
    assert average.batches == count
    assert average.effective_batches == pytest.approx(slow_size(count, momentum), rel=1e-10)
    for k, power in enumerate(POWERS.tolist()):
        batches = [(float(x[k]), float(y[k])) for x, y in numbers]
        top, bottom = slow_means(batches, momentum)
        assert average.means[:, k] == pytest.approx([top, bottom], rel=1e-12)
        assert average.value[k] == pytest.approx(top / bottom**power, rel=1e-12)
        expected = slow_error(batches, momentum, power)
        assert average.standard_error[k] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("momentum", [0.3, 0.9])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_squared_error_of_a_mean_is_unbiased(
    momentum: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over every sequence of independent batches, with nothing believed about correlation."""
    monkeypatch.setattr(averages, "LARGEST_CORRELATION", 0.0)
    law = {1.0: 0.2, 2.0: 0.5, 7.0: 0.3}
    values, squares, mean = 0.0, 0.0, 0.0
    for sequence in itertools.product(law, repeat=count):
        probability = math.prod(law[value] for value in sequence)
        found = filled([(value, 1.0) for value in sequence], momentum).estimate()
        mean += probability * found.value
        squares += probability * found.value**2
        values += probability * found.standard_error**2
    assert mean == pytest.approx(sum(value * p for value, p in law.items()), rel=1e-12)
    assert values == pytest.approx(squares - mean**2, rel=1e-10)


def test_turned_over_it_has_the_same_relative_error() -> None:
    numbers = normal_batches(3, 12)[:, :, 0].tolist()
    one = filled([(x, y) for x, y in numbers], 0.9).estimate()
    other = filled([(y, x) for x, y in numbers], 0.9).estimate()
    assert one.inverse.value == pytest.approx(other.value, rel=1e-12)
    assert one.inverse.standard_error == pytest.approx(other.standard_error, rel=1e-7)


def test_equal_sides_are_exactly_one_with_no_error() -> None:
    for momentum in (0.5, 0.9, 0.99):
        average = filled([(x, x) for x in (0.1, 0.7, 1 / 3)], momentum)
        assert average.estimate() == Estimate(1.0, 0.0)


def test_one_side_may_be_shared() -> None:
    shared, copied = RatioAverage(WIDTH, 0.9), RatioAverage(WIDTH, 0.9)
    for top, bottom in normal_batches(4, 6):
        shared.add(top, float(bottom[0]))
        copied.add(top, np.full(WIDTH, bottom[0]))
    assert shared.value.tolist() == copied.value.tolist()
    assert shared.standard_error.tolist() == copied.standard_error.tolist()


def test_a_ratio_that_drifts_has_a_larger_error_and_one_that_jumps_no_smaller() -> None:
    def inflation(tops: list[float]) -> float:
        batches = [(top, 1.0) for top in tops]
        plain = math.sqrt(np.var(tops) / (slow_size(len(tops), 0.9999) - 1))
        return filled(batches, 0.9999).estimate().standard_error / plain

    assert inflation([1.0 + k for k in range(100)]) == pytest.approx(math.sqrt(1.95 / 0.05), 1e-2)
    assert inflation([1.0, 2.0] * 50) == pytest.approx(1.0, rel=1e-2)
    blocks = [float(k // 5 % 2) + 1 for k in range(100)]
    assert 1.5 < inflation(blocks) < 3


def test_what_is_not_known_is_said() -> None:
    empty = RatioAverage(2)
    assert np.isnan(empty.value).all()
    assert np.isnan(empty.means).all()
    assert empty.standard_error.tolist() == [math.inf] * 2
    assert empty.effective_batches == 0.0
    one = filled([(3.0, 2.0)], 0.9)
    assert one.estimate() == Estimate(1.5, math.inf)
    assert (one.lower[0], one.upper[0]) == (-math.inf, math.inf)
    assert filled([(3.0, 2.0)] * 9, 0.0).estimate() == Estimate(1.5, math.inf)


@pytest.mark.parametrize("bottoms", [(0.0, 0.0), (-1.0, -2.0), (-3.0, 1.0)])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_bottom_that_is_not_above_zero_tells_nothing(
    bottoms: tuple[float, float], power: float
) -> None:
    found = filled([(1.0, bottom) for bottom in bottoms], 0.9, power).estimate()
    assert math.isnan(found.value)
    assert found.standard_error == math.inf


def test_tops_that_are_all_zero_are_a_fact() -> None:
    assert filled([(0.0, 1.0), (0.0, 2.0)], 0.9).estimate() == Estimate(0.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_numbers_that_are_not_finite_are_left_out_and_counted(bad: float) -> None:
    batches = [(1.0, 2.0), (3.0, 1.0), (2.0, 2.0)]
    clean, broken = filled(batches, 0.9), RatioAverage(1, 0.9)
    for top, bottom in batches:
        broken.add(top, bad)
        broken.add(top, bottom)
        broken.add(bad, bottom)
    assert (broken.batches, broken.skipped) == (3, 6)
    assert broken.estimate() == clean.estimate()


def test_the_effective_number_grows_to_its_limit() -> None:
    sizes = [filled([(1.0, 1.0)] * count, 0.9).effective_batches for count in (1, 2, 5, 500)]
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(1.0)
    assert sizes[-1] == pytest.approx(1.9 / 0.1)


def test_it_goes_on_from_its_state_to_the_bit() -> None:
    numbers = normal_batches(5, 9)
    whole, half = RatioAverage(WIDTH, 0.9, POWERS), RatioAverage(WIDTH, 0.9, POWERS)
    for top, bottom in numbers[:4]:
        whole.add(top, bottom)
        half.add(top, bottom)
    half.add(math.nan, 1.0)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed = RatioAverage(WIDTH, 0.9, POWERS)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for top, bottom in numbers[4:]:
        whole.add(top, bottom)
        resumed.add(top, bottom)
    assert resumed.value.tolist() == whole.value.tolist()
    assert resumed.standard_error.tolist() == whole.standard_error.tolist()
    assert (resumed.batches, resumed.skipped) == (9, 1)


def test_a_state_is_a_copy_and_another_kind_of_state_is_refused() -> None:
    average = filled([(1.0, 2.0), (2.0, 2.0)], 0.9)
    state = average.state_dict()
    before = average.estimate()
    average.add(5.0, 1.0)
    for other in (RatioAverage(2, 0.9), RatioAverage(1, 0.8), RatioAverage(1, 0.9, 2.0)):
        with pytest.raises(UsageError, match=r"received the state of 1 ratios with momentum 0\.9"):
            other.load_state_dict(state)
        assert other.batches == 0
    average.load_state_dict(state)
    assert average.estimate() == before


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"received width 0 and momentum 0\.99"):
        RatioAverage(0)
    with pytest.raises(UsageError, match=r"received width 1 and momentum 1\.0"):
        RatioAverage(momentum=1.0)
    with pytest.raises(UsageError, match="received 3 powers, expected one or 2"):
        RatioAverage(2, 0.9, POWERS)
    average = RatioAverage(2)
    with pytest.raises(UsageError, match="received 3 tops and 1 bottoms, expected one or 2"):
        average.add(np.ones(3), 1.0)
    assert average.batches == 0


def test_an_estimate_has_an_interval_and_an_inverse() -> None:
    assert (Estimate(4.0, 0.5).lower, Estimate(4.0, 0.5).upper) == (3.0, 5.0)
    assert Estimate(4.0, 0.5).inverse == Estimate(0.25, 0.03125, (1 / 5, 1 / 3))
    assert Estimate(4.0, 0.5).inverse.inverse.lower == pytest.approx(3.0)
    assert Estimate(0.1, 0.05).inverse.lower == 5.0
    assert Estimate(0.1, 0.06).inverse.upper == math.inf
    assert math.isnan(Estimate(-0.1, 0.01).inverse.value)
    unknown = Estimate(0.0, 0.0).inverse
    assert math.isnan(unknown.value)
    assert unknown.standard_error == math.inf
