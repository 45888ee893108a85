"""Prediction from the command line's side: a language model, the page about it, the benchmark."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gradsift import Recipe
from gradsift.budget import Budget
from gradsift.clock import VirtualClock
from gradsift.data.named import ReadOptions, load_problem
from gradsift.sifting.predicted import Predicted
from gradsift.trainer import Settings, run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/prediction.md").read_text(encoding="utf-8")
WORDS = "the cat sat on the mat and the dog sat on the log while a bird sang in the old tree"


def text(folder: Path) -> str:
    """Sentences that repeat, so that most next words can be known."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(30):
        words = WORDS.split()
        words[int(torch.randint(len(words), (), generator=generator))] = "suddenly"
        lines.append(" ".join(words))
    (folder / "story.txt").write_text("\n".join(lines))
    return f"text:{folder / 'story.txt'}"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["katharopoulos2017", "katharopoulos2017-exact"])
def test_a_language_model_trains_one_example_per_token(recipe: str, tmp_path: Path) -> None:
    problem = load_problem(text(tmp_path), ReadOptions(unit="words", context=20))
    tokens = round(0.9 * (30 * (len(WORDS.split()) + 1) - 1))
    assert abs(len(problem.train) - (tokens - 20)) <= 1  # pyright: ignore[reportArgumentType]
    assert problem.input_shape == (20,)
    settings = Settings(
        recipe=recipe,
        model="lstm",
        optimizer="adam",
        lr=0.005,
        batch_size=16,
        budget=Budget("steps", 130),
    )
    outcome = run(problem, settings, out=tmp_path / "run", clock=VirtualClock())
    summary = outcome.summary
    assert summary.train_loss < 1.5  # log of the vocabulary is 3
    if recipe == "katharopoulos2017":
        assert summary.examples_scored == 0
        assert summary.gate is not None
        assert summary.gate["state"] == "on"
        assert summary.gate["opened_at_step"] == 101


def test_the_page_runs_as_written() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "prediction.md", "exec"), names)
    made = [value for value in names.values() if isinstance(value, Recipe)]
    assert len(made) == 4
    assert names["as_coded"].biased
    assert Predicted.learns


def benchmark(name: str, folder: Path, *flags: str) -> tuple[Any, str]:
    """The rows that a benchmark writes, and what it prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *flags, "--out", "rows.json"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "rows.json").read_text()), done.stdout


@pytest.mark.slow
def test_the_benchmark_of_predictors_runs(tmp_path: Path) -> None:
    flags = ["--data", "digits", "--seeds", "2", "--epochs", "8", "--cost", "--blocks", "2"]
    found, said = benchmark("predictor.py", tmp_path, *flags, "--steps", "1")
    assert {row["predictor"] for row in found["rows"]} == {"forecast", "network"}
    assert all(row["last_seen"] > 0.5 for row in found["rows"] if row["epoch"] == 8)
    assert len(found["costs"]) == 5
    assert said.count("variance ratio over that of the last scores") == 2


@pytest.mark.slow
def test_the_benchmark_of_settings_runs(tmp_path: Path) -> None:
    flags = ["--data", "digits", "--seeds", "1", "--epochs", "6", "--examples", "640"]
    rows, said = benchmark("predictor_settings.py", tmp_path, *flags)
    assert [row["setting"] for row in rows][:2] == ["as published", "every step"]
    assert all(row["price"] > 0.1 and row["error"] > 0 for row in rows)
    assert all(row["setting"] in said for row in rows)
