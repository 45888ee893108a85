"""The example of a sharded stream: every example once per pass, and memory that does not grow."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import gradsift

SCRIPT = Path(__file__).parents[1] / "examples" / "stream.py"


@pytest.fixture(scope="module")
def stream() -> Any:
    specification = importlib.util.spec_from_file_location("stream", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def first_features(loader: DataLoader) -> list[float]:
    return [x for inputs, _ in loader for x in inputs[:, 1].tolist()]


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 1), (0, 2), (2, 2)])
def test_every_example_comes_once_in_a_pass(
    stream: Any, tmp_path: Path, workers: int, world_size: int
) -> None:
    files = stream.write_shards(tmp_path, 600, shard=100)
    expected = sorted(x for file in files for x in np.load(file)[:, 1].tolist())
    found: list[float] = []
    for rank in range(world_size):
        shards = stream.Shards(files, rank=rank, world_size=world_size)
        found += first_features(DataLoader(shards, 32, num_workers=workers))
    assert len(files) == 6
    assert sorted(found) == expected
    assert found != expected


def test_passes_have_orders_of_their_own(stream: Any, tmp_path: Path) -> None:
    shards = stream.Shards(stream.write_shards(tmp_path, 300, shard=100))
    loader = DataLoader(shards, 32)
    first, second = first_features(loader), first_features(loader)
    assert first != second
    assert sorted(first) == sorted(second)


def test_the_pool_picks_the_hard_ones(stream: Any, tmp_path: Path) -> None:
    files = stream.write_shards(tmp_path, 6_000)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    train = gradsift.sift(DataLoader(stream.Shards(files), 32), model, loss_fn, recipe="pool")
    hard = []
    for batch in train:
        optimizer.zero_grad()
        batch.loss(model(batch.inputs)).backward()
        optimizer.step()
        hard.append(float((batch.inputs[:, 0].abs() < 1).float().mean()))
    assert sum(hard[-20:]) / 20 > 2 / 8


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pool", "auto"])
def test_memory_stays_where_it_is(tmp_path: Path, recipe: str) -> None:
    """In a process of its own: after the first tenth of 120 000 examples, at most 4 MB more."""
    flags = ["--examples", "120000", "--folder", str(tmp_path), "--recipe", recipe]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("from the first tenth on, the peak grew by ")
    assert float(last.split()[-2]) < 4.0
