"""Curves that workers measure: slices, passes, points, and what a sifted loader makes of them."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from engines import BLOCK, CROSS_ENTROPY, N, examples, few, model, norm_task, numbered
from gradsift import DataError, UsageError, engines
from gradsift.clock import VirtualClock
from gradsift.data.problem import from_datasets, wrong_class
from gradsift.engine.curves import EVERY, Curves, Point
from gradsift.engine.evaluate import EXAMPLES, SLICES, slice_ids
from gradsift.engine.interface import Block, Scored, blocks_of
from gradsift.engine.ledger import TRIES, Ledger
from gradsift.engine.opening import find_set, open_sets
from gradsift.engine.task import Examiner

HELD_OUT = TensorDataset(
    torch.randn(21, 4, generator=torch.Generator().manual_seed(5)), torch.arange(21) % 3
)


def held_out() -> TensorDataset:
    return HELD_OUT


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, EXAMPLES, EXAMPLES + 1, 50_000, 10**9])
def test_slices_share_out_a_sample_of_any_set(length: int) -> None:
    parts = [slice_ids(length, place) for place in range(SLICES)]
    ids = sorted(i for part in parts for i in part)
    assert len(ids) == len(set(ids))
    assert all(0 <= i < length for i in ids)
    if length <= EXAMPLES:
        assert ids == list(range(length))
        return
    assert EXAMPLES / 3 < len(ids) <= EXAMPLES
    assert max(len(part) for part in parts) - min(len(part) for part in parts) <= 1
    for part in parts:
        assert part[-1] - part[0] > 0.9 * length


@pytest.mark.parametrize("period", [2, 8, 10, 16, 100])
def test_a_sample_of_data_with_a_period_is_even(period: int) -> None:
    """Classes that take turns, as in many files, are all looked at alike."""
    ids = [i for place in range(SLICES) for i in slice_ids(60_000, place)]
    counts = Counter(i % period for i in ids)
    mean = len(ids) / period
    assert len(counts) == period
    assert max(abs(count - mean) for count in counts.values()) < 6 * math.sqrt(mean)


def slow_quality(network: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """One example at a time."""
    network.eval()
    loss, error = [], []
    for x, y in zip(*data.tensors, strict=True):
        with torch.no_grad():
            outputs = network(x.unsqueeze(0))
        loss.append(float(CROSS_ENTROPY(outputs, y.unsqueeze(0))[0]))
        error.append(float(outputs.argmax() != y))
    return math.fsum(loss) / len(loss), math.fsum(error) / len(error)


class WithDropout(nn.Module):
    """Trains with noise and statistics of its own, and must not while it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.layers(inputs))


@pytest.mark.parametrize("chunk", [1, 2, 3, 512])
def test_a_pass_over_all_slices_is_the_mean_over_the_examples(chunk: int) -> None:
    torch.manual_seed(0)
    network = WithDropout().train()
    asked: dict[str, Any] = {"evaluate": {"held out": held_out}, "error_fn": wrong_class}
    examiner = Examiner(replace(norm_task(), **asked, model=network, chunk=chunk))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    curves, point = Curves(["held out"], first=5), None
    for block in curves.slices:
        assert point is None
        found = examiner.answer(block.start, block.stop, block.part)
        point = curves.came(Scored(block, found, 3, 0.1), ())
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    loss, error = slow_quality(network, HELD_OUT)
    assert isinstance(point, Point)
    assert (point.set, point.version, point.newest, point.examples) == ("held out", 3, 3, 21)
    assert (point.loss, point.error) == pytest.approx((loss, error), rel=1e-6)


def result(block: Block, version: int = 1, loss: float = 1.0, count: int = 2) -> Scored:
    return Scored(block, torch.tensor([loss, math.nan, count]), version, 0.1)


def test_a_point_says_which_versions_it_is_made_of() -> None:
    curves = Curves(["a", "b"], first=10)
    mine = [block for block in curves.slices if block.name == "b"]
    assert [block.number for block in mine] == list(range(10 + SLICES, 10 + 2 * SLICES))
    for k, block in enumerate(mine[:-1]):
        assert curves.came(result(block, version=40 + k), ()) is None
    point = curves.came(result(mine[-1], version=30, loss=5.0, count=4), ())
    assert point is not None
    assert (point.version, point.newest) == (30, 40 + SLICES - 2)
    assert point.loss == pytest.approx((2 * (SLICES - 1) + 20) / (2 * (SLICES - 1) + 4))
    assert math.isnan(point.error)
    assert curves.came(result(mine[0]), ()) is None


def test_a_slice_that_is_set_aside_is_left_out() -> None:
    curves = Curves(["a"], first=10)
    for block in curves.slices[1:]:
        assert curves.came(result(block), ()) is None
    point = curves.came(result(curves.slices[1], version=2), {10})
    assert point is not None
    assert point.examples == 2 * (SLICES - 1)


