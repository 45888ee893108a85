"""A probe measures on a copy: nothing of the user's is touched; its sentence fits its numbers."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from gradsift import UsageError
from gradsift.cli import entry
from gradsift.clock import VirtualClock
from gradsift.monitors.spending import kept_step_gain

LOSS = nn.CrossEntropyLoss(reduction="none")
N, BATCH = 512, 16


def uneven() -> TensorDataset:
    """Nine of ten examples are easy for ever."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 2
    x = torch.randn(N, 8, generator=generator)
    x[:, 0] = torch.where(torch.arange(N) < N // 10, 0.0, (2 * y - 1) * 6.0)
    return TensorDataset(x, y)


def even() -> TensorDataset:
    """Every derivative is as long."""
    y = torch.arange(N) % 2
    return TensorDataset(torch.ones(N, 1), 2.0 * y - 1)


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets).abs()


def loader_of(data: TensorDataset) -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(data, batch_size=BATCH, shuffle=True, generator=generator)


def linear(inputs: int, outputs: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(inputs, outputs)


def look(data: TensorDataset, model: nn.Module, loss_fn: Any = LOSS, passes: float = 8.0) -> Any:
    """Counted seconds: a pass costs 3 N."""
    clock = VirtualClock(train=3.0)
    seconds = 3.0 * N * passes
    return gradsift.probe(loader_of(data), model, loss_fn, seconds=seconds, clock=clock)


@pytest.fixture(scope="module")
def found() -> gradsift.Prospects:
    return look(uneven(), linear(8, 2))


def test_scores_that_persist_are_worth_the_table(found: gradsift.Prospects) -> None:
    best = found.sources[0]
    assert found.recommendation.startswith("Use recipe='auto': it would draw from the table")
    assert {source.source for source in found.sources} == {"table", "pool", "two-stage"}
    assert best.gain >= best.gain_lower > 1
    assert found.tau > 1.5
    assert found.passes > 3


def test_the_cost_of_scoring_is_that_of_the_clock(found: gradsift.Prospects) -> None:
    """A virtual clock charges a third of training for a score."""
    assert found.scoring_share == pytest.approx(1 / 3)
    assert found.step_seconds == pytest.approx(3.0 * BATCH)
    for source in found.sources:
        expected = 1.0 if source.source == "table" else 1 + source.candidates / 3
        assert source.seconds == pytest.approx(expected)


def test_gains_are_progress_per_second(found: gradsift.Prospects) -> None:
    for source in found.sources:
        kept = kept_step_gain(source.variance_ratio, found.noise_scale, BATCH)
        assert source.gain == pytest.approx(max(kept, 0.0) / source.seconds)


def test_even_scores_are_left_alone() -> None:
    found = look(even(), linear(1, 1), absolute)
    assert found.recommendation.startswith("Leave sampling off: table: a variance ratio of 1.00")


def test_less_than_a_pass_says_nothing_about_the_table() -> None:
    found = look(uneven(), linear(8, 2), passes=0.9)
    assert found.recommendation.startswith("No judgement on the table")


def test_too_short_to_measure_anything() -> None:
    with pytest.raises(UsageError, match="too short"):
        look(uneven(), linear(8, 2), passes=0.1)


def test_nothing_of_the_users_is_touched() -> None:
    model = nn.Sequential(linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    loader = loader_of(uneven())

    def state() -> list[Any]:
        return copy.deepcopy(
            [
                [value.tolist() for value in model.state_dict().values()],
                [str(parameter.grad) for parameter in model.parameters()],
                str(optimizer.state_dict()),
                loader.generator.get_state().tolist() if loader.generator else None,
                torch.get_rng_state().tolist(),
                str(np.random.get_state()),
            ]
        )

    before = state()
    gradsift.probe(
        loader, model, LOSS, optimizer=optimizer, seconds=5000.0, clock=VirtualClock(train=3.0)
    )
    assert state() == before
    assert gradsift.sift(loader, model, LOSS).steps == 0


def test_a_probe_needs_what_it_copies() -> None:
    loader = loader_of(uneven())
    with pytest.raises(UsageError, match="expected a torch"):
        gradsift.probe(loader, absolute, LOSS)
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="seconds"):
            gradsift.probe(loader, linear(8, 2), LOSS, seconds=seconds)
    other = torch.optim.SGD(linear(8, 2).parameters(), lr=0.1)
    with pytest.raises(UsageError, match="other parameters"):
        gradsift.probe(loader, linear(8, 2), LOSS, optimizer=other)


def test_the_command_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["probe", "--model", "linear", "--budget", "1.5s", "--clock", "virtual"]
    assert entry.main([*short, "--out", "o"]) == 0
    printed = capsys.readouterr().out
    assert "variance ratio" in printed
    assert "table" in printed
    numbers = json.loads((tmp_path / "o/probe.json").read_text())
    assert numbers["recommendation"] in printed
    assert (tmp_path / "o/probe.svg").read_text().startswith("<svg")
    assert entry.main([*short, "--out", "o"]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--budget", "3ep"], "expected seconds"),
        (["--clock", "sun"], "wall or virtual"),
        (["--checkpoint", "absent.pt"], "absent.pt cannot be read as a checkpoint"),
        (["--checkpoint", "text.pt"], "text.pt cannot be read as a checkpoint"),
        (["--checkpoint", "other.pt"], "other.pt does not fit the model"),
        (["--model", "best"], "best"),
        (["--data", "absent.csv"], "absent.csv"),
    ],
)
def test_bad_input_writes_nothing(
    flags: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADSIFT_DATA", raising=False)
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    assert entry.main(["probe", *flags, "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()
