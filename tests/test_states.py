"""Every part that learns can be saved, and what goes on from its state is the same to the bit."""

import json
from typing import Any

import pytest
import torch

import gradsift
from gradsift.clock import PausableClock, VirtualClock, WallClock
from gradsift.errors import DataError, UsageError
from gradsift.gate import Decision, Offer
from gradsift.monitors.health import HealthMonitor
from gradsift.monitors.log import JsonLines, NullLog
from gradsift.monitors.steps import StepLog
from gradsift.monitors.timing import Allowance, StepTimes
from gradsift.recipes import recipes
from gradsift.records import Draw, Plan, ScoreUpdate
from gradsift.sifting.evidence import Costs, Evidence
from gradsift.sifting.memory import Memory
from gradsift.sifting.probes import Probes
from gradsift.sifting.setup import Counts
from gradsift.sifting.spending import Spending


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """Through JSON: nothing but plain numbers and words."""
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("cut", range(12))
def test_step_times(cut: int) -> None:
    steps = [("off", 1.0), ("off", 0.3), ("table", 0.1)] * 4
    whole, first, second = (StepTimes(block=1, kept=3) for _ in range(3))
    for step in steps:
        whole.add(*step)
    for step in steps[:cut]:
        first.add(*step)
    second.load_state_dict(copied(first.state_dict()))
    for step in steps[cut:]:
        second.add(*step)
    assert second.state_dict() == whole.state_dict()
    assert second.median("off") == whole.median("off") == 0.3


def test_the_latest_costs_stay_the_latest() -> None:
    first, second = Costs(), Costs()
    for k in range(200):
        first.add(0.1 * k, times=k % 2)
    second.load_state_dict(copied(first.state_dict()))
    assert second.mean == first.mean
    first.add(7.0)
    second.add(7.0)
    assert second.state_dict() == first.state_dict()
    assert second.known


def test_allowances_and_counts() -> None:
    spent, again = Allowance(0.01), Allowance(0.01)
    spent.spend(1.5)
    again.load_state_dict(copied(spent.state_dict()))
    assert (again.allows(now=149.0), again.allows(now=151.0)) == (False, True)
    counts = Counts()
    counts.load_state_dict(copied(Counts(1, 2, 3, 4).state_dict()))
    assert counts == Counts(1, 2, 3, 4)


def test_recorded_steps() -> None:
    whole, first, second = (StepLog(NullLog()) for _ in range(3))
    expected = [whole.due(step) for step in range(200)]
    found = [first.due(step) for step in range(150)]
    second.load_state_dict(copied(first.state_dict()))
    assert found + [second.due(step) for step in range(150, 200)] == expected


def test_what_is_spent_goes_on() -> None:
    table = Offer("table", 1.0, variance_ratio=4.2, lower=4.0)
    decision = Decision(table, 2.0, "", noise_scale=float("inf"))
    first, second = Spending("batch"), Spending("batch")
    for _ in range(2):
        first.decide(decision, batch_size=64)
        for _ in range(40):
            first.timed(first.size(64), 0.1)
    second.load_state_dict(copied(first.state_dict()))
    assert second.size(64) == 32
    assert second.state_dict() == first.state_dict()
    with pytest.raises(UsageError, match="spend 'batch' received, expected 'lr'"):
        Spending("lr").load_state_dict(first.state_dict())


def test_health_goes_on_and_belongs_to_its_data() -> None:
    whole, first, second = (HealthMonitor(5) for _ in range(3))
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(5, (4,), generator=generator), torch.rand(4, generator=generator))
        for _ in range(6)
    ]
    for ids, weights in batches:
        whole.add(ids, weights, weights + 1)
    for ids, weights in batches[:3]:
        first.add(ids, weights, weights + 1)
    state = first.state_dict()
    second.load_state_dict(state)
    for ids, weights in batches[3:]:
        second.add(ids, weights, weights + 1)
    assert second.read() == whole.read() or str(second.read()) == str(whole.read())
    assert int(state["draws"].sum()) == 12  # a copy, which later draws leave alone
    with pytest.raises(UsageError, match="the draws of 5 examples"):
        HealthMonitor(6).load_state_dict(state)