@given(st.integers(1, 5), st.integers(0, 3), st.lists(st.integers(1, 7), max_size=60))
def test_every_set_gets_a_slice_for_twenty_blocks_in_turn(
    blocks: int, sets: int, asked: list[int]
) -> None:
    curves = Curves([str(k) for k in range(sets)], first=blocks)
    sweep = blocks_of(blocks, 1)
    mixed: list[Block] = []
    for count in asked:
        mixed += curves.among([sweep[k % blocks] for k in range(count)])
    slices = [one for one in mixed if one.part]
    assert len(mixed) - len(slices) == sum(asked)
    turns = sum(asked) // EVERY
    assert len(slices) == turns * sets
    assert [one.start for one in slices] == [k % SLICES for k in range(turns) for _ in range(sets)]
    again = Curves([str(k) for k in range(sets)], first=blocks)
    again.load_state_dict(curves.state_dict())
    assert again.among(sweep * EVERY) == curves.among(sweep * EVERY)


def test_a_poisoned_slice_is_named_as_one() -> None:
    ledger = Ledger()
    (bad, *_) = Curves(["test"], first=7).slices
    ledger.ask([bad])
    for _ in range(TRIES):
        lease = ledger.lease(0)
        assert lease is not None
        ledger.failed(lease.ticket, "cannot be read")
    assert ledger.set_aside == {7}
    assert ledger.news[-1] == (
        "slice 0 of 'test' failed 3 times and is not scored any more; its curve goes on without "
        "it: cannot be read"
    )


def sifted(tmp_path: Path, epochs: int, **options: Any) -> tuple[Any, list[Any], list[Any]]:
    """Trains; returns the loader, all models on the way, and the points of the log."""
    network, clock = model(), VirtualClock(train=1.0, score=0.25)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    data = DataLoader(
        examples(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1)
    )
    engine = engines.inline(block=BLOCK, error=wrong_class, **options)
    train = gradsift.sift(
        data, network, CROSS_ENTROPY, engine=engine, clock=clock, log=tmp_path / "log"
    )
    models = [{name: value.clone() for name, value in network.state_dict().items()}]
    for _ in range(epochs):
        for batch in train:
            optimizer.zero_grad()
            batch.loss(network(batch.inputs)).backward()
            optimizer.step()
            clock.charge(trained=len(batch))
            models.append({name: value.clone() for name, value in network.state_dict().items()})
    train.settle()
    train.close()
    lines = (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return train, models, [line for line in found if line.get("name") == "curve"]


def test_in_exact_mode_every_publication_is_a_point_of_its_own_version(tmp_path: Path) -> None:
    options = {"mode": "exact", "every": 2, "evaluate": {"train": None, "held out": held_out}}
    _, models, points = sifted(tmp_path, 2, **options)
    assert [(point["set"], point["version"]) for point in points] == [
        (name, version) for version in range(0, 11, 2) for name in ("train", "held out")
    ]
    network = model()
    for point in points:
        assert point["newest"] == point["version"] == point["step"]
        network.load_state_dict(models[point["version"]])
        data = examples() if point["set"] == "train" else HELD_OUT
        expected = slow_quality(network, data)
        assert (point["loss"], point["error"]) == pytest.approx(expected, rel=1e-6)
        assert point["examples"] == len(data)


def test_evaluating_costs_seconds_and_counts_as_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odds, steps = 3, 45
    monkeypatch.setattr("gradsift.engine.curves.EVERY", odds)
    plain, _, none = sifted(tmp_path / "a", steps // 5)
    curved, _, points = sifted(tmp_path / "b", steps // 5, every=4, evaluate={"held out": held_out})
    assert none == []
    assert [point["set"] for point in points] == ["held out"]
    assert points[0]["version"] < points[0]["newest"] <= steps
    assert plain.examples_scored == steps * BLOCK
    slices = steps - curved.examples_scored // BLOCK
    assert steps // (odds + 1) - 1 <= slices <= steps // odds
    evaluated = sum(len(slice_ids(21, place % SLICES)) for place in range(slices))
    expected = 0.25 * (curved.examples_scored + evaluated)
    assert curved.seconds["scoring"] == pytest.approx(expected)


def test_parts_of_an_opening() -> None:
    pair = (examples(), HELD_OUT)
    assert {name: len(data) for name, data in open_sets(lambda: pair).items()} == {
        "train": N,
        "test": 21,
    }
    problem = from_datasets("toy", *pair)
    assert find_set(open_sets(lambda: problem), "test", None) is pair[1]
    assert find_set({"train": examples()}, "test", lambda: pair) is pair[1]
    assert find_set(open_sets(examples()), "anything", few).tensors[0].shape == (5, 1)
    with pytest.raises(UsageError, match="to evaluate 'validation', and the data set has train an"):
        find_set(open_sets(lambda: pair), "validation", None)
    with pytest.raises(UsageError, match="to evaluate 'validation', and the data set has train an"):
        find_set({"train": examples()}, "validation", lambda: pair)
    with pytest.raises(DataError, match="is a int, expected a map-style"):
        open_sets(lambda: (numbered(), 3))


def test_a_loss_that_is_no_number_per_example_is_a_failed_slice() -> None:
    task = replace(norm_task(), evaluate={"few": examples}, error_fn=lambda outputs, _: outputs)
    examiner = Examiner(task)
    with pytest.raises(UsageError, match=r"error returned shape \[5, 3\], expected \[5\]"):
        examiner.answer(0, 1, part=1)
