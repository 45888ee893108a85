"""Medians of blocks of steps, and an allowance that is never overdrawn by a surprise."""

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift.monitors.timing import Allowance, StepTimes

STEPS = st.lists(st.tuples(st.sampled_from(["off", "table"]), st.floats(0.001, 10.0)), max_size=120)


def twin(steps: list[tuple[str, float]], source: str, block: int, kept: int) -> float | None:
    """Cuts the steps into stretches of one source, and those into blocks."""
    stretches: list[tuple[str, list[float]]] = []
    for name, seconds in steps:
        if not stretches or stretches[-1][0] != name:
            stretches.append((name, []))
        stretches[-1][1].append(seconds)
    means = [
        sum(values[start : start + block]) / block
        for name, values in stretches
        if name == source
        for start in range(block, len(values) - block + 1, block)
    ]
    return median(means[-kept:]) if means else None


@given(STEPS, st.integers(1, 5), st.integers(1, 4))
def test_medians_against_a_slow_twin(steps: list[tuple[str, float]], block: int, kept: int) -> None:
    times = StepTimes(block=block, kept=kept)
    for source, seconds in steps:
        times.add(source, seconds)
    for source in ("off", "table"):
        assert times.median(source) == pytest.approx(twin(steps, source, block, kept))


def test_a_hiccup_moves_no_median() -> None:
    times = StepTimes(block=1)
    for seconds in (9.0, 1.0, 1.0, 500.0, 1.0, 1.0):
        times.add("off", seconds)
    assert times.median("off") == 1.0


@given(st.floats(0.001, 0.5), st.lists(st.floats(0.0, 2.0), min_size=1, max_size=50))
def test_what_is_allowed_stays_within_the_share(share: float, costs: list[float]) -> None:
    allowance = Allowance(share)
    now = 0.0
    for cost in costs:
        now += 1.0
        if allowance.spent and allowance.allows(now, cost):
            allowance.spend(cost)
            assert allowance.spent <= share * now * (1 + 1e-9)
        elif not allowance.spent:
            allowance.spend(min(cost, share))


def test_counted_time_refuses_nothing_that_is_free() -> None:
    allowance = Allowance(0.01)
    for _ in range(3):
        assert allowance.allows(0.0)
        allowance.spend(0.0)
