"""Two processes sift together: one draw from one table, equal to one process on the same draws.

One pair of processes (`pair.py`) runs every check once, in sequence; the tests read what it saw.
DDP and FSDP2, 2 ranks, with the recipes `pool`, `table`, `auto`, a published gate, two rules,
hold-out losses and, behind DDP, predicted losses. Exceptions: hold-out losses need a whole model
to copy; under FSDP2 `auto` measures no gradient (no process has all of one), so it offers the
table and pools without the ratio of noise to signal, which counts as one batch.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pair import BATCH, LOSS, RATE, N, network, uneven_data

PAIR = Path(__file__).parent / "pair.py"
FITS = (
    "ddp-pool",
    "ddp-table",
    "ddp-table-workers",
    "ddp-auto",
    "ddp-published",
    "ddp-predicted",
    "fsdp-pool",
    "fsdp-table",
    "fsdp-auto",
    "ddp-engine",
    "ddp-local",
    "ddp-infobatch",
    "ddp-rho",
    "fsdp-kakurenbo",
)
SHARED = tuple(name for name in FITS if "table" in name or "auto" in name or "engine" in name)
Results = list[dict[str, Any]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(330)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the two ranks saw."""
    folder = tmp_path_factory.mktemp("pair")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(PAIR), str(rank), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]


def replay(steps: list[list[tuple[Tensor, Tensor, bool]]]) -> list[Tensor]:
    """One process trains on the union of what two ranks drew, with twice the batch size."""
    inputs, targets = uneven_data().tensors
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for parts in zip(*steps, strict=True):
        total = torch.zeros(())
        for ids, weights, _ in parts:
            for example, weight in zip(ids.tolist(), weights.tolist(), strict=True):
                one = slice(example, example + 1)
                total = total + weight * LOSS(model(inputs[one]), targets[one])[0]
        optimizer.zero_grad()
        (total / sum(len(ids) for ids, _, _ in parts)).backward()
        optimizer.step()
    return [value.detach() for value in model.parameters()]


@pytest.mark.parametrize("name", FITS)
def test_the_result_is_that_of_one_process_on_the_same_draws(results: Results, name: str) -> None:
    first, second = (result[name] for result in results)
    expected = replay([first["seen"], second["seen"]])
    for mine, theirs, truth in zip(
        first["parameters"], second["parameters"], expected, strict=True
    ):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SHARED)
def test_tables_are_identical_and_know_the_examples_of_both(results: Results, name: str) -> None:
    first, second = (result[name] for result in results)
    assert torch.equal(first["table"], second["table"])
    assert int((first["table"] != 1).sum()) > 0.9 * N
    assert first["gate"] == second["gate"]
    assert first["gate"]["state"] == "on"


@pytest.mark.parametrize("name", ["ddp-table", "ddp-table-workers", "fsdp-table"])
def test_the_first_pass_ends_when_both_have_seen_half(results: Results, name: str) -> None:
    for result in results:
        assert result[name]["gate"]["opened_at_step"] == N // (2 * BATCH) + 1


@pytest.mark.parametrize("name", SHARED)
def test_ranks_take_shares_of_one_draw(results: Results, name: str) -> None:
    """Over a window of 16 steps both ranks together make one stratified draw of 256 examples."""
    steps = [result[name]["seen"] for result in results]
    assert [d for *_, d in steps[0]] == [d for *_, d in steps[1]]
    drawn = [parts for parts in zip(*steps, strict=True) if parts[0][2]]
    assert any(not torch.equal(a[0], b[0]) for a, b in drawn)
    window = drawn[:16]
    ids = torch.cat([ids for parts in window for ids, _, _ in parts])
    inverse = torch.cat([1 / weights.double() for parts in window for _, weights, _ in parts])
    counts = torch.bincount(ids, minlength=N)
    expected = torch.zeros(N, dtype=torch.float64)
    expected[ids] = len(ids) * inverse / N
    assert len(ids) == 16 * 2 * BATCH
    assert bool((counts <= expected.floor() + 2).all())
    rare = counts[counts > 0] - expected[counts > 0]
    assert float(rare.abs().max()) < 2


def test_predictors_are_alike_and_candidates_are_not(results: Results) -> None:
    first, second = (result["ddp-predicted"] for result in results)
    assert first["gate"] == second["gate"]  # whose reason has the error of the predictions
    assert first["gate"]["opened_at_step"] == 9
    drawn = [[ids.tolist() for ids, _, drawn in part["seen"] if drawn] for part in (first, second)]
    assert len(drawn[0]) == len(drawn[1]) > 30
    assert drawn[0] != drawn[1]


