"""Spending a gain, against enumerated batches of a tiny quadratic."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from enumeration import float64
from gradsift.errors import UsageError
from gradsift.monitors.spending import (
    equal_noise_batch,
    fastest_batch,
    kept_step_gain,
    lr_factor,
    noise_scale,
    progress,
)

CURVATURE = 0.7
CENTRES = float64([3.0, 0.5, -1.0, 0.4, 0.8, -0.3]).reshape(3, 2)
"""Example ``i`` has the loss ``h/2`` times the squared distance to ``a_i``; parameters are zero."""

GRADIENTS = -CURVATURE * CENTRES
SIGNAL = float(GRADIENTS.mean(0).square().sum())
UNIFORM = float64([1.0, 1.0, 1.0]) / 3
FITTING = GRADIENTS.norm(dim=1) / GRADIENTS.norm(dim=1).sum()
PROPOSALS = {
    "fitting": FITTING,
    "mixed": (FITTING + UNIFORM) / 2,
    "stale": float64([0.2, 0.3, 0.5]),
}


def estimates(p: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Every batch with replacement: its probability and its gradient."""
    batches = torch.tensor(list(itertools.product(range(len(p)), repeat=size)))
    weights = 1 / (len(p) * p[batches])
    return p[batches].prod(1), (weights[:, :, None] * GRADIENTS[batches]).mean(1)


def enumerated_noise(p: Tensor, size: int) -> float:
    probabilities, found = estimates(p, size)
    return float(probabilities @ found.square().sum(1)) - SIGNAL


def second_moment(p: Tensor) -> float:
    """``E[w² g²]`` of one drawn example."""
    return float((GRADIENTS.square().sum(1) / (len(p) ** 2 * p)).sum())


def mean_losses(parameters: Tensor) -> Tensor:
    """For every row of parameters."""
    return CURVATURE / 2 * (parameters[:, None] - CENTRES).square().sum(2).mean(1)


def best_step(p: Tensor, size: int) -> tuple[float, float]:
    """The step that lowers the mean loss most over all batches, by thirds; and by how much."""
    probabilities, found = estimates(p, size)
    start = float(mean_losses(torch.zeros(1, 2, dtype=torch.float64)))

    def decrease(step: float) -> float:
        return start - float(probabilities @ mean_losses(-step * found))

    low, high = 0.0, 2 / CURVATURE
    for _ in range(60):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (left, high) if decrease(left) < decrease(right) else (low, right)
    return low, decrease(low)


def variance_ratio(p: Tensor) -> float:
    return enumerated_noise(UNIFORM, 1) / enumerated_noise(p, 1)


B_N = enumerated_noise(UNIFORM, 1) / SIGNAL


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_smaller_batch_is_as_noisy_as_the_uniform_one(name: str, batch: int) -> None:
    p = PROPOSALS[name]
    exact = equal_noise_batch(batch, second_moment(p), second_moment(UNIFORM), SIGNAL)
    noise = enumerated_noise(p, 2) * 2 / exact
    assert noise == pytest.approx(enumerated_noise(UNIFORM, batch), rel=1e-12)
    assert exact == pytest.approx(batch / variance_ratio(p), rel=1e-12)


def test_a_worse_draw_needs_a_larger_batch_and_an_even_one_the_same() -> None:
    assert equal_noise_batch(64, drawn=6.0, uniform=4.0, mean_square=0.0) == 96.0
    assert equal_noise_batch(64, drawn=4.0, uniform=4.0, mean_square=1.0) == 64.0
    assert equal_noise_batch(64, drawn=1.0, uniform=4.0, mean_square=1.0) == 0.0


