"""Prices: expectations over all draws, loops over batches, and every pool of a tiny case."""

import inspect
import io
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from enumeration import float64, poisson_law, stratified_law
from gradsift.errors import UsageError
from gradsift.monitors.averages import RatioAverage
from gradsift.monitors.moments import SecondMoments, tau
from gradsift.monitors.prices import Prices, pool_ratio_measured
from gradsift.monitors.proposals import Proposal, ProposalGrid
from gradsift.sampling.inclusion import capped_inclusion

EXPONENTS, UNIFORMS = (0.5, 0.75, 1.0), (0.2, 0.3, 0.5, 0.7)
GRID = ProposalGrid(EXPONENTS, UNIFORMS)
FRESH = float64([0.3, 2.0, 0.0, 1.1, 5.0])
STALE = float64([1.5, 0.1, 0.4, 0.0, 3.0])
N, SIZE = 5, 2
MEANS = [float((STALE**a).mean()) for a in EXPONENTS]
IN_USE = Proposal(0.75, 0.3)


def slow_density(proposal: Proposal, stale: float, table: Tensor) -> float:
    powers = [value**proposal.exponent for value in table.tolist()]
    relative = stale**proposal.exponent / (math.fsum(powers) / len(powers))
    return (1 - proposal.uniform) * relative + proposal.uniform


def outcomes(kind: str) -> Iterator[tuple[float, list[int], list[float]]]:
    """Probability, examples and weights of everything that a draw of two can be."""
    p = float64([slow_density(IN_USE, s, STALE) / N for s in STALE.tolist()])
    if kind == "poisson":
        inclusion = capped_inclusion(p, SIZE)
        for chosen, probability in poisson_law(inclusion).items():
            yield probability, list(chosen), [SIZE / (N * float(inclusion[i])) for i in chosen]
        return
    slots = p.expand(SIZE, N) if kind == "multinomial" else stratified_law(p, SIZE)
    for chosen in itertools.product(range(N), repeat=SIZE):
        probability = math.prod(float(slots[slot, i]) for slot, i in enumerate(chosen))
        yield probability, list(chosen), [1 / (N * float(p[i])) for i in chosen]


@pytest.mark.parametrize("kind", ["multinomial", "stratified", "poisson"])
def test_every_moment_is_unbiased_over_all_draws(kind: str) -> None:
    uniform, drawn, mean, total = 0.0, 0.0, 0.0, 0.0
    proposals = np.zeros(len(GRID))
    inclusion = torch.zeros(N, dtype=torch.float64)
    for probability, chosen, weights in outcomes(kind):
        batch = GRID.price(FRESH[chosen], STALE[chosen], float64(weights), SIZE, MEANS)
        total += probability
        uniform += probability * batch.uniform
        drawn += probability * batch.drawn
        mean += probability * batch.mean
        proposals += probability * batch.proposals
        for i, weight in zip(chosen, weights, strict=True):
            inclusion[i] += probability * weight**2 * N / SIZE
    squares = FRESH.square()
    assert total == pytest.approx(1.0, rel=1e-13)
    assert uniform == pytest.approx(float(squares.mean()), rel=1e-12)
    assert mean == pytest.approx(float(FRESH.mean()), rel=1e-12)
    assert drawn == pytest.approx(float((squares * inclusion).mean()), rel=1e-12)
    if kind != "poisson":
        p = float64([slow_density(IN_USE, s, STALE) / N for s in STALE.tolist()])
        assert drawn == pytest.approx(float((squares / (N * p)).mean()), rel=1e-12)
    for place, proposal in enumerate(GRID.proposals):
        q = float64([slow_density(proposal, s, STALE) for s in STALE.tolist()])
        assert proposals[place] == pytest.approx(float((squares / q).mean()), rel=1e-12)


def test_the_price_is_that_of_the_distribution_that_the_proposal_stands_for() -> None:
    stale = float64([1.5, 0.1, 0.4, 0.2, 3.0])
    means = [float((stale**a).mean()) for a in EXPONENTS]
    for i, proposal in itertools.product(range(N), GRID.proposals):
        one = slice(i, i + 1)
        batch = GRID.price(float64([1.0]), stale[one], float64([1.0]), 1, means)
        weight = batch.proposals[GRID.place(proposal)]
        p = proposal.distribution.probabilities(stale)
        assert weight == pytest.approx(1 / (N * float(p[i])), rel=1e-12)
        assert weight <= proposal.bound


