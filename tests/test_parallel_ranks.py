"""Synchronous SGD on two processes, beside the same algorithm in one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from gradsift.errors import UsageError
from gradsift.parallel import ModuleObjective, ParameterServer, RanksObjective, ssgd
from pair_parallel import NAMES, RANKS, ROUNDS, VERIFICATION, batches, fetch, guide, losses, network
from twins import assert_close

SCRIPT = Path(__file__).parent / "pair_parallel.py"
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the two ranks saw."""
    folder = tmp_path_factory.mktemp("pair")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    said = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ranks_train_as_simulated_workers_do(results: Results, name: str) -> None:
    """The same to the bit on both ranks, and to rounding as in one process with rank 0's guide."""
    model = network()
    server = ParameterServer(model.parameters(), SGD(model.parameters(), lr=0.3, momentum=0.5))
    objective = ModuleObjective(model, losses, fetch)
    expected = guide(name, seed=0)
    data = [batch for parts in batches() for batch in parts]
    assert list(ssgd(server, objective, RANKS, data, expected)) == list(range(1, ROUNDS + 1))
    first, second = (result[name] for result in results)
    for mine, theirs, truth in zip(
        first["weights"], second["weights"], server.weights, strict=True
    ):
        assert torch.equal(mine, theirs)
        assert_close(mine, truth)
    for found in (first, second):
        assert found["done"] == list(range(1, ROUNDS + 1))
        assert found["version"] == server.version
        assert found["replays"] == (0 if expected is None else expected.replays)
        assert_close(found["loss"], objective.loss(server.weights, VERIFICATION))
        # One example for two ranks: one of them has nothing to compute.
        truth = objective.gradient(server.weights, torch.tensor([3]))
        for mine, other in zip(found["one"], truth, strict=True):
            assert_close(mine, other)
    assert (first["replays"] > 0) == (name != "plain")


@pytest.mark.slow
def test_what_cannot_work_on_ranks_is_said_by_all(results: Results) -> None:
    for result in results:
        wrapped, empty = result["refusals"]
        assert wrapped == "Sequential received, expected DistributedDataParallel(model)"
        assert empty.startswith("a round needs a batch of each of 2 ranks, and one has none")


def test_without_a_group_it_says_how_to_start() -> None:
    with pytest.raises(UsageError, match="no process group: start with torchrun"):
        RanksObjective(nn.Linear(1, 1), losses, fetch)
