"""The published switch, step by step, and the two samplers that shrink the batch."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.gate import AbstractGate, ConstantTime, ConstantVariance, GateState, TauThreshold
from gradsift.monitors.moments import tau
from gradsift.records import Plan

few = settings(derandomize=True, max_examples=60, deadline=None)


def scores_of(wanted: float) -> Tensor:
    """Two kinds of scores whose τ is as wanted, up to rounding: ``τ² = 1 + CV²``."""
    spread = math.sqrt(wanted**2 - 1)
    # one of k scores is x, the others are one; solve CV(x) = spread for k = 1 + 4·τ²
    k = 1 + math.ceil(4 * wanted**2)
    root = spread * k / math.sqrt(k - 1)
    large = (1 + root * (k - 1) / k) / (1 - root / k)
    return torch.tensor([large] + [1.0] * (k - 1), dtype=torch.float64)


@pytest.mark.parametrize("wanted", [1.0, 1.2, 1.6, 2.0, 5.0])
def test_the_planted_scores(wanted: float) -> None:
    assert tau(scores_of(wanted)) == pytest.approx(wanted, rel=1e-12)


def run(gate: AbstractGate, values: list[float], ratio: float = 3.0) -> list[GateState]:
    states = [GateState()]
    for step, value in enumerate(values):
        states.append(gate.observe(states[-1], scores_of(value), step, ratio))
    return states[1:]


@given(
    values=st.lists(st.floats(1.0, 4.0), min_size=1, max_size=20),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
)
@few
def test_the_moving_average_by_hand(values: list[float], momentum: float) -> None:
    states = run(TauThreshold(threshold=2.0, momentum=momentum), values)
    for seen, state in enumerate(states, 1):
        weights = [(1 - momentum) * momentum ** (seen - 1 - place) for place in range(seen)]
        average = math.fsum(w * v for w, v in zip(weights, values, strict=False))
        assert state.tau == pytest.approx(average, rel=1e-9)
        assert state.observed == seen
        assert state.open == (state.tau > 2.0)


@pytest.mark.parametrize(("value", "steps"), [(2.0, 14), (1.6, 27)])
def test_the_published_warm_up(value: float, steps: int) -> None:
    states = run(TauThreshold(threshold=1.5), [value] * 40)
    assert [state.open for state in states] == [False] * (steps - 1) + [True] * (41 - steps)
    assert {state.opened_at_step for state in states} == {None, steps - 1}


@given(batch=st.integers(1, 512), ratio=st.sampled_from([1.0, 1.5, 3.0, 5.0, 10.0]))
@few
def test_the_published_threshold(batch: int, ratio: float) -> None:
    pool = ratio * batch
    assert TauThreshold().needed(ratio) == pytest.approx(
        (pool + 3 * batch) / (3 * batch), rel=1e-12
    )
    assert TauThreshold(threshold=1.7).needed(ratio) == 1.7
    plan = TauThreshold().plan(GateState(), batch, ratio)
    assert plan == Plan(candidates=round(pool), size=batch)


@pytest.mark.parametrize(("ratio", "needed"), [(3, 2.0), (4, 2.333), (5, 2.667), (8, 3.667)])
def test_the_published_thresholds_in_numbers(ratio: int, needed: float) -> None:
    assert TauThreshold().needed(ratio) == pytest.approx(needed, abs=5e-4)


@pytest.mark.parametrize(
    "gate",
    [TauThreshold(), ConstantVariance(), ConstantTime()],
    ids=lambda gate: type(gate).__name__,
)
def test_it_opens_and_shuts_and_opens_again(gate: AbstractGate) -> None:
    states = run(gate, [4.0] * 30 + [1.0] * 30 + [4.0] * 30)
    opened = [state.open for state in states]
    changes = [step for step in range(1, 90) if opened[step] != opened[step - 1]]
    assert len(changes) == 3
    assert opened[29]
    assert not opened[59]
    assert opened[89]
    assert states[-1].opened_at_step == changes[0]
    assert all(state.opened_at_step is None for state in states[: changes[0]])


def test_at_the_threshold_it_is_shut() -> None:
    gate = TauThreshold(threshold=1.0, momentum=0.0)
    assert not gate.observe(GateState(), torch.ones(4), 0, 3.0).open


def test_the_decision_is_for_the_next_step_and_the_past_is_not_changed() -> None:
    state = GateState()
    after = TauThreshold(threshold=1.1, momentum=0.0).observe(state, scores_of(2.0), 7, 3.0)
    assert state == GateState()
    assert after.open
    assert after.opened_at_step == 7


def test_the_reason_holds_the_numbers() -> None:
    state = GateState(tau=1.234, observed=56)
    assert TauThreshold().reason(state, 3.0) == (
        "needs tau above 2.00, has 1.23 (moving average over 56 batches)"
    )


def test_constant_variance_opens_at_the_published_tau() -> None:
    assert ConstantVariance().needed(3.0) == pytest.approx(2.143, abs=5e-4)
    assert ConstantVariance(backward=1.0, extra=0.1).needed(3.0) == pytest.approx(1 / 0.4)


@pytest.mark.parametrize(("value", "cost"), [(2.15, 0.997), (3, 0.865), (5, 0.732), (10, 0.630)])
def test_constant_variance_costs_what_was_published(value: float, cost: float) -> None:
    batch, gate = 128, ConstantVariance()
    plan = gate.plan(GateState(tau=value), batch, 1.0)
    assert plan.candidates == batch
    assert plan.size is not None
    # in forward passes: one for every candidate, and three for training an example
    spent = (batch + 3 * plan.size) / (3 * batch)
    assert spent == pytest.approx(cost, abs=5e-4)


@given(batch=st.integers(1, 300), value=st.floats(1.0, 50.0))
@few
def test_constant_variance_keeps_the_share(batch: int, value: float) -> None:
    plan = ConstantVariance().plan(GateState(tau=value), batch, 1.0)
    assert plan.size is not None
    assert plan.candidates == batch
    assert 1 <= plan.size <= batch
    assert plan.size == min(batch, max(1, math.floor((1 / value + 0.2) * batch)))


@pytest.mark.parametrize(
    ("value", "pool", "size"),
    [(2, 160, 74), (3, 192, 64), (5, 217, 55), (7, 217, 55), (99, 217, 55)],
)
def test_constant_time_has_the_published_table(value: float, pool: int, size: int) -> None:
    plan = ConstantTime().plan(GateState(tau=value), 128, 1.0)
    assert plan == Plan(candidates=pool, size=size)


@given(
    batch=st.integers(1, 300),
    value=st.floats(1.0, 50.0),
    share=st.floats(0.0, 1.0),
    least=st.floats(0.05, 1.0),
    backward=st.floats(0.5, 4.0),
)
@few
def test_constant_time_costs_no_more_than_a_plain_step(
    batch: int, value: float, share: float, least: float, backward: float
) -> None:
    gate = ConstantTime(backward=backward, share=share, least=least)
    plan = gate.plan(GateState(tau=value), batch, 1.0)
    assert plan.candidates is not None
    assert plan.size is not None
    assert 1 <= plan.size <= plan.candidates
    if value > gate.threshold and least < 0.5:
        plain = (1 + backward) * batch
        assert plan.candidates + (1 + backward) * plan.size <= plain + (1 + backward)
    assert ConstantTime().needed(3.0) == 2.0


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (TauThreshold, {"threshold": 0.0}, "threshold 0.0 received"),
        (TauThreshold, {"threshold": math.nan}, "threshold nan received"),
        (TauThreshold, {"threshold": math.inf}, "threshold inf received"),
        (TauThreshold, {"momentum": 1.0}, "momentum 1.0 received, expected a number from 0"),
        (TauThreshold, {"momentum": -0.1}, "momentum -0.1 received"),
        (ConstantVariance, {"extra": 2 / 3}, r"extra 0.66\d* received"),
        (ConstantVariance, {"extra": -0.1}, "extra -0.1 received"),
        (ConstantVariance, {"backward": -2.0}, "backward -2.0 received, expected a number above 0"),
        (ConstantVariance, {"backward": -1.0}, "backward -1.0 received"),
        (ConstantVariance, {"momentum": math.nan}, "momentum nan received"),
        (ConstantTime, {"least": 0.0}, "least 0.0 and share 0.5 received"),
        (ConstantTime, {"share": 1.1}, "least 0.2 and share 1.1 received"),
        (ConstantTime, {"backward": 0.0}, "backward 0.0 received"),
        (ConstantTime, {"backward": math.inf}, "backward inf received"),
        (ConstantTime, {"threshold": -1.0}, "threshold -1.0 received, expected a number above 0"),
        (ConstantTime, {"momentum": 2.0}, "momentum 2.0 received"),
    ],
)
def test_bad_parameters(kind: Any, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**options)
