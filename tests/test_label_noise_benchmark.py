"""The benchmark of wrong labels flips what it says, and counts what it found."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from gradsift.budget import parse_budget
from gradsift.clock import VirtualClock
from gradsift.data.problem import from_datasets
from gradsift.monitors import read_history
from gradsift.trainer import Settings, run

ROOT = Path(__file__).parents[1]


def bench(name: str) -> Any:
    """A benchmark, as it is from within its folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module(name)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.05])
def test_exactly_a_share_of_the_labels_is_wrong(share: float) -> None:
    labels = torch.arange(2000) % 10
    found, wrong = bench("problems").flip(labels, share, seed=3)
    assert torch.equal(found != labels, wrong)
    assert int(wrong.sum()) == round(share * 2000)
    assert set(found.tolist()) == set(range(10))
    steps = (found - labels)[wrong] % 10
    counts = torch.bincount(steps, minlength=10)
    assert counts[0] == 0
    assert int(counts[1:].min()) > 0
    again = bench("problems").flip(labels, share, seed=3)[0]
    assert torch.equal(found, again)
    assert not torch.equal(found, bench("problems").flip(labels, share, seed=4)[0])


@settings(max_examples=30)
@given(wrong=st.lists(st.booleans(), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_precision_and_recall_agree_with_counting(wrong: list[bool], seed: int) -> None:
    if not any(wrong):
        wrong = [*wrong, True]
    order = np.random.default_rng(seed).permutation(len(wrong))
    precision, recall = bench("label_noise").precision_recall(order, np.array(wrong))
    for length in range(1, len(wrong) + 1):
        hits = sum(wrong[index] for index in order[:length].tolist())
        assert precision[length - 1] == pytest.approx(hits / length)
        assert recall[length - 1] == pytest.approx(hits / sum(wrong))


def noisy(count: int = 200) -> tuple[Any, torch.Tensor]:
    """Two clouds, of which one label in ten is wrong."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(count) % 2
    x = torch.randn(count, 2, generator=generator) + 6.0 * truth[:, None]
    found, wrong = bench("problems").flip(truth, 0.1, seed=1, classes=2)
    data = TensorDataset(x, found)
    return from_datasets("noisy", data, TensorDataset(x, truth)), wrong


def test_a_row_is_what_the_run_left(tmp_path: Path) -> None:
    room = bench("label_noise")
    problem, wrong = noisy()
    chosen = Settings(recipe="uniform", model="linear", batch_size=20, budget=parse_budget("6ep"))
    summary = run(problem, chosen, out=tmp_path / "o", clock=VirtualClock()).summary
    row = room.measure(tmp_path / "o", 10, "uniform", 0, wrong.numpy())
    history = read_history(tmp_path / "o")
    listed = history.suspects().tolist()
    count = int(wrong.sum())
    for length, precision, recall in zip(room.LENGTHS, row.precision, row.recall, strict=True):
        hits = sum(bool(wrong[index]) for index in listed[: round(length * count)])
        assert precision == pytest.approx(hits / round(length * count))
        assert recall == pytest.approx(hits / count)
    assert row.precision[room.LENGTHS.index(1.0)] > 0.8
    confidence = {
        index: float(history.probabilities[index, history.labels[index]]) for index in listed
    }
    surest = sorted(confidence, key=lambda index: (confidence[index], index))[:count]
    assert row.by_confidence == pytest.approx(sum(bool(wrong[k]) for k in surest) / count)
    assert (row.test_error, row.steps) == (summary.test_error, summary.steps)
    assert "suspects" in room.line([row, row], [row, row])
    panels = room.drawn([row, row]).axes
    assert [panel.get_title() for panel in panels] == ["10 % wrong labels"]


def test_it_compares_and_writes_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From flags to files, with runs that are there already in place of the comparison."""
    room = bench("label_noise")
    problem, wrong = noisy()
    asked = []

    def compare(share: int, cap: float, options: argparse.Namespace) -> dict[str, Path]:
        asked.append((share, cap, options.flags))
        folders = {}
        arms: dict[str, dict[str, Any]] = {"uniform": {"recipe": "uniform"}, "capped": {"cap": cap}}
        for arm, changes in arms.items():
            folders[arm] = tmp_path / str(share) / arm
            for seed in range(options.seeds):
                chosen = Settings(
                    model="linear", batch_size=20, seed=seed, budget=parse_budget("3ep"), **changes
                )
                run(problem, chosen, out=folders[arm] / f"seed-{seed}", clock=VirtualClock())
        return folders

    monkeypatch.setattr(room, "compare", compare)
    monkeypatch.setattr(room, "flipped", lambda share: (problem, wrong))
    words = ["--out", str(tmp_path), "--seeds", "1", "--shares", "10", "--", "--clock", "virtual"]
    monkeypatch.setattr(sys, "argv", ["label_noise.py", *words])
    room.main()
    assert asked == [(10, pytest.approx(0.8), ["--clock", "virtual"])]
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert (tmp_path / "found.svg").stat().st_size > 1000
    assert (tmp_path / "found.json").read_text().count('"arm": "capped"') == 1


def test_the_comparison_is_that_of_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    room = bench("label_noise")
    ran: list[Any] = []
    monkeypatch.setattr(
        room.subprocess, "run", lambda words, **options: ran.append((words, options))
    )
    options = argparse.Namespace(out=tmp_path, seeds=3, budget="9s", flags=["--clock", "virtual"])
    folders = room.compare(20, 0.6, options)
    assert folders == {arm: tmp_path / "20" / arm for arm in ("uniform", "auto", "capped")}
    ((words, how),) = ran
    assert "capped: --recipe auto --cap 0.6" in words
    assert words[words.index("--data") + 1] == "problems:flipped_clothes_20"
    assert words[-2:] == ["--clock", "virtual"]
    assert how["cwd"] == ROOT / "benchmarks"