@pytest.mark.parametrize(
    ("drawn", "uniform", "mean_square", "expected"),
    [(2.0, 4.0, -1.0, 32.0), (2.0, 4.0, 3.0, 64.0), (2.0, 1.0, 1.5, 64.0), (0.0, 0.0, 0.0, 64.0)],
)
def test_estimates_that_contradict_each_other_leave_the_batch(
    drawn: float, uniform: float, mean_square: float, expected: float
) -> None:
    assert equal_noise_batch(64, drawn, uniform, mean_square) == expected


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize("fixed", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_the_fastest_batch_makes_most_progress_per_second(name: str, fixed: float) -> None:
    """All batches of up to four draws are enumerated, at the step best for uniform ones."""
    p, batch, sizes = PROPOSALS[name], 4, [1, 2, 3, 4]
    step, _ = best_step(UNIFORM, batch)
    speeds = {}
    for size in sizes:
        probabilities, found = estimates(p, size)
        start = float(mean_losses(torch.zeros(1, 2, dtype=torch.float64)))
        decrease = start - float(probabilities @ mean_losses(-step * found))
        quiet = enumerated_noise(p, size) <= enumerated_noise(UNIFORM, batch)
        speeds[size] = decrease / (fixed + (1 - fixed) * size / batch) if quiet else -math.inf
    equal = equal_noise_batch(batch, second_moment(p), second_moment(UNIFORM), SIGNAL)
    expected = max(sizes, key=lambda size: (speeds[size], size))
    assert fastest_batch(batch, equal, B_N, fixed, sizes) == expected


@pytest.mark.parametrize("scale", [0.5, 64.0, math.inf])
@pytest.mark.parametrize(
    ("equal", "quiet"),
    [(0.0, 8), (8.0, 8), (8.000000001, 8), (8.1, 16), (31.9, 32), (63.0, 64), (1e9, 64)],
)
def test_seconds_in_proportion_take_the_next_larger_size(
    equal: float, quiet: int, scale: float
) -> None:
    assert fastest_batch(64, equal, scale, 0.0, range(8, 65, 8)) == quiet
    assert fastest_batch(64, equal, scale, -0.2, [64, 8, 32, 16, 24, 40, 48, 56]) == quiet
    assert fastest_batch(64, equal, scale, 1.2, range(8, 65, 8)) == 64


def test_an_infinite_batch_gets_the_largest() -> None:
    assert fastest_batch(64, math.inf, 64.0, 0.0, (8, 16)) == 16


def test_the_noise_scale_of_a_population() -> None:
    trace = float((GRADIENTS - GRADIENTS.mean(0)).square().sum(1).mean())
    assert noise_scale(trace, SIGNAL) == pytest.approx(B_N, rel=1e-12)
    assert noise_scale(-0.1, 1.0) == 0.0
    assert noise_scale(1.0, 0.0) == noise_scale(1.0, -0.5) == math.inf


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize("size", [1, 2])
def test_progress_is_the_decrease_of_the_best_step(name: str, size: int) -> None:
    p = PROPOSALS[name]
    _, drawn = best_step(p, size)
    _, one = best_step(UNIFORM, 1)
    exact = progress(variance_ratio(p), B_N, size)
    assert exact == pytest.approx(drawn / one, rel=1e-9)
    assert drawn == pytest.approx(
        SIGNAL**2 / (2 * CURVATURE * (SIGNAL + enumerated_noise(p, size))), rel=1e-9
    )


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize("size", [1, 4])
def test_the_factor_is_the_quotient_of_the_best_steps(name: str, size: int) -> None:
    p = PROPOSALS[name]
    ratio = variance_ratio(p)
    quotient = best_step(p, size)[0] / best_step(UNIFORM, size)[0]
    rule = progress(ratio, B_N, size) / progress(1.0, B_N, size)
    assert rule == pytest.approx(quotient, rel=1e-6)
    bounded = max(1.0, min(rule, math.sqrt(ratio)))
    assert lr_factor(size, ratio, B_N, cap=100.0) == pytest.approx(bounded, rel=1e-12)


def test_both_bounds_of_the_step_bind() -> None:
    assert lr_factor(64, 9.0, math.inf, cap=100.0) == 3.0
    assert lr_factor(64, 9.0, math.inf) == 2.0
    assert lr_factor(64, 9.0, 0.0) == 1.0
    assert lr_factor(64, 9.0, 6.4) == pytest.approx(1.1 / (1 + 0.1 / 9), rel=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_nothing_is_spent_where_nothing_is_known_to_be_gained(ratio: float) -> None:
    assert all(lr_factor(64, ratio, scale) == 1.0 for scale in (0.0, 64.0, math.inf))
    assert progress(0.0, 0.0, 64) == progress(0.0, 64.0, 64) == progress(0.0, math.inf, 64) == 0.0


@pytest.mark.parametrize("limit", [1e14, 1e300])
def test_without_a_signal_progress_is_its_limit(limit: float) -> None:
    for ratio, batch in itertools.product([0.5, 2.0], [1, 64]):
        expected = progress(ratio, math.inf, batch)
        assert progress(ratio, limit, batch) == pytest.approx(expected, rel=1e-9)
    assert lr_factor(64, 2.0, limit, 9.0) == pytest.approx(lr_factor(64, 2.0, math.inf, 9.0))


@given(
    ratio=st.floats(0.1, 50.0), scale=st.floats(0.0, 1e6), batch=st.integers(1, 4096)
)  # fmt: skip
@settings(derandomize=True, max_examples=100, deadline=None)
def test_progress_and_step_lie_between_their_limits(ratio: float, scale: float, batch: int) -> None:
    low, high = sorted((1.0, batch * ratio))
    assert low * (1 - 1e-12) <= progress(ratio, scale, batch) <= high * (1 + 1e-12)
    factor = lr_factor(batch, ratio, scale)
    assert 1 <= factor <= max(1.0, min(2.0, math.sqrt(ratio)))


def test_equal_noise_is_equal_progress() -> None:
    p = PROPOSALS["stale"]
    smaller = equal_noise_batch(64, second_moment(p), second_moment(UNIFORM), SIGNAL)
    assert progress(variance_ratio(p), B_N, smaller) == pytest.approx(
        progress(1.0, B_N, 64), rel=1e-12
    )


def excess_loss(step: float, noise: float, steps: int) -> float:
    """The expected loss of a quadratic from 1, ``noise`` being the trace of one batch."""
    loss = 1.0
    for _ in range(steps):
        loss = (1 - step) ** 2 * loss + step**2 / 2 * noise
    return loss


def test_at_twice_the_cost_a_gain_of_two_pays_only_where_noise_dominates() -> None:
    """A small unchanged step: half as many steps of less noise, against the twin's whole run."""
    step, steps, ratio = 0.005, 200, 2.16
    quiet = excess_loss(step, 1e-9, steps // 2) / excess_loss(step, 1e-9, steps)
    noisy = excess_loss(step, 1e3, 4000) / excess_loss(step, 1e3 / ratio, 2000)
    assert quiet == pytest.approx(math.e, rel=0.01)
    assert noisy == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize("ratio", [0.4, 1.0, 1.5, 6.0])
@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
def test_the_gain_of_an_unchanged_step_is_that_of_one_step(ratio: float, noise: float) -> None:
    """Twin: the mean decrease of one step on ``θ²/2`` from 1, at the step that suits uniform."""
    step = 1 / (1 + noise)
    uniform, drawn = (0.5 - excess_loss_from_one(step, noise / r) for r in (1.0, ratio))
    assert kept_step_gain(ratio, 64 * noise, 64) == pytest.approx(drawn / uniform, rel=1e-9)


def excess_loss_from_one(step: float, noise: float) -> float:
    return ((1 - step) ** 2 + step**2 * noise) / 2


def test_the_limits_of_the_gain_of_an_unchanged_step() -> None:
    assert kept_step_gain(4.0, math.inf, 64) == 1.75
    assert kept_step_gain(4.0, 1e12, 64) == pytest.approx(1.75)
    assert kept_step_gain(4.0, 0.0, 64) == kept_step_gain(0.0, 0.0, 64) == 1.0
    assert kept_step_gain(0.0, 1.0, 64) == -math.inf


NAN = math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: equal_noise_batch(0, 1.0, 1.0, 0.0), "received batch 0, expected a finite"),
        (lambda: equal_noise_batch(8, NAN, 1.0, 0.0), "received drawn moment nan"),
        (lambda: equal_noise_batch(8, 1.0, -1.0, 0.0), r"received uniform moment -1\.0"),
        (lambda: equal_noise_batch(8, 1.0, 1.0, NAN), "received mean_square nan"),
        (lambda: fastest_batch(8, NAN, 1.0, 0.5, [8]), "received equal nan and fixed 0"),
        (lambda: fastest_batch(8, 4.0, 1.0, NAN, [8]), "received equal 4.0 and fixed nan"),
        (lambda: fastest_batch(8, 4.0, NAN, 0.5, [8]), "noise_scale nan"),
        (
            lambda: fastest_batch(8, 4.0, 1.0, 0.5, []),
            r"received sizes \[\], expected at least one",
        ),
        (lambda: fastest_batch(8, 4.0, 1.0, 0.5, [0, 8]), r"received sizes \[0, 8\]"),
        (lambda: noise_scale(NAN, 1.0), "received trace nan"),
        (lambda: noise_scale(1.0, NAN), "received mean_square nan"),
        (lambda: lr_factor(64, 2.0, 1.0, cap=0.5), r"received cap 0\.5, expected at least 1"),
        (lambda: lr_factor(64, -1.0, 1.0), r"received ratio -1\.0 and noise_scale"),
        (lambda: progress(NAN, 1.0, 64), "received ratio nan and"),
        (lambda: progress(2.0, -1.0, 64), r"and noise_scale -1\.0, expected"),
        (lambda: progress(2.0, NAN, 64), "and noise_scale nan"),
        (lambda: kept_step_gain(NAN, 1.0, 64), "received ratio nan and"),
        (lambda: kept_step_gain(2.0, 1.0, 0), "received batch 0"),
    ],
)
def test_numbers_out_of_range_are_refused(call: Callable[[], float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
