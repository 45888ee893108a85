"""Traces from drawn batches: their expectations by enumeration, and how well they are known."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import stratified_law
from gradsift.errors import UsageError
from gradsift.monitors.averages import Estimate
from gradsift.monitors.recovered import SMALLEST_GAP, RecoveredShare
from gradsift.monitors.sampled import (
    TraceAverage,
    jackknife,
    mean_square_of_draws,
    sampled_trace_stratified,
    sampled_trace_without_replacement,
    sampled_traces,
)
from gradsift.monitors.traces import population_traces, stratified_trace
from gradsift.sampling.draws import Multinomial, Systematic
from gradsift.sampling.inclusion import capped_inclusion
from test_traces import GRADIENTS, SCORES, cloud, mean_square

NORMS = GRADIENTS.norm(dim=1)
P = SCORES / SCORES.sum()
WEIGHTS = 1 / (len(P) * P)


def batch_square(places: list[int]) -> float:
    weighted = WEIGHTS[places].unsqueeze(1) * GRADIENTS[places]
    return float(weighted.mean(0).square().sum())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_traces_of_independent_draws_are_unbiased(size: int) -> None:
    """Over every outcome of the draw: uniform, drawn and ``‖μ‖²``; the ideal one is too large."""
    uniform, drawn, ideal, signal, alone = (0.0 for _ in range(5))
    for outcome in itertools.product(range(len(P)), repeat=size):
        places = list(outcome)
        probability = float(P[places].prod())
        square = mean_square_of_draws(NORMS[places], WEIGHTS[places], batch_square(places))
        found = sampled_traces(NORMS[places], WEIGHTS[places], size, square)
        uniform += probability * found.uniform
        drawn += probability * found.drawn
        ideal += probability * found.ideal
        signal += probability * square
        alone += probability * batch_square(places)
    exact = population_traces(NORMS, SCORES, mean_square(GRADIENTS))
    assert signal == pytest.approx(mean_square(GRADIENTS), rel=1e-11)
    assert uniform == pytest.approx(exact.uniform, rel=1e-11)
    assert drawn == pytest.approx(exact.drawn, rel=1e-11)
    assert alone == pytest.approx(mean_square(GRADIENTS) + exact.drawn / size, rel=1e-11)
    assert ideal > exact.ideal


def test_the_debiased_signal_is_the_textbook_formula() -> None:
    places = [0, 3, 3, 1]
    weighted = WEIGHTS[places].unsqueeze(1) * GRADIENTS[places]
    mean = weighted.mean(0)
    spread = sum(float((row - mean).square().sum()) for row in weighted)
    expected = float(mean.square().sum()) - spread / (4 * 3)
    found = mean_square_of_draws(NORMS[places], WEIGHTS[places], float(mean.square().sum()))
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_simple_random_sample_is_unbiased() -> None:
    n, size = 6, 3
    gradients = cloud(n)
    inclusion = torch.full((size,), size / n, dtype=torch.float64)
    outcomes = [list(places) for places in itertools.combinations(range(n), size)]
    estimates = torch.stack([gradients[places].mean(0) for places in outcomes])
    exact = float((estimates - gradients.mean(0)).square().sum(1).mean())
    found = [
        sampled_trace_without_replacement(gradients[places], inclusion, n) for places in outcomes
    ]
    assert math.fsum(found) / len(found) == pytest.approx(exact, rel=1e-12)


def test_a_systematic_sample_is_within_a_few_percent_and_the_formula_with_replacement_is_not() -> (
    None
):
    gradients, generator = cloud(), torch.Generator().manual_seed(1)
    scores, size, n = gradients.norm(dim=1).sqrt(), 20, 60
    inclusion = capped_inclusion(scores, size)
    true, right, wrong = [], [], []
    for _ in range(400):
        drawn = Systematic().draw(scores, size, generator)
        rows, weights = gradients[drawn.positions], drawn.weights
        weighted = weights.unsqueeze(1) * rows
        estimate = weighted.mean(0)
        true.append(float((estimate - gradients.mean(0)).square().sum()))
        right.append(sampled_trace_without_replacement(rows, inclusion[drawn.positions], n))
        wrong.append(float((weighted - estimate).square().sum()) / (size * (size - 1)))
    assert np.mean(right) == pytest.approx(np.mean(true), rel=0.1)
    assert np.mean(wrong) > 1.25 * np.mean(true)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_pairs_of_slots_are_too_large_by_the_difference_of_their_means(size: int) -> None:
    laws = stratified_law(P, size)
    weighted = WEIGHTS.unsqueeze(1) * GRADIENTS
    means = [(law.unsqueeze(1) * weighted).sum(0) for law in laws]
    expected = 0.0
    for outcome in itertools.product(range(len(P)), repeat=size):
        probability = math.prod(float(law[i]) for law, i in zip(laws, outcome, strict=True))
        if probability > 0:
            places = list(outcome)
            found = sampled_trace_stratified(GRADIENTS[places], WEIGHTS[places])
            expected += probability * found
    exact = stratified_trace(GRADIENTS, P, size)
    assert expected >= exact * (1 - 1e-12)
    if size % 2 == 0:
        pairs = zip(means[::2], means[1::2], strict=True)
        between = sum(float((one - other).square().sum()) for one, other in pairs)
        assert expected == pytest.approx(exact + between / size**2, rel=1e-11)


def test_one_draw_tells_no_spread() -> None:
    one = torch.ones(1)
    with pytest.raises(UsageError, match="received 1 draws"):
        mean_square_of_draws(one, one, 1.0)
    with pytest.raises(UsageError, match="received 1 draws"):
        sampled_trace_without_replacement(one.unsqueeze(1), one, 3)
    with pytest.raises(UsageError, match="received 1 draws"):
        sampled_trace_stratified(one.unsqueeze(1), one)


def test_a_sample_that_is_everything_has_no_variance() -> None:
    assert sampled_trace_without_replacement(GRADIENTS, torch.ones(5), 5) == 0.0


@functools.cache
def filled(batches: int, size: int = 16, seed: int = 0) -> TraceAverage:
    average, generator = TraceAverage(window=batches), torch.Generator().manual_seed(seed)
    gradients = cloud()
    scores = gradients.norm(dim=1).sqrt()
    for _ in range(batches):
        drawn = Multinomial().draw(scores, size, generator)
        rows = gradients[drawn.positions]
        square = float((drawn.weights.unsqueeze(1) * rows).mean(0).square().sum())
        norms = rows.norm(dim=1)
        signal = mean_square_of_draws(norms, drawn.weights, square)
        average.add(norms, drawn.weights, size, signal)
    return average


def truth() -> dict[str, float]:
    gradients = cloud()
    found = population_traces(
        gradients.norm(dim=1), gradients.norm(dim=1).sqrt(), mean_square(gradients)
    )
    names = ("uniform", "drawn", "ideal", "second_moment_ratio", "variance_ratio")
    return {name: getattr(found, name) for name in names}


@pytest.mark.parametrize("name", list(truth()))
def test_the_average_finds_the_truth_within_its_interval(name: str) -> None:
    found: Estimate = getattr(filled(200), name)
    assert abs(found.value - truth()[name]) < 3 * found.standard_error
    assert found.standard_error < 0.2 * found.value


@pytest.mark.slow
@pytest.mark.parametrize("name", list(truth()))
def test_the_standard_error_is_that_of_many_repetitions(name: str) -> None:
    found: list[Estimate] = [getattr(filled(40, seed=seed), name) for seed in range(30)]
    spread = float(np.std([estimate.value for estimate in found], ddof=1))
    claimed = float(np.mean([estimate.standard_error for estimate in found]))
    assert claimed == pytest.approx(spread, rel=0.4)


def test_only_the_latest_batches_count_and_broken_ones_do_not() -> None:
    average, w = TraceAverage(window=3), torch.ones(2)
    for scale in (100.0, 1.0, 2.0, 3.0):
        average.add(scale * torch.ones(2), w, 2, 0.0)
    average.add(torch.tensor([math.nan, 1.0]), w, 2, 0.0)
    assert average.batches == 3
    assert average.uniform.value == pytest.approx((1 + 4 + 9) / 3)
    assert math.isnan(TraceAverage().uniform.value)
    with pytest.raises(UsageError, match="window 1"):
        TraceAverage(window=1)


@given(values=st.lists(st.floats(-9, 9), min_size=2, max_size=9))
@settings(derandomize=True, max_examples=50, deadline=None)
def test_the_jackknife_of_a_mean_is_its_standard_error(values: list[float]) -> None:
    rows = np.array(values).reshape(-1, 1)
    found = jackknife(rows, lambda means: means[:, 0])
    assert found.value == pytest.approx(np.mean(values), abs=1e-12)
    expected = np.std(values, ddof=1) / math.sqrt(len(values))
    assert found.standard_error == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_jackknife_of_a_ratio_agrees_with_a_loop() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 1.0], [2.0, 5.0], [4.0, 4.0]])
    left_out = []
    for k in range(4):
        rest = np.delete(rows, k, axis=0)
        left_out.append(rest[:, 0].sum() / rest[:, 1].sum())
    expected = math.sqrt(3 / 4 * sum((value - np.mean(left_out)) ** 2 for value in left_out))
    found = jackknife(rows, lambda means: means[:, 0] / means[:, 1])
    assert found.standard_error == pytest.approx(expected, rel=1e-12)
    alone = jackknife(np.array([[1.0, 0.0], [1.0, 1.0]]), lambda means: means[:, 0] / means[:, 1])
    assert alone.standard_error == math.inf


def test_the_recovered_share_is_a_ratio_of_sums_of_checkpoints_with_a_gap() -> None:
    share = RecoveredShare()
    assert math.isnan(share.estimate.value)
    share.add(10.0, 7.0, 4.0)
    assert share.estimate == Estimate(0.5, math.inf)
    share.add(1.0, 0.5, 0.5)
    share.add(1.0, 0.0, 1.0 - 0.9 * SMALLEST_GAP)
    share.add(math.inf, 1.0, 1.0)
    share.add(2.0, math.inf, 1.0)
    share.add(0.0, 0.0, 0.0)
    assert (share.checkpoints, share.left_out) == (2, 4)
    assert share.estimate.value == pytest.approx((3.0 + 0.5) / (6.0 + 0.5))
    with pytest.raises(UsageError, match="above the uniform"):
        share.add(1.0, 1.0, 2.0)


def test_ideal_is_one_uniform_zero_and_worse_is_negative() -> None:
    gradients = cloud()
    norms = gradients.norm(dim=1)
    for scores, low, high in ((norms, 1.0, 1.0), (norms.square(), 0.0, 0.0), (1 / norms, -99, 0)):
        found = population_traces(norms, scores, mean_square(gradients))
        share = RecoveredShare()
        share.add(found.uniform, found.drawn, found.ideal)
        assert low - 1e-9 <= share.estimate.value <= high + 1e-9


def test_mean_gradients_cancel_in_the_recovered_share() -> None:
    shares = []
    for signal in (0.0, 0.5):
        share = RecoveredShare()
        share.add(10.0 - signal, 7.0 - signal, 4.0 - signal)
        shares.append(share.estimate.value)
    assert shares[0] == shares[1]