def random_batches(seed: int, count: int, size: int = 6) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        stale = torch.randn(size, generator=generator, dtype=torch.float64).exp()
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        weights = 1 / float64([slow_density(IN_USE, s, stale) for s in stale.tolist()])
        batches.append((stale * (0.8 * noise).exp(), stale, weights))
    return batches


def filled(prices: Prices, batches: list[tuple[Tensor, Tensor, Tensor]]) -> Prices:
    for fresh, stale, weights in batches:
        means = [float((stale**a).mean()) for a in EXPONENTS]
        prices.add(fresh, stale, weights, len(fresh), means)
    return prices


def slow_moments(
    batches: list[tuple[Tensor, Tensor, Tensor]], momentum: float
) -> tuple[list[float], dict[Proposal, float]]:
    """A, D, E[w g] and every D_c, by loops over batches and examples with explicit weights."""
    ages = [momentum ** (len(batches) - 1 - place) for place in range(len(batches))]
    sums, prices = [0.0, 0.0, 0.0], dict.fromkeys(GRID.proposals, 0.0)
    for age, (fresh, stale, weights) in zip(ages, batches, strict=True):
        for g, s, w in zip(fresh.tolist(), stale.tolist(), weights.tolist(), strict=True):
            share = age / math.fsum(ages) / len(fresh)
            for place, term in enumerate((w * g * g, w * w * g * g, w * g)):
                sums[place] += share * term
            for proposal in prices:
                prices[proposal] += share * w * g * g / slow_density(proposal, s, stale)
    return sums, prices


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), momentum=st.floats(0.3, 0.99))
@settings(derandomize=True, max_examples=15, deadline=None)
def test_the_ratios_are_those_of_loops(seed: int, count: int, momentum: float) -> None:
    batches = random_batches(seed, count)
    prices = filled(Prices(momentum=momentum), batches)
    (uniform, drawn, mean), slow = slow_moments(batches, momentum)
    assert prices.batches == count
    assert prices.drawn.value == pytest.approx(uniform / drawn, rel=1e-10)
    assert prices.ideal.value == pytest.approx(uniform / mean**2, rel=1e-10)
    assert prices.efficiency.value == pytest.approx(mean**2 / drawn, rel=1e-10)
    for proposal, price in slow.items():
        assert prices.ratio(proposal).value == pytest.approx(uniform / price, rel=1e-10)


def test_the_proposal_in_use_has_the_ratio_of_the_draw() -> None:
    prices = filled(Prices(momentum=0.9), random_batches(1, 8))
    expected = prices.ratio(IN_USE)
    assert prices.drawn.value == pytest.approx(expected.value, rel=1e-12)
    assert prices.drawn.standard_error == pytest.approx(expected.standard_error, rel=1e-6)


def test_uniform_costs_exactly_one_and_no_proposal_passes_the_ideal() -> None:
    prices = filled(Prices(uniforms=(0.5, 1.0), momentum=0.9), random_batches(2, 30))
    flat = prices.ratio(Proposal(0.5, 1.0))
    assert flat.value == pytest.approx(1.0, rel=1e-14)
    assert flat.standard_error < 1e-7
    whole = Prices(momentum=0.9)
    for _ in range(3):
        whole.add(FRESH, STALE, torch.ones(N), N, MEANS)
    assert whole.ideal.value == pytest.approx(tau(FRESH) ** 2, rel=1e-12)
    assert all(whole.ratio(proposal).value < whole.ideal.value for proposal in GRID.proposals)


