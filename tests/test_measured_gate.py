"""The gate that measures: progress per second by a slow twin, hysteresis, and its sentence."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift import UsageError
from gradsift.gate import MeasuredGate, Offer, gain
from gradsift.gate.measured import needed_ratio

RATIOS = st.floats(0.2, 50)
SCALES = st.floats(0.01, 1e6)
COSTS = st.floats(0.5, 20)


def decrease(step: float, ratio: float, scale: float, batch: int) -> float:
    """The expected decrease of a quadratic.

    ``f(θ) = θ²/2`` at θ = 1: a step of size η with gradient variance ``scale/(batch·ratio)`` leaves
    ``E f = ((1 − η)² + η² · variance)/2``.
    """
    return 0.5 - ((1 - step) ** 2 + step**2 * scale / (batch * ratio)) / 2


def best_step(scale: float, batch: int) -> float:
    """The step size that suits uniform batches, on a fine grid."""
    return max((k / 50_000 for k in range(50_001)), key=lambda η: decrease(η, 1.0, scale, batch))


@pytest.mark.parametrize(
    ("ratio", "scale", "cost"), [*itertools.product([1.2, 4.0], [16.0, 640.0], [1.0, 1.7])]
)
def test_the_gain_is_progress_per_second_on_a_quadratic(
    ratio: float, scale: float, cost: float
) -> None:
    offers = [Offer("off", 1.0), Offer("pool", cost, ratio, lower=ratio, candidates=3)]
    decision = MeasuredGate(margin=0.0).decide(
        offers, in_use="off", noise_scale=scale, batch_size=64
    )
    step = best_step(scale, 64)
    expected = decrease(step, ratio, scale, 64) / cost / decrease(step, 1.0, scale, 64)
    assert (decision.offer.source == "pool") == (expected > 1)
    assert decision.gain == pytest.approx(max(expected, 1.0), rel=1e-3)


@given(ratio=RATIOS, scale=SCALES, cost=COSTS)
def test_it_opens_exactly_above_the_needed_ratio(ratio: float, scale: float, cost: float) -> None:
    needed = needed_ratio(cost, scale, 32)
    if cost <= 1 or math.isclose(ratio, needed, rel_tol=1e-6):
        return
    offers = [Offer("off", 1.0), Offer("table", cost, ratio, lower=ratio)]
    decision = MeasuredGate(margin=0.0).decide(
        offers, in_use="off", noise_scale=scale, batch_size=32
    )
    assert (decision.offer.source == "table") == (ratio > needed)


def test_where_noise_is_everything_the_needed_ratio_is_that_of_the_seconds() -> None:
    assert needed_ratio(1.5, math.inf, 64) == 2.0
    assert needed_ratio(1.5, 1e9, 64) == pytest.approx(2.0, rel=1e-4)
    assert needed_ratio(0.9, 640.0, 64) == 1.0
    assert needed_ratio(2.0, math.inf, 64) == math.inf


def test_an_uncertain_offer_stays_shut_and_an_open_one_stays_open() -> None:
    gate = MeasuredGate(margin=0.02)
    offers = [Offer("off", 1.0), Offer("table", 1.0, 1.3, lower=0.9)]
    for source in ("off", "table"):
        decision = gate.decide(offers, in_use=source, noise_scale=1e4, batch_size=64)
        assert decision.offer.source == source


def test_the_margin_is_hysteresis() -> None:
    offers = [Offer("off", 1.0), Offer("table", 1.0, 1.01, lower=1.01)]
    kept = MeasuredGate(margin=0.02).decide(offers, in_use="table", noise_scale=1e9, batch_size=64)
    shut = MeasuredGate(margin=0.02).decide(offers, in_use="off", noise_scale=1e9, batch_size=64)
    assert (kept.offer.source, shut.offer.source) == ("table", "off")


def test_a_source_that_got_worse_than_uniform_is_shut() -> None:
    offers = [Offer("off", 1.0), Offer("table", 1.0, 0.9, lower=0.8)]
    decision = MeasuredGate().decide(offers, in_use="table", noise_scale=1e4, batch_size=64)
    assert decision.offer.source == "off"
    assert decision.gain == 1.0
    assert decision.reason.startswith("table: a variance ratio of 0.90 (at least 0.80)")


def test_no_variance_helps_where_the_signal_is_everything() -> None:
    offers = [Offer("off", 1.0), Offer("pool", 1.5, 3.0, lower=3.0, candidates=3)]
    decision = MeasuredGate().decide(offers, in_use="off", noise_scale=1.0, batch_size=64)
    assert decision.offer.source == "off"
    assert decision.reason.startswith("pool of 3: ")
    assert decision.reason.endswith("1.50 times the seconds, which is too slow")


def test_a_step_of_twice_the_seconds_is_never_taken() -> None:
    """At an unchanged step size, not even for examples without any noise."""
    offers = [Offer("off", 1.0), Offer("pool", 2.0, 1e9, lower=1e9, candidates=3)]
    decision = MeasuredGate().decide(offers, in_use="off", noise_scale=math.inf, batch_size=64)
    assert decision.offer.source == "off"


def test_a_little_less_noise_at_once_is_better_than_much_less_late() -> None:
    offers = [
        Offer("off", 1.0),
        Offer("pool", 1.5, 3.0, lower=3.0, candidates=3),
        Offer("table", 1.04, 1.5, lower=1.4),
    ]
    for places, source in (((0, 1, 2), "table"), ((0, 1), "pool")):
        chosen = [offers[place] for place in places]
        decision = MeasuredGate().decide(chosen, in_use="off", noise_scale=1e9, batch_size=64)
        assert decision.offer.source == source


def test_an_offer_that_is_all_noise_gains_nothing() -> None:
    offer = Offer("table", 1.0, 0.1, lower=-0.2)
    assert gain(offer, Offer("off", 1.0), 1e9, 64, lower=True) == 0.0
    assert gain(offer, Offer("off", 1.0), 1e9, 64) == 0.0


def test_the_reason_without_any_offer() -> None:
    decision = MeasuredGate().decide(
        [Offer("off", 1.0)], in_use="off", noise_scale=64.0, batch_size=64
    )
    assert decision.reason == "nothing is measured yet"


@pytest.mark.parametrize("share", [-0.1, math.nan])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(UsageError, match="margin"):
        MeasuredGate(margin=share)
    with pytest.raises(UsageError, match="allowance"):
        MeasuredGate(allowance=share)
