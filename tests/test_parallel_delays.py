"""Schedules of delays, and the order of arrivals that they make."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsift.errors import DataError, UsageError
from gradsift.parallel import (
    Arrival,
    ConstantDelay,
    ParetoDelay,
    TraceDelay,
    UniformDelay,
    arrivals_by_age,
    arrivals_by_race,
    longest_age,
    parse_delay,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "text", ["constant:9", "uniform:0:9", "uniform:0.5:2.25", "pareto:1.5:2:50"]
)
def test_a_seed_fixes_a_schedule(text):
    delay = parse_delay(text)
    assert torch.equal(delay.draw(50, seeded()), delay.draw(50, seeded()))
    if not text.startswith("constant"):
        assert not torch.equal(delay.draw(50, seeded()), delay.draw(50, seeded(1)))


def test_schedules_have_their_distributions():
    """By the distribution function at the very uniform numbers that are drawn."""
    uniforms = torch.rand(4000, dtype=torch.float64, generator=seeded(3)).tolist()
    whole = UniformDelay(2, 5).draw(4000, seeded(3)).tolist()
    assert whole == [2 + math.floor(4 * u) for u in uniforms]
    real = UniformDelay(0.5, 2.25).draw(4000, seeded(3)).tolist()
    assert real == pytest.approx([0.5 + 1.75 * u for u in uniforms], rel=1e-12)
    tail = ParetoDelay(1.5, scale=2, cap=40).draw(4000, seeded(3)).tolist()
    assert tail == pytest.approx([min(40, 2 * (1 - u) ** (-1 / 1.5)) for u in uniforms], rel=1e-12)
    assert max(tail) == 40


def test_a_trace_is_played_in_its_order_and_again(tmp_path):
    path = tmp_path / "delays.txt"
    path.write_text("0\n3\n1.5\n")
    trace = parse_delay(f"trace:{path}")
    assert trace.draw(4, seeded()).tolist() == [0, 3, 1.5, 0]
    assert trace.draw(3, seeded()).tolist() == [3, 1.5, 0]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("constant:inf", UsageError, "a gradient that never arrives trains nothing"),
        ("constant:nan", UsageError, "expected a finite number >= 0"),
        ("constant:-1", UsageError, "delay -1.0 received"),
        ("constant", UsageError, "expected 1 numbers"),
        ("constant:x", UsageError, "write constant:9"),
        ("uniform:9:0", UsageError, "give the smaller number first"),
        ("uniform:0:inf", UsageError, "high inf received"),
        ("pareto:0:1:2", UsageError, "expected a positive shape"),
        ("pareto:1:3:2", UsageError, "0 < scale <= cap"),
        ("pareto:1:1:inf", UsageError, "cap inf received"),
        ("gauss:1", UsageError, "'gauss:1' is unknown"),
        ("trace:", UsageError, "is unknown"),
        ("trace:missing.txt", DataError, "cannot be read"),
    ],
)
def test_bad_delays_are_one_line(text, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as caught:
        parse_delay(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("1\ninf\n", "delay 2 of the trace is inf"), ("1\ntwo\n", "no trace")],
)
def test_broken_traces_name_the_place(text, message, tmp_path):
    (tmp_path / "t").write_text(text)
    with pytest.raises(DataError, match=message):
        parse_delay(f"trace:{tmp_path / 't'}")


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 40))
def test_ages_are_those_drawn_as_far_as_there_is_a_past(ages, workers, count):
    if min((ages * count)[:count]) >= count:
        return
    trace = TraceDelay([float(age) for age in ages])
    arrivals = arrivals_by_age(trace, workers, count, seeded())
    for place, arrival in enumerate(arrivals):
        assert place - arrival.read == min(place, ages[place % len(ages)])
        assert arrival.worker == place % workers
    assert longest_age(arrivals) == max(t - a.read for t, a in enumerate(arrivals))


def test_a_delay_as_long_as_the_run_never_delivers():
    with pytest.raises(UsageError, match="at least 9 updates, but the run has 9"):
        arrivals_by_age(ConstantDelay(9), 4, 9, seeded())
    assert len(arrivals_by_age(ConstantDelay(8), 4, 9, seeded())) == 9
    with pytest.raises(UsageError, match="0 workers and 3 updates"):
        arrivals_by_age(ConstantDelay(1), 0, 3, seeded())


def slow_race(seconds, workers, count, bound):
    """A clock that ticks: every worker is looked at in every tick of whole seconds."""
    draw = iter(seconds)
    left = [next(draw) for _ in range(workers)]
    read, clock, found = [0] * workers, [0] * workers, []
    idle = [False] * workers
    while len(found) < count:
        for worker in range(workers):
            if not idle[worker]:
                left[worker] -= 1
        for worker in range(workers):
            if idle[worker] or left[worker] > 0:
                continue
            found.append(Arrival(worker, read[worker]))
            clock[worker] += 1
            idle[worker] = True
            for other in range(workers):
                within = bound is None or clock[other] - min(clock) <= bound
                if idle[other] and within:
                    idle[other] = False
                    left[other] = next(draw)
                    read[other] = len(found)
    return found[:count]


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([None, 0, 1, 2]),
)
def test_a_race_is_a_ticking_clock(seconds, workers, bound):
    trace = TraceDelay([float(second) for second in seconds])
    arrivals = arrivals_by_race(trace, workers, 30, seeded(), bound)
    assert arrivals == slow_race(seconds * 100, workers, 30, bound)


def test_a_slow_worker_holds_everybody_up_within_the_bound():
    """Worker 0 takes 100 seconds for its first gradient, all others one."""
    trace = TraceDelay([100.0, *[1.0] * 500])
    free = arrivals_by_race(trace, 3, 40, seeded())
    assert all(arrival.worker != 0 for arrival in free)
    bounded = arrivals_by_race(TraceDelay([100.0, *[1.0] * 500]), 3, 40, seeded(), bound=2)
    assert [a.worker for a in bounded].index(0) == 6
    with pytest.raises(UsageError, match="bound of -1"):
        arrivals_by_race(trace, 3, 40, seeded(), bound=-1)
