"""Each fault of the table once, in a whole training run; and how its numbers are made."""

import importlib
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from gradsift.scores.gradient_loop import gradient_norms

ROOT = Path(__file__).parents[1]
LOSS = torch.nn.CrossEntropyLoss(reduction="none")


@pytest.fixture(scope="module")
def bench() -> Any:
    """Imports a benchmark by name; workers find it on the same path."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    patch.undo()


FAULTS = (
    "none",
    "worker killed",
    "worker stopped",
    "worker hangs",
    "worker slow",
    "scores NaN",
    "block fails",
    "workers killed for good",
    "trainer killed, resumed",
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_with_a_fault_ends_and_learns(bench, fault: str, tmp_path: Path) -> None:
    run = bench("fault_run")
    schedule = run.Schedule(steps=300, at=100)
    found = run.inject(fault, seed=0, schedule=schedule, folder=tmp_path)
    assert run.FAULTS[fault].happened(found), found
    assert found.loss < 0.7
    assert found.usable > 0.9
    assert found.scored > 0
    if found.lost:
        assert any("worker 0" in line for line in found.said)


def test_every_fault_is_tried_once(bench):
    assert tuple(bench("fault_run").FAULTS) == FAULTS
    assert bench("faults").CONTROL in FAULTS


@pytest.fixture
def small() -> Any:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    inputs = torch.randn(3, 1, 2, 2, generator=generator)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    return model, LOSS, inputs, torch.tensor([0, 1, 2])


def test_without_an_order_scores_are_exact(bench, small, tmp_path):
    score = bench("fault_run").Disturbed(str(tmp_path), "")
    torch.testing.assert_close(score(*small), gradient_norms(*small))
    assert not list(tmp_path.iterdir())


def test_orders_are_obeyed(bench, small, tmp_path, monkeypatch):
    run = bench("fault_run")
    slept: list[float] = []
    monkeypatch.setattr(run.time, "sleep", slept.append)
    score = run.Disturbed(str(tmp_path), run.mark(small[2]))
    other = run.Disturbed(str(tmp_path), run.mark(small[2] + 1))
    order, acted = tmp_path / run.ORDER, tmp_path / run.ACTED
    exact = score(*small)

    order.write_text("nan")
    assert score(*small).isnan().all()
    order.write_text("slow")
    assert torch.equal(score(*small), exact)
    assert slept == [run.SLOW]
    acted.unlink()
    order.write_text("raise")
    assert torch.equal(other(*small), exact)
    assert not acted.exists()
    with pytest.raises(ValueError, match="cannot be read"):
        score(*small)
    order.write_text("hang")
    score(*small)
    assert slept[-1] >= 1000
    assert not order.exists()
    assert torch.equal(score(*small), exact)


def test_an_order_is_withdrawn_after_a_spell_but_a_broken_block_stays(bench, tmp_path):
    run = bench("fault_run")
    schedule, order = run.Schedule(at=5), tmp_path / run.ORDER
    for name, stays in (("worker slow", False), ("scores NaN", False), ("block fails", True)):
        for step in range(5, 5 + run.SPELL):
            run.FAULTS[name].act(step, schedule, None, tmp_path)
            assert order.exists()
        run.FAULTS[name].act(5 + run.SPELL, schedule, None, tmp_path)
        assert order.exists() == stays


def outcome(bench: Any, loss: float, **changes: Any) -> Any:
    values = {
        "lost": 0,
        "restarts": 0,
        "scored": 10,
        "quarantined": 0,
        "set_aside": (),
        "usable": 1.0,
        "acted": False,
        "said": (),
    }
    return bench("fault_run").Outcome(loss=loss, **values | changes)


def test_an_undisturbed_run_shows_no_fault(bench):
    calm = outcome(bench, 1.0)
    faults = bench("fault_run").FAULTS
    assert [name for name, fault in faults.items() if fault.happened(calm)] == ["none"]


def test_differences_have_the_textbook_s_standard_errors(bench):
    faults = bench("faults")
    losses, controls = [1.0, 2.0, 4.0], [1.5, 2.0]
    mean, other = 7 / 3, 1.75
    spread = sum((x - mean) ** 2 for x in losses) / 2 / 3
    spread += sum((x - other) ** 2 for x in controls) / 1 / 2
    assert faults.apart(losses, controls) == pytest.approx((mean - other, math.sqrt(spread)))
    assert math.isnan(faults.apart([1.0], controls)[1])
    pairs = faults.paired([1.0, None, 4.0, 2.0], [1.5, 2.0, 3.0, 2.5])
    each = [-0.5, 1.0, -0.5]
    assert pairs == pytest.approx((sum(each) / 3, statistics.stdev(each) / math.sqrt(3)))


def test_a_run_that_fails_is_counted_and_hides_no_other(bench, monkeypatch, capsys):
    faults = bench("faults")

    def inject(name, seed, schedule, folder):
        if seed == 1:
            raise RuntimeError("no luck")
        return outcome(bench, 1.0 + seed / 10, lost=seed, acted=False)

    monkeypatch.setattr(faults, "inject", inject)
    found = faults.repeated("worker killed", 4, None)
    assert found.losses == [1.0, None, 1.2, 1.3]
    assert found.errors == ("seed 1: RuntimeError: no luck",)
    assert found.happened == 2
    assert "no luck" in capsys.readouterr().err
    control = faults.repeated("none", 4, None)
    assert faults.line(found, control).startswith(
        "| worker killed | 3 of 4 | 2 | 1.1667 | +0.0000 "
    )


def test_a_difference_of_more_than_three_errors_is_said(bench):
    faults = bench("faults")

    def runs(name: str, losses: list[float]) -> Any:
        return faults.Runs(name, tuple(outcome(bench, loss) for loss in losses), (), 0, 1.0)

    control = runs("none", [1.0, 1.1, 0.9, 1.0])
    assert "| yes |" in faults.line(runs("a", [1.1, 1.0, 1.2, 1.1]), control)
    assert "| **no** |" in faults.line(runs("b", [1.5, 1.6, 1.4, 1.5]), control)
    assert "| ? |" in faults.line(runs("c", [1.0]), runs("none", [1.0]))
