"""What was measured becomes offers: seconds add up, ratios agree with their formulas."""

import math
from typing import Any

import pytest
import torch

from gradsift.gate import MeasuredGate
from gradsift.monitors.averages import Estimate
from gradsift.monitors.variance import pool_ratio_capped
from gradsift.sampling.two_stage import two_stage_ratio_capped
from gradsift.sifting.evidence import PAIRS, RATIOS, Evidence, shrunk

TWO = Estimate(2.0, 0.1)


def timed(evidence: Evidence, source: str, seconds: float, loading: float = 0.0) -> None:
    for _ in range(16):
        evidence.times.add(source, seconds)
        evidence.loading.add(source, loading)


def test_nothing_is_offered_before_a_plain_step_was_timed() -> None:
    assert Evidence().offers("off", 64, TWO) == []


def test_a_table_offers_its_price_and_its_work() -> None:
    evidence = Evidence()
    timed(evidence, "off", 1.0)
    evidence.drawing.add(0.02)
    evidence.observing.add(0.03)
    plain, table = evidence.offers("off", 64, TWO)
    assert (plain.source, plain.seconds, plain.variance_ratio) == ("off", 1.0, 1.0)
    assert (table.source, table.variance_ratio, table.lower) == ("table", 2.0, 1.8)
    assert table.seconds == pytest.approx(1.05)


def test_plain_steps_of_long_ago_give_way_to_the_present_ones() -> None:
    """The machine got slower: what a plain step would take now is this step less its own work."""
    evidence = Evidence()
    timed(evidence, "off", 1.0)
    timed(evidence, "table", 3.0)
    evidence.observing.add(0.25)
    plain, table = evidence.offers("table", 64, TWO)
    assert (plain.seconds, table.seconds) == (2.75, 3.0)


def test_fetching_single_ids_may_be_slower() -> None:
    evidence = Evidence()
    timed(evidence, "off", 1.0, loading=0.1)
    timed(evidence, "table", 1.5, loading=0.6)
    plain, table = evidence.offers("off", 64, TWO)
    assert table.seconds - plain.seconds == pytest.approx(0.5)


def test_pools_pay_for_scoring_and_loading() -> None:
    evidence = Evidence()
    timed(evidence, "off", 1.0, loading=0.125)
    evidence.scoring.add(0.25 / 64)
    scores = torch.rand(256, generator=torch.Generator().manual_seed(0)) ** 4
    evidence.keep(scores, torch.ones(256))
    pools = evidence.offers("off", 64, None)[1:]
    assert [(pool.source, pool.candidates) for pool in pools] == [("pool", r) for r in RATIOS]
    for pool in pools:
        r = pool.candidates
        assert pool.seconds == pytest.approx(1.0 + 0.25 * r + 0.125 * (r - 1))
        assert pool.variance_ratio == pytest.approx(pool_ratio_capped(scores, r))
        assert pool.lower < pool.variance_ratio


@pytest.mark.parametrize("in_use", ["off", "table"])
def test_two_stages_build_on_the_table(in_use: str) -> None:
    """The same table, seen from uniform batches and from batches that it drew."""
    population = torch.tensor([1.0] * 96 + [8.0] * 32, dtype=torch.float64)
    stale = torch.tensor([2.0, 1.0] * 64, dtype=torch.float64)
    p = stale / stale.sum()
    times = torch.full((128,), 3) if in_use == "off" else (p * 192).round().long()
    assert torch.equal(times.double() / times.sum(), p if in_use == "table" else p * 0 + 1 / 128)
    evidence = Evidence()
    timed(evidence, "off", 1.0)
    evidence.scoring.add(0.25 / 64)
    evidence.observing.add(0.5)
    of_table = (1 / (128 * p)).repeat_interleave(times)
    drawn = of_table if in_use == "table" else torch.ones(len(of_table))
    evidence.keep(population.repeat_interleave(times), drawn, of_table)
    found = {
        offer.candidates: offer
        for offer in evidence.offers("off", 64, TWO)
        if offer.source == "two-stage"
    }
    counts = (p * 192).round().long()
    weights = (1 / (128 * p)).repeat_interleave(counts)
    for candidates in RATIOS:
        scores = population.repeat_interleave(counts)
        expected = two_stage_ratio_capped(scores, weights, candidates)
        assert found[candidates].variance_ratio == pytest.approx(expected, rel=0.03)
        assert found[candidates].seconds == pytest.approx(1.5 + 0.25 * candidates)


def test_drawn_scores_speak_for_the_population() -> None:
    """Drawn by score, large ones come too often; their weights undo that."""
    population = torch.tensor([1.0] * 90 + [10.0] * 10, dtype=torch.float64)
    p = population / population.sum()
    counts = (p * 1900).round().long()
    drawn = population.repeat_interleave(counts)
    weights = 1 / (100 * p.repeat_interleave(counts))
    evidence = Evidence()
    timed(evidence, "off", 1.0)
    evidence.scoring.add(0.001)
    evidence.keep(drawn, weights)
    pool = evidence.offers("off", 64, None)[1]
    assert pool.variance_ratio == pytest.approx(
        pool_ratio_capped(population, pool.candidates), rel=0.02
    )


@pytest.mark.parametrize("value", [0.25, 0.8, 1.0, 1.6])
def test_a_calibration_counts_as_far_as_it_is_known(value: float) -> None:
    """The mean of a normal posterior, by integration."""
    error = 0.3
    grid = torch.linspace(-4, 6, 200_001, dtype=torch.float64)
    density = torch.exp(-(((grid - 1) / 0.25) ** 2) / 2 - (((grid - value) / error) ** 2) / 2)
    expected = float((grid * density).sum() / density.sum())
    assert shrunk(Estimate(value, error)) == pytest.approx(expected, abs=1e-6)
    assert shrunk(Estimate(value, math.inf)) == 1.0


def test_noise_that_was_hardly_seen_counts_as_one_batch() -> None:
    evidence = Evidence()
    for pair in range(PAIRS):
        assert evidence.noise_scale(64) == 64.0
        evidence.noise.add([torch.tensor([9.0 + pair])], [torch.tensor([10.0])], 32)
    assert evidence.noise_scale(64) == evidence.noise.scale.value != 64.0


@pytest.mark.parametrize("cost", [0.0, 0.05, 0.2, 0.6])
@pytest.mark.parametrize("in_use", ["off", "table"])
def test_what_is_not_solved_would_not_have_been_taken(cost: float, in_use: Any) -> None:
    evidence = Evidence()
    timed(evidence, "off", 1.0)
    timed(evidence, "table", 1.1)
    evidence.scoring.add(cost / 64)
    scores = torch.rand(512, generator=torch.Generator().manual_seed(1)) ** 6
    evidence.keep(scores, torch.ones(512))
    every = evidence.offers(in_use, 64, TWO)
    hopeful = evidence.offers(in_use, 64, TWO, hopeless=False)
    assert [offer for offer in every if offer in hopeful] == hopeful
    assert len(hopeful) < len(every) or cost < 0.2
    for noise in (16.0, 640.0, math.inf):
        taken = [
            MeasuredGate().decide(offers, in_use=in_use, noise_scale=noise, batch_size=64).offer
            for offers in (every, hopeful)
        ]
        assert taken[0] == taken[1]