@given(seed=st.integers(0, 10_000), start=st.integers(0, len(GRID) - 1), steps=st.integers(0, 3))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_the_better_proposal_is_that_of_a_search(seed: int, start: int, steps: int) -> None:
    """Against one running mean of the difference for every near proposal, one after the other."""
    batches = random_batches(seed, 6)
    prices = filled(Prices(momentum=0.9), batches)
    current = GRID.proposals[start]
    expected, lowest = current, math.inf
    for proposal in GRID.proposals:
        far = abs(EXPONENTS.index(proposal.exponent) - EXPONENTS.index(current.exponent)) > steps
        if far or abs(UNIFORMS.index(proposal.uniform) - UNIFORMS.index(current.uniform)) > steps:
            continue
        difference = RatioAverage(momentum=0.9)
        for batch in batches:
            (uniform, _, _), slow = slow_moments([batch], 0.9)
            difference.add(slow[proposal] - slow[current], uniform)
        price = 1 / prices.ratio(proposal).value
        if float(difference.upper[0]) < -1e-6 and price < lowest:
            expected, lowest = proposal, price
    assert prices.better(current, steps) == expected


def test_equal_prices_move_nothing() -> None:
    prices = Prices(momentum=0.9)
    for scale in (1.0, 2.0, 0.5):
        prices.add(
            scale * FRESH, torch.full((N,), 0.3), torch.ones(N), N, [0.3**a for a in EXPONENTS]
        )
    assert all(prices.better(proposal) == proposal for proposal in GRID.proposals)


STALE_OF_FOUR = float64([0.1, 0.1, 0.1, 3.7])
SHARP, FLAT = Proposal(1.0, 0.2), Proposal(1.0, 0.9)


def two_proposals(batches: list[Tensor]) -> Prices:
    prices = Prices(exponents=(1.0,), uniforms=(0.2, 0.9), momentum=0.99)
    for fresh in batches:
        prices.add(fresh, STALE_OF_FOUR, torch.ones(4), 4, [1.0])
    return prices


def test_a_proposal_that_is_good_on_average_and_uncertain_is_not_taken() -> None:
    """Two batches in which scores predict, one in which they mislead: cheaper, but who knows."""
    right, wrong = float64([0.1, 0.1, 0.1, 3.7]), float64([2.2, 0.1, 0.1, 0.1])
    prices = two_proposals([right, wrong, right])
    assert prices.ratio(SHARP).value > prices.ratio(FLAT).value
    assert prices.better(FLAT) == FLAT
    assert prices.better(SHARP) == SHARP


def test_an_uncertain_price_is_no_reason_to_leave_a_proposal() -> None:
    """In every batch the sharp proposal is cheaper, here by little and there by much."""
    little, much = float64([1.0, 1.0, 1.0, 4.05]), 0.6 * float64([0.1, 0.1, 0.1, 3.7])
    prices = two_proposals([little, little, much, much])
    upper = {
        proposal: 1 / found.value + 2 * found.standard_error / found.value**2
        for proposal in (SHARP, FLAT)
        for found in [prices.ratio(proposal)]
    }
    assert upper[SHARP] > upper[FLAT]
    assert prices.ratio(SHARP).value > prices.ratio(FLAT).value
    assert prices.better(SHARP) == SHARP


def test_a_certain_gain_is_taken_in_both_directions() -> None:
    right, wrong = float64([0.1, 0.1, 0.1, 3.7]), float64([2.2, 0.1, 0.1, 0.1])
    assert two_proposals([right, 1.2 * right, right]).better(FLAT) == SHARP
    assert two_proposals([wrong, 1.2 * wrong, wrong]).better(SHARP) == FLAT


@pytest.mark.parametrize("batches", [0, 1])
def test_too_few_batches_move_nothing(batches: int) -> None:
    prices = filled(Prices(), random_batches(0, batches))
    assert all(prices.better(proposal) == proposal for proposal in GRID.proposals)
    assert prices.ratio(IN_USE).standard_error == math.inf


def test_scores_that_are_all_zero_tell_nothing_and_break_nothing() -> None:
    prices = Prices(momentum=0.9)
    for _ in range(3):
        prices.add(torch.zeros(N), STALE, torch.ones(N), N, MEANS)
    for found in (prices.drawn, prices.ideal, prices.efficiency, prices.ratio(IN_USE)):
        assert math.isnan(found.value)
        assert found.standard_error == math.inf
    assert prices.better(IN_USE) == IN_USE