def test_uneven_shares_weigh_as_the_direct_gradient(results: Results) -> None:
    first, second = (result["uneven"] for result in results)
    assert first["sizes"] == [8, 8, 5]
    assert second["sizes"] == [8, 8, 8]
    inputs, targets = uneven_data().tensors
    spans = [((0, 8), (100, 108)), ((8, 16), (108, 116)), ((16, 21), (116, 124))]
    model = network()
    for step, parts in enumerate(spans):
        model.zero_grad()
        ids = torch.cat([torch.arange(*part) for part in parts])
        LOSS(model(inputs[ids]), targets[ids]).mean().backward()
        for seen in (first["gradients"][step], second["gradients"][step]):
            for found, value in zip(seen, model.parameters(), strict=True):
                assert value.grad is not None
                torch.testing.assert_close(found, value.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ddp-infobatch", "fsdp-kakurenbo"])
def test_rules_pick_alike_and_a_round_has_each_example_once(results: Results, name: str) -> None:
    first, second = (result[name] for result in results)
    assert first["gate"] == second["gate"]
    assert first["gate"]["state"] == "on"
    round_of_both = [ids for parts in (first, second) for ids, _, _ in parts["seen"][: N // 16]]
    assert torch.cat(round_of_both).sort().values.tolist() == list(range(N))


def test_hidden_examples_are_looked_at_by_halves(results: Results) -> None:
    first, second = (result["fsdp-kakurenbo"]["scored"] for result in results)
    assert first == second > 0


def test_a_sharded_model_is_not_copied(results: Results) -> None:
    for result in results:
        assert "whose parameters are sharded over processes" in result["fsdp-rho"]


def test_published_gates_open_together(results: Results) -> None:
    first, second = (result["ddp-published"] for result in results)
    assert first["gate"] == second["gate"]
    assert first["gate"]["opened_at_step"] is not None
    assert [d for *_, d in first["seen"]] == [d for *_, d in second["seen"]]


@pytest.mark.parametrize("name", ["resumed-table", "resumed-auto", "resumed-engine"])
def test_a_pair_that_is_resumed_goes_on_to_the_bit(results: Results, name: str) -> None:
    for of_rank in (result[name] for result in results):
        expected, found = of_rank["ids"]
        assert len(expected) == len(found)
        assert all(map(torch.equal, expected, found))
        assert all(map(torch.equal, *of_rank["parameters"]))
        assert of_rank["gates"][0] == of_rank["gates"][1]


def test_an_engine_is_run_by_one_rank_for_both(results: Results) -> None:
    first, second = (result["ddp-engine"] for result in results)
    assert first["status"] == second["status"]
    assert first["status"]["usable"] == 1
    for name, kind in (("ddp-engine", "inline"), ("ddp-local", "local")):
        mine, theirs = (result[name] for result in results)
        assert torch.equal(mine["table"], theirs["table"])
        assert mine["gate"] == theirs["gate"]
        assert [step[2] for step in mine["seen"]] == [step[2] for step in theirs["seen"]]
        for result in (mine, theirs):
            assert (result["status"]["engine"], result["status"]["workers"]) == (kind, 1)


def test_an_engine_that_cannot_start_stops_both(results: Results) -> None:
    failed, told = (result["engine-failure"] for result in results)
    assert failed.startswith("UsageError: ")
    assert "nowhere" in failed
    assert told == "TogetherError: rank 0 stopped: " + failed.removeprefix("UsageError: ")


def test_an_engine_needs_whole_parameters(results: Results) -> None:
    for result in results:
        assert "spread over processes, as by fully_shard" in result["engine-parts"]


def test_a_smaller_batch_is_as_small_on_every_rank(results: Results) -> None:
    first, second = (result["spending"] for result in results)
    assert first["sizes"] == second["sizes"]
    assert min(first["sizes"]) < BATCH == max(first["sizes"])


def test_the_end_in_the_users_own_order_begins_on_both_at_once(results: Results) -> None:
    """Only rank 0 is told how far the run is; each rank then walks its own half of the data."""
    first, second = (result["finish"] for result in results)
    drawn = [[drawn for _, drawn in found["seen"]] for found in (first, second)]
    steps, per_epoch = len(drawn[0]), N // (2 * BATCH)
    assert drawn[0] == drawn[1]
    assert any(drawn[0][: 3 * steps // 4])
    assert not any(drawn[0][-4 * per_epoch :])
    assert first["gate"] == second["gate"]
    assert first["gate"]["reason"].startswith("the last 25% of the run are in your own order")
    last = [torch.cat([ids for ids, _ in found["seen"][-per_epoch:]]) for found in (first, second)]
    assert torch.equal(torch.cat(last).sort().values, torch.arange(N))


def test_pools_are_each_ranks_own(results: Results) -> None:
    first, second = (result["ddp-pool"] for result in results)
    assert first["scored"] == second["scored"] == 32 * 3 * BATCH
    assert first["seen"][0][0].tolist() != second["seen"][0][0].tolist()


def test_a_rank_that_fails_says_so_on_both(results: Results) -> None:
    told, failed = (result["failure"] for result in results)
    assert failed.startswith("DataError: example ")
    assert told == "TogetherError: rank 1 stopped: " + failed.removeprefix("DataError: ")


def test_a_loss_that_is_not_finite_stops_both(results: Results) -> None:
    texts = sorted(result["not-finite"] for result in results)
    assert "stopped: the loss of 1 of 8 examples is not finite (ids 5): lower" in texts[0]
    assert texts[1].startswith("TrainingError: the loss of 1 of 8 examples is not finite (ids 5)")


def test_other_arguments_on_another_rank_are_refused(results: Results) -> None:
    for mine, other in ((0, 1), (1, 0)):
        text = results[mine]["arguments"]
        assert text.startswith(f"UsageError: rank {other} sifts 256 examples by recipe 'table'")
        assert f"seed {other}, rank {mine} sifts" in text


def test_processes_can_be_kept_to_themselves(results: Results) -> None:
    first, second = (result["alone"] for result in results)
    assert len(first) == len(second) == 64
    assert first != second


def test_only_the_first_rank_writes_the_log(results: Results) -> None:
    assert [result["log"] for result in results] == [["metrics.jsonl"], []]


def test_a_rank_that_stays_away_is_noticed(results: Results) -> None:
    assert results[0]["silence"].startswith(
        "TogetherError: rank 0 heard nothing from another rank within 2 s"
    )