@pytest.mark.parametrize("cut", [3, 10, 13])
def test_a_memory_goes_on_with_prices_means_and_windows(cut: int) -> None:
    def memory() -> Memory:
        return Memory(recipes["auto"], 256, seed=1, adapts=True, steps=8)

    def step(kept: Memory, number: int, generator: torch.Generator) -> list[int]:
        shown = torch.Generator().manual_seed(number)
        ids = torch.randint(256, (8,), generator=shown)
        scores = torch.rand(8, generator=shown).exp() * (1 + ids)
        ones = torch.ones(8, dtype=torch.float64)
        kept.learn(ScoreUpdate(ids, scores, number, ids % 3), ones)
        kept.passed(64)
        return kept.draw(8, generator).positions.tolist()

    whole, first, second = memory(), memory(), memory()
    one, other = (torch.Generator().manual_seed(5) for _ in range(2))
    expected = [step(whole, number, one) for number in range(20)]
    found = [step(first, number, other) for number in range(cut)]
    second.load_state_dict(first.state_dict())
    assert found + [step(second, number, other) for number in range(cut, 20)] == expected
    assert second.prices.batches == whole.prices.batches > 6
    assert str(second.state_dict()) == str(whole.state_dict())


def absolute(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).abs()[:, 0]


def test_probes_take_turns_across_a_break() -> None:
    train = gradsift.sift([(torch.ones(2, 1), torch.ones(2, 1))], torch.nn.Linear(1, 1), absolute)
    first, second = (Probes(train._chooser, Evidence(), None) for _ in range(2))
    first.load_state_dict({"next": 2, "tried": 3})
    second.load_state_dict(copied(first.state_dict()))
    assert second.state_dict() == {"next": 2, "tried": 3}


@pytest.mark.parametrize("paused", [False, True])
def test_a_counted_clock_goes_on_within_a_pause_too(paused: bool) -> None:
    def busy(clock: PausableClock) -> None:
        clock.charge(trained=3)

    inner, other = VirtualClock(train=0.1), VirtualClock(train=0.1)
    clock, again = PausableClock(inner), PausableClock(other)
    busy(clock)
    with clock.paused():
        busy(clock)
        if paused:
            again.load_state_dict(copied(clock.state_dict()))
    if not paused:
        again.load_state_dict(copied(clock.state_dict()))
    busy(clock)
    busy(again)
    assert (again.now(), other.now()) == (clock.now(), inner.now())


def test_a_pause_in_which_nothing_is_charged_changes_nothing() -> None:
    clock, plain = (PausableClock(VirtualClock(train=0.1)) for _ in range(2))
    for _ in range(50):
        for each in (clock, plain):
            each.charge(trained=7)
        with clock.paused():
            pass
    assert clock.now() == plain.now()


def test_loading_within_a_pause_goes_on_with_the_pause() -> None:
    saved = PausableClock(VirtualClock(train=1.0))
    saved.charge(trained=4)
    clock = PausableClock(VirtualClock(train=1.0))
    with clock.paused():
        clock.load_state_dict(saved.state_dict())
        clock.charge(trained=9)
        assert clock.now() == 4.0
    assert clock.now() == 4.0


def test_real_seconds_go_on_from_those_that_were_saved() -> None:
    clock = WallClock()
    clock.load_state_dict({"now": 1e6})
    assert 1e6 <= clock.now() < 1e6 + 60
    again = WallClock()
    again.load_state_dict(copied(clock.state_dict()))
    assert again.now() >= 1e6


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(candidates=12, size=4),
        Plan(draw=Draw(torch.tensor([3, 1]), torch.tensor([0.5, 1.5]).double(), 2, 1), size=2),
    ],
)
def test_plans_come_back(plan: Plan) -> None:
    found = Plan.from_state_dict(plan.state_dict())
    assert (found.candidates, found.size, found.source) == (plan.candidates, plan.size, plan.source)
    if plan.draw is not None:
        assert found.draw is not None
        assert torch.equal(found.draw.positions, plan.draw.positions)
        assert torch.equal(found.draw.weights, plan.draw.weights)
        assert (found.draw.size, found.draw.quarantined) == (2, 1)


def test_measurements_are_cut_where_they_were_kept(tmp_path: Any) -> None:
    log = JsonLines(tmp_path)
    log.write("event", step=1, seconds=0.0, text="kept")
    size = log.keep()
    log.write("event", step=2, seconds=0.0, text="taken back")
    with log.path.open("a") as file:
        file.write('{"kind": "ev')
    log.cut(size)
    log.write("event", step=2, seconds=0.0, text="again")
    steps = [json.loads(line)["text"] for line in log.path.read_text().splitlines()]
    assert steps == ["kept", "again"]
    with pytest.raises(DataError, match="expected at least 10000"):
        log.cut(10_000)
