"""Calibration by the whole population and by jackknife loops; noise over all pairs of batches."""

import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from enumeration import float64
from gradsift.errors import UsageError
from gradsift.monitors.averages import Estimate
from gradsift.monitors.calibration import Calibration, Noise, noise_of_pair

probes_of = st.lists(
    st.lists(st.tuples(*[st.floats(0.1, 9.0)] * 3), min_size=1, max_size=5),
    min_size=2,
    max_size=8,
)


def slow_factor(probes: list[list[tuple[float, float, float]]]) -> float:
    rows = [row for probe in probes for row in probe]
    uniform = math.fsum(w * g * g for s, g, w in rows) / math.fsum(w * s * s for s, g, w in rows)
    drawn = math.fsum((w * g) ** 2 for s, g, w in rows) / math.fsum(
        (w * s) ** 2 for s, g, w in rows
    )
    return uniform / drawn


def filled(probes: list[list[tuple[float, float, float]]], window: int = 256) -> Calibration:
    calibration = Calibration(window)
    for probe in probes:
        scores, norms, weights = zip(*probe, strict=True)
        calibration.add(float64(scores), float64(norms), float64(weights))
    return calibration


@given(probes=probes_of)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_factor_and_jackknife_are_loops(probes: list[list[tuple[float, float, float]]]) -> None:
    found = filled(probes).factor
    assert found.value == pytest.approx(slow_factor(probes), rel=1e-12)
    n = len(probes)
    replicates = [slow_factor(probes[:k] + probes[k + 1 :]) for k in range(n)]
    centre = math.fsum(replicates) / n
    variance = (n - 1) / n * math.fsum((value - centre) ** 2 for value in replicates)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-6, abs=1e-9)


def test_the_ratio_of_a_whole_population_is_that_of_its_gradients() -> None:
    """As many copies as the draw makes on average: sums are expectations."""
    scores, norms = [0.5, 2.0, 1.0], [0.2, 3.0, 1.5]
    copies = [1, 3, 2]
    p = [count / 6 for count in copies]
    weights = [1 / (3 * probability) for probability in p]
    ids = [i for i, count in enumerate(copies) for _ in range(count)]
    probe = [(scores[i], norms[i], weights[i]) for i in ids]

    def ratio(values: list[float]) -> float:
        uniform = math.fsum(value**2 for value in values) / 3
        drawn = math.fsum(value**2 / q for value, q in zip(values, p, strict=True)) / 9
        return uniform / drawn

    found = filled([probe, probe]).of_gradients(Estimate(ratio(scores), 0.0))
    assert found.value == pytest.approx(ratio(norms), rel=1e-12)
    assert found.standard_error == pytest.approx(0.0, abs=1e-12)
    assert ratio(norms) != pytest.approx(ratio(scores), rel=0.01)


def test_scores_in_proportion_to_the_norms_need_no_calibration() -> None:
    probes = [[(0.3, 0.9, 2.0), (0.5, 1.5, 0.2)], [(1.0, 3.0, 1.0)], [(0.1, 0.3, 4.0)]]
    found = filled(probes).factor
    assert found.value == pytest.approx(1.0, rel=1e-14)
    assert found.standard_error == pytest.approx(0.0, abs=1e-14)


def test_relative_errors_add_in_squares() -> None:
    calibration = filled([[(1.0, 1.0, 1.5), (1.0, 2.0, 0.5)], [(1.0, 1.0, 1.0), (1.0, 2.5, 0.7)]])
    factor, ratio = calibration.factor, Estimate(2.0, 0.3)
    found = calibration.of_gradients(ratio)
    relative = math.sqrt(0.15**2 + (factor.standard_error / factor.value) ** 2)
    assert found.value == pytest.approx(2 * factor.value)
    assert found.standard_error == pytest.approx(relative * found.value, rel=1e-12)


def test_before_two_probes_nothing_is_claimed() -> None:
    probe = [(1.0, 2.0, 1.0), (0.5, 3.0, 2.0)]
    assert Calibration().factor == Estimate(1.0, math.inf)
    assert filled([probe]).factor == Estimate(1.0, math.inf)
    assert filled([probe]).of_gradients(Estimate(2.0, 0.1)) == Estimate(2.0, math.inf)
    assert filled([probe, probe]).factor.standard_error == 0.0


def test_zeros_and_what_is_not_finite() -> None:
    zeros, probe = [(0.0, 0.0, 1.0)] * 2, [(1.0, 2.0, 1.0), (0.5, 3.0, 2.0)]
    assert filled([zeros, zeros]).factor == Estimate(1.0, math.inf)
    alone = filled([zeros, probe]).factor
    assert alone.value == pytest.approx(slow_factor([probe]))
    assert alone.standard_error == math.inf
    broken = filled([probe, [(1.0, math.nan, 1.0)], [(math.inf, 1.0, 1.0)], probe])
    assert broken.probes == 2
    assert broken.factor.value == pytest.approx(slow_factor([probe]))


