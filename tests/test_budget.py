"""Budgets, their progress, the schedules that follow it, and the clock that can be stopped."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsift.budget import Budget, parse_budget
from gradsift.clock import PausableClock, Seconds, VirtualClock, WallClock
from gradsift.errors import UsageError
from gradsift.schedule import SCHEDULES, find_schedule


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("60s", "seconds", 60.0),
        ("0.5s", "seconds", 0.5),
        (".5s", "seconds", 0.5),
        ("10ep", "epochs", 10.0),
        ("1.5ep", "epochs", 1.5),
        ("2000steps", "steps", 2000.0),
        ("2000.0steps", "steps", 2000.0),
    ],
)
def test_budgets_are_read(text, kind, amount):
    assert parse_budget(text) == Budget(kind, amount)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "-3s",
            "nan",
            "nans",
            "infs",
            "0ep",
            "0s",
            "0.0steps",
            "10 parsecs",
            "10",
            "s",
            "",
            "steps",
        ),
        *(
            "1e3s",
            "10 s",
            " 10s",
            "10S",
            "10s ",
            "1.5steps",
            "1,5s",
            "10s\n",
            "\u0661\u0660s",
            "+5s",
            "10m",
        ),
        "9" * 400 + "s",
    ],
)
def test_anything_else_is_no_budget(text):
    with pytest.raises(UsageError, match=r"budget|steps"):
        parse_budget(text)


@pytest.mark.parametrize("amount", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_is_positive_and_finite(amount):
    with pytest.raises(UsageError, match="positive and finite"):
        Budget("seconds", amount)


def test_progress_counts_only_its_own_kind():
    spent = {"seconds": 3.0, "epochs": 0.5, "steps": 8}
    assert Budget("seconds", 30).progress(**spent) == pytest.approx(0.1)
    assert Budget("epochs", 2).progress(**spent) == 0.25
    assert Budget("steps", 10).progress(**spent) == 0.8


def test_progress_stays_within_zero_and_one():
    budget = Budget("seconds", 2)
    assert budget.progress(seconds=9.0, epochs=0, steps=0) == 1.0
    assert budget.progress(seconds=-1e-9, epochs=0, steps=0) == 0.0


@given(st.integers(1, 10**9), st.sampled_from(["s", "ep", "steps"]))
@settings(derandomize=True, deadline=None)
def test_a_budget_is_written_as_it_is_read(amount, unit):
    assert str(parse_budget(f"{amount}{unit}")) == f"{amount}{unit}"


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_decaying_schedules_go_from_one_to_zero_and_never_up(name):
    factors = [SCHEDULES[name](part / 100) for part in range(101)]
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(0.0, abs=1e-12)
    assert factors == sorted(factors, reverse=True)
    assert factors[50] == pytest.approx(0.5)


def test_the_step_schedule_drops_at_half_and_at_four_fifths():
    step = find_schedule("step")
    assert [step(p) for p in (0.0, 0.499, 0.5, 0.799, 0.8, 1.0)] == [1, 1, 0.2, 0.2, 0.04, 0.04]


def test_the_constant_schedule_is_constant():
    assert {find_schedule("constant")(part / 10) for part in range(11)} == {1.0}


def test_an_unknown_schedule_names_the_choices():
    with pytest.raises(UsageError, match="constant, cosine, linear, step"):
        find_schedule("exponential")


def test_a_paused_clock_stands_still_and_then_goes_on_from_there():
    inner = VirtualClock(train=1.0, score=0.0)
    clock = PausableClock(inner)
    clock.charge(trained=3)
    with clock.paused():
        inner.charge(trained=10)
        assert clock.now() == 3.0
    clock.charge(trained=2)
    assert clock.now() == 5.0
    assert inner.now() == 15.0


def test_several_and_nested_pauses_add_up():
    inner = VirtualClock(train=1.0)
    clock = PausableClock(inner)
    for _ in range(3):
        with clock.paused():
            clock.charge(trained=5)
            with clock.paused():
                clock.charge(trained=5)
            clock.charge(trained=1)
            assert clock.now() == pytest.approx(0.0)
    clock.charge(trained=1)
    assert clock.now() == pytest.approx(1.0)
    assert inner.now() == pytest.approx(34.0)


def test_a_pause_ends_when_its_block_raises():
    clock = PausableClock(VirtualClock(train=1.0))

    def fail_while_paused():
        with clock.paused():
            clock.charge(trained=7)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_paused()
    clock.charge(trained=2)
    assert clock.now() == 2.0


def test_timing_on_a_paused_clock_sees_nothing_of_the_pause():
    inner = VirtualClock(train=1.0)
    clock = PausableClock(inner)
    seconds = Seconds()
    with clock.timing(seconds, "training"):
        clock.charge(trained=2)
        with inner.timing(seconds, "evaluating"), clock.paused():
            clock.charge(trained=40)
    assert seconds.spent == {"training": 2.0, "evaluating": 40.0}


def test_a_paused_wall_clock_does_not_move():
    clock = PausableClock(WallClock())
    with clock.paused():
        assert len({clock.now() for _ in range(100)}) == 1
    before = clock.now()
    assert clock.now() > before