def test_a_batch_of_zeros_and_an_empty_one_add_zeros() -> None:
    (batch,) = random_batches(3, 1)
    zeros = (torch.zeros(6).double(), batch[1], batch[2])
    with_zeros = filled(Prices(momentum=0.5), [batch, zeros])
    with_none = filled(Prices(momentum=0.5), [batch])
    none = torch.zeros(0, dtype=torch.float64)
    with_none.add(none, none, none, 6, MEANS)
    assert with_zeros.batches == with_none.batches == 2
    assert with_zeros.ratio(IN_USE) == with_none.ratio(IN_USE)
    assert with_zeros.drawn == with_none.drawn


def test_a_table_of_zeros_proposes_uniform_draws() -> None:
    batch = GRID.price(FRESH, torch.zeros(N), torch.ones(N), N, [0.0, 0.0, 0.0])
    assert batch.proposals == pytest.approx([batch.uniform] * len(GRID), rel=1e-14)
    underflown = GRID.price(FRESH, STALE, torch.ones(N), N, [MEANS[0], MEANS[1], 0.0])
    expected = GRID.price(FRESH, STALE, torch.ones(N), N, MEANS).proposals.reshape(-1, 3)
    assert underflown.proposals.reshape(-1, 3)[:, :2].tolist() == expected[:, :2].tolist()
    assert underflown.proposals[2::3] == pytest.approx([batch.uniform] * len(UNIFORMS), rel=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_fresh_score_that_is_not_finite_counts_as_the_root_mean_square(bad: float) -> None:
    weights = float64([0.5, 2.0, 1.0, 3.0, 0.7])
    fresh = FRESH.clone()
    fresh[1] = bad
    kept = [0, 2, 3, 4]
    square = math.fsum(float(weights[i] * FRESH[i] ** 2) for i in kept)
    repaired = FRESH.clone()
    repaired[1] = math.sqrt(square / math.fsum(float(weights[i]) for i in kept))
    found = GRID.price(fresh, STALE, weights, N, MEANS)
    expected = GRID.price(repaired, STALE, weights, N, MEANS)
    assert (found.quarantined, expected.quarantined) == (1, 0)
    assert found.proposals == pytest.approx(expected.proposals, rel=1e-14)
    assert found.drawn == pytest.approx(expected.drawn, rel=1e-14)


def test_a_batch_without_a_finite_score_is_left_out_and_counted() -> None:
    batches = random_batches(4, 3)
    prices = filled(Prices(), batches)
    before = prices.ratio(IN_USE)
    prices.choose(IN_USE)
    prices.add(torch.full((6,), math.nan), *batches[0][1:], 6, MEANS)
    prices.add(float64([1e200] * 6), *batches[0][1:], 6, MEANS)
    assert prices.ratio(IN_USE) == before
    assert (prices.batches, prices.quarantined) == (3, 6)
    assert math.isnan(prices.after_choice.value)


def test_the_price_after_the_choice_is_that_of_later_batches() -> None:
    batches = random_batches(5, 12)
    prices = Prices(momentum=0.9)
    assert math.isnan(filled(prices, batches[:4]).after_choice.value)
    chosen, other = Proposal(1.0, 0.3), Proposal(1.0, 0.5)
    prices.choose(chosen)
    assert math.isnan(prices.after_choice.value)
    filled(prices, batches[4:7])
    prices.choose(chosen)
    filled(prices, batches[7:9])
    later = filled(Prices(momentum=0.9), batches[4:9]).ratio(chosen)
    assert prices.after_choice.value == pytest.approx(later.value, rel=1e-12)
    assert prices.after_choice.standard_error == pytest.approx(later.standard_error, rel=1e-12)
    prices.choose(other)
    assert math.isnan(prices.after_choice.value)
    last = filled(Prices(momentum=0.9), batches[9:]).ratio(other)
    assert filled(prices, batches[9:]).after_choice.value == pytest.approx(last.value, rel=1e-12)


def test_low_precision_scores_are_read_and_kept_apart_from_their_graph() -> None:
    fresh = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    batch = GRID.price(fresh, torch.ones(2), torch.ones(2), 2, [1.0, 1.0, 1.0])
    assert (batch.uniform, batch.drawn, batch.mean) == (2.5, 2.5, 1.5)


def test_it_goes_on_from_its_state_to_the_bit() -> None:
    batches = random_batches(6, 9)
    whole, resumed = Prices(momentum=0.9), Prices(momentum=0.9)
    filled(whole, batches[:3]).choose(IN_USE)
    filled(whole, batches[3:6])
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for prices in (whole, resumed):
        filled(prices, batches[6:])
    for read in (lambda p: p.ratio(IN_USE), lambda p: p.after_choice, lambda p: p.efficiency):
        assert read(resumed) == read(whole)
    assert (resumed.batches, resumed.quarantined) == (9, 0)
    with pytest.raises(UsageError, match="received the prices of the grid"):
        Prices(exponents=(1.0,)).load_state_dict(whole.state_dict())


def test_what_does_not_fit_is_refused() -> None:
    prices, ones = Prices(), torch.ones(N)
    unchecked = inspect.unwrap(ProposalGrid.price)
    with pytest.raises(UsageError, match="received 5 fresh scores, 4 stale ones, 5 weights"):
        unchecked(GRID, FRESH, STALE[:4], ones, N, MEANS)
    with pytest.raises(UsageError, match="5 weights and size 0"):
        prices.add(FRESH, STALE, ones, 0, MEANS)
    with pytest.raises(UsageError, match="received 2 mean powers, expected 3"):
        prices.add(FRESH, STALE, ones, N, MEANS[:2])
    assert prices.batches == 0
    stranger = Proposal(0.6, 0.2)
    for call in (prices.ratio, prices.better, prices.choose):
        with pytest.raises(UsageError, match=r"received Proposal\(exponent=0\.6, uniform=0\.2\)"):
            call(stranger)
    for exponents, uniforms in (((1.0, 0.5), UNIFORMS), (EXPONENTS, ()), (EXPONENTS, (0.2, 0.2))):
        with pytest.raises(UsageError, match="expected at least one number, rising"):
            Prices(exponents, uniforms)
    with pytest.raises(UsageError, match=r"expected a share in \(0, 1\]"):
        Prices(uniforms=(0.0, 1.0))


POOLED = torch.tensor([[1.0, 0.5], [-2.0, 0.3], [0.4, 0.1], [0.6, -0.9]], dtype=torch.float64)
POOLED = POOLED - POOLED.mean(0)
POOL = 3


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_measured_pool_ratio_is_that_of_every_pool(exponent: float, size: int) -> None:
    """All pools with replacement, all draws out of each: moments as measured, variance as it is."""
    norms = POOLED.norm(dim=1)
    uniform, drawn, second = 0.0, 0.0, 0.0
    for pool in itertools.product(range(len(POOLED)), repeat=POOL):
        powers = norms[list(pool)] ** exponent
        p = powers / powers.sum()
        for chosen in itertools.product(range(POOL), repeat=size):
            places = list(chosen)
            probability = float(p[places].prod()) / len(POOLED) ** POOL
            ids, w = [pool[place] for place in places], 1 / (POOL * p[places])
            uniform += probability * float((w * norms[ids] ** 2).mean())
            drawn += probability * float((w * norms[ids]).square().mean())
            estimate = (w[:, None] * POOLED[ids]).mean(0)
            second += probability * float(estimate.square().sum())
    exact = float(norms.square().mean()) / size / second
    moments = SecondMoments(uniform=uniform, drawn=drawn, ideal=0.0)
    assert pool_ratio_measured(moments, size, POOL) == pytest.approx(exact, rel=1e-12)
    assert size == 1 or moments.ratio > 1.2 * exact


def test_a_pool_without_scores_or_examples() -> None:
    assert math.isnan(pool_ratio_measured(SecondMoments(0.0, 0.0, 0.0), 2, 4))
    with pytest.raises(UsageError, match="received size 0 and pool 4"):
        pool_ratio_measured(SecondMoments(1.0, 1.0, 1.0), 0, 4)