def test_the_latest_probes_count_and_the_state_goes_on() -> None:
    probes = [[(1.0, 1.0 + k, 1.5), (2.0, 1.0, 0.5)] for k in range(6)]
    windowed = filled(probes, window=3)
    assert windowed.probes == 3
    assert windowed.factor == filled(probes[3:]).factor
    resumed = filled(probes[:2], window=3)
    resumed.load_state_dict(filled(probes[:4], window=3).state_dict())
    for probe in probes[4:]:
        scores, norms, weights = (float64(column) for column in zip(*probe, strict=True))
        resumed.add(scores, norms, weights)
    assert resumed.factor == windowed.factor


def test_probes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="received 2 scores, 2 norms and 3 weights"):
        inspect.unwrap(Calibration.add)(Calibration(), torch.ones(2), torch.ones(2), torch.ones(3))
    with pytest.raises(UsageError, match="received window 1"):
        Calibration(window=1)


GRADIENTS = float64([1.0, 0.5, -2.0, 0.3, 0.4, 2.0]).reshape(3, 2)


def mean_gradient(batch: tuple[int, ...], weights: Tensor) -> list[Tensor]:
    """In two tensors, as a model has several parameters."""
    ids = list(batch)
    mean = (weights[ids, None] * GRADIENTS[ids]).mean(0)
    return [mean[:1], mean[1:].reshape(1, 1)]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("p", [[1 / 3, 1 / 3, 1 / 3], [0.2, 0.7, 0.1]])
def test_noise_and_signal_are_unbiased_over_all_pairs_of_batches(size: int, p: list[float]) -> None:
    weights = 1 / (3 * float64(p))
    trace = signal = 0.0
    batches = list(itertools.product(range(3), repeat=size))
    for first, second in itertools.product(batches, repeat=2):
        probability = math.prod(p[i] for i in first + second)
        pair = mean_gradient(first, weights), mean_gradient(second, weights)
        found = noise_of_pair(*pair, size)
        trace += probability * found[0]
        signal += probability * found[1]
    mean = GRADIENTS.mean(0)
    each = weights[:, None] * GRADIENTS
    exact = float((float64(p) * (each - mean).square().sum(1)).sum())
    assert trace == pytest.approx(exact, rel=1e-12)
    assert signal == pytest.approx(float(mean.square().sum()), rel=1e-12)


def test_the_noise_scale_is_the_ratio_of_explicit_averages() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(4, generator=generator) + 2, torch.randn(4, generator=generator) + 2)
        for _ in range(7)
    ]
    noise, ages = Noise(momentum=0.8), [0.8 ** (6 - k) for k in range(7)]
    for first, second in pairs:
        noise.add([first], [second], 16)
    parts = [(first.double(), second.double()) for first, second in pairs]
    traces = [8 * float((a - b).square().sum()) for a, b in parts]
    signals = [float(a @ b) for a, b in parts]
    trace, signal = (
        math.fsum(age * value for age, value in zip(ages, values, strict=True)) / math.fsum(ages)
        for values in (traces, signals)
    )
    assert noise.pairs == 7
    assert noise.trace == pytest.approx(trace, rel=1e-6)
    assert noise.mean_square == pytest.approx(signal, rel=1e-6)
    assert noise.scale.value == pytest.approx(trace / signal, rel=1e-6)
    assert noise.ratio(16).value == pytest.approx(trace / signal / 16, rel=1e-6)
    assert noise.ratio(16).standard_error == pytest.approx(noise.scale.standard_error / 16)
    resumed = Noise(momentum=0.8)
    resumed.load_state_dict(noise.state_dict())
    assert resumed.scale == noise.scale


def test_without_a_signal_the_scale_is_infinite() -> None:
    noise = Noise()
    assert math.isnan(noise.scale.value)
    for _ in range(3):
        noise.add([float64([1.0, 0.0])], [float64([-1.0, 0.0])], 4)
        assert noise.scale == Estimate(math.inf, math.inf)
    assert noise.mean_square == pytest.approx(-1.0)
    silent = Noise()
    silent.add([torch.zeros(2)], [torch.zeros(2)], 4)
    assert silent.scale == Estimate(math.inf, math.inf)


def test_gradients_that_are_not_finite_are_left_out() -> None:
    noise = Noise()
    noise.add([torch.tensor([1.0, math.inf])], [torch.tensor([1.0, 0.0])], 4)
    assert noise.pairs == 0
    noise.add([torch.tensor([1.0, 1.0])], [torch.tensor([1.0, 0.0])], 4)
    assert noise.scale == Estimate(2.0, math.inf)


def test_low_precision_gradients_are_multiplied_in_full_precision() -> None:
    """The square of 1 + 2^-7, which bfloat16 holds, needs 14 binary places, of which it has 7."""
    near = 1 + 2**-7
    first = torch.tensor([near, 0.0], dtype=torch.bfloat16)
    second = torch.tensor([near, near], dtype=torch.bfloat16)
    assert noise_of_pair([first], [second], 2) == (near**2, near**2)


def test_pairs_that_do_not_fit_are_refused() -> None:
    one, two = [torch.ones(2)], [torch.ones(2), torch.ones(1)]
    with pytest.raises(UsageError, match="received gradients of 1 and 2 tensors and size 4"):
        Noise().add(one, two, 4)
    with pytest.raises(UsageError, match="expected the same shapes"):
        Noise().add(one, [torch.ones(3)], 4)
    with pytest.raises(UsageError, match="size 0"):
        Noise().add(one, one, 0)
