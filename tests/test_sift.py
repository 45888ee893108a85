"""What `sift` promises: ids, weights, pools, devices of use, dry runs, errors that help."""

import gc
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

import gradsift
from gradsift import Recipe, TrainingError, UsageError, draws, scores
from gradsift.clock import VirtualClock
from gradsift.gate import ConstantTime, ConstantVariance, TauThreshold

LOSS = nn.CrossEntropyLoss(reduction="none")
N = 48


def planted(model: Any, loss_fn: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """A score that can be read off the input, whatever the model."""
    return inputs[:, 0]


def planted_loader(batch_size: int = 8, shuffle: bool = True, workers: int = 0) -> DataLoader:
    """Example i has input [i + 1, i] and target i mod 3."""
    ids = torch.arange(N)
    inputs = torch.stack([ids + 1.0, ids.float()], 1)
    return DataLoader(
        TensorDataset(inputs, ids % 3), batch_size=batch_size, shuffle=shuffle, num_workers=workers
    )


POOL = Recipe(score=planted, ratio=3, name="planted")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("recipe", ["uniform", "uniform-iid", "pool", POOL, "katharopoulos2018"])
def test_ids_inputs_and_targets_belong_together(recipe: str | Recipe, workers: int) -> None:
    train = gradsift.sift(
        planted_loader(workers=workers), nn.Linear(2, 3), LOSS, recipe=recipe, seed=4
    )
    for _ in range(2):
        for inputs, targets, weights in (batch_list := list(train)):
            assert len(inputs) == len(targets) == len(weights) == 8
        for batch in batch_list:
            assert batch.indices.dtype == torch.int64
            assert torch.equal(batch.inputs[:, 1].long(), batch.indices)
            assert torch.equal(batch.targets, batch.indices % 3)


def test_an_epoch_is_the_length_of_the_loader_whatever_the_pool() -> None:
    for ratio in (1.0, 2.5, 3.0, 6.0, 11.0):
        train = gradsift.sift(
            planted_loader(), nn.Linear(2, 3), LOSS, recipe=replace(POOL, ratio=ratio)
        )
        assert len(train) == 6
        assert [len(list(train)) for _ in range(3)] == [6, 6, 6]
        assert train.examples_trained == 3 * 48
        assert train.examples_scored == 18 * round(8 * ratio)


def test_a_pool_is_successive_lists_of_the_users_sampler() -> None:
    seen: list[list[int]] = []

    def remember(model: Any, loss_fn: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(inputs[:, 1].long().tolist())
        return inputs[:, 0]

    recipe = Recipe(score=remember, ratio=3, name="r")
    list(gradsift.sift(planted_loader(shuffle=False), nn.Linear(2, 3), LOSS, recipe=recipe))
    rehearsal, *chunks = seen
    assert rehearsal == list(range(8))
    assert {len(chunk) for chunk in chunks} == {16, 8}
    assert [i for chunk in chunks for i in chunk] == list(range(N)) * 3


def test_choice_and_weights_are_those_of_the_draw() -> None:
    """The loader adds nothing of its own: same generator, same scores, same draw."""
    train = gradsift.sift(
        planted_loader(shuffle=False), nn.Linear(2, 3), LOSS, recipe=POOL, seed=7, rank=2
    )
    generator = torch.Generator().manual_seed(7 * 1_000_003 + 2)
    for step, batch in enumerate(train):
        pool = torch.arange(step * 24, step * 24 + 24) % N
        expected = draws.Systematic().draw(pool.double() + 1, 8, generator)
        assert torch.equal(batch.indices, pool[expected.positions])
        assert torch.allclose(batch.weights.double(), expected.weights, rtol=1e-6)
        assert batch.size == 8
        assert batch.drawn


def test_uniform_iid_draws_from_the_whole_data_with_weight_one() -> None:
    train = gradsift.sift(planted_loader(), nn.Linear(2, 3), LOSS, recipe="uniform-iid", seed=1)
    ids = torch.cat([batch.indices for _ in range(50) for batch in train])
    counts = torch.bincount(ids, minlength=N).double()
    expected = len(ids) / N
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert len(train) * 50 * 8 == len(ids)
    assert 20 < chi_square < 85
    assert any(len(batch.indices.unique()) < 8 for batch in train)
    assert all(torch.equal(batch.weights, torch.ones(8)) for batch in train)


def test_uniform_iid_refuses_an_order_of_its_own() -> None:
    data = TensorDataset(torch.randn(N, 2), torch.zeros(N, dtype=torch.int64))
    sampler = WeightedRandomSampler(torch.ones(N).tolist(), N)
    for loader in (DataLoader(data, batch_size=8, sampler=sampler), [(torch.zeros(2, 2),) * 2]):
        with pytest.raises(UsageError, match="another objective"):
            gradsift.sift(loader, nn.Linear(2, 3), LOSS, recipe="uniform-iid")


def sharp_task() -> tuple[DataLoader, nn.Module]:
    """Nine of ten examples are solved: τ is about sqrt(10)."""
    inputs = torch.zeros(200, 2)
    inputs[:, 0] = 30.0
    inputs[::10, 0] = 0.0
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    data = TensorDataset(inputs, torch.zeros(200, dtype=torch.int64))
    order = torch.Generator().manual_seed(0)
    return DataLoader(data, batch_size=20, shuffle=True, generator=order), model


def test_katharopoulos2018_opens_when_tau_says_so_and_shuts_again() -> None:
    loader, model = sharp_task()
    train = gradsift.sift(loader, model, LOSS, recipe="katharopoulos2018")
    drawn: list[bool] = []
    for _ in range(4):
        for batch in train:
            drawn.append(batch.drawn)
            batch.loss(model(batch.inputs))
    assert train.gate is not None
    opened = train.gate["opened_at_step"]
    assert opened is not None
    assert 8 < opened < 14
    assert drawn == [False] * opened + [True] * (40 - opened)
    assert str(train).startswith("on: needs tau above 2.00, has")
    with torch.no_grad():
        model.get_parameter("weight").zero_()
    for _ in range(3):
        for batch in train:
            drawn.append(batch.drawn)
            batch.loss(model(batch.inputs))
    assert not drawn[-1]
    assert train.gate["state"] == "off"
    assert train.gate["opened_at_step"] == opened


@pytest.mark.parametrize(
    ("gate", "pool", "size"), [(ConstantVariance(), 20, 10), (ConstantTime(), 30, 10)]
)
def test_variants_shrink_the_batch(gate: Any, pool: int, size: int) -> None:
    loader, model = sharp_task()
    recipe = Recipe(draw=draws.Multinomial(), ratio=1, gate=gate, name="variant")
    train = gradsift.sift(loader, model, LOSS, recipe=recipe)
    sizes, before = [], 0
    for _ in range(6):
        for batch in train:
            batch.loss(model(batch.inputs))
            sizes.append((train.examples_scored - before, len(batch), batch.size))
            before = train.examples_scored
    assert sizes[0] == (0, 20, 20)
    scored, trained, nominal = sizes[-1]
    assert abs(scored - pool) <= 1
    assert abs(trained - size) <= 1
    assert nominal == trained


def test_a_plain_function_as_score_feeds_the_gate_at_a_counted_cost() -> None:
    recipe = Recipe(score=planted, gate=TauThreshold(threshold=1e9), name="counted")
    clock = VirtualClock(score=2.0)
    train = gradsift.sift(planted_loader(), nn.Linear(2, 3), LOSS, recipe=recipe, clock=clock)
    list(train)
    assert train.examples_scored == 48
    assert train.gate is not None
    assert "over 6 batches" in train.gate["reason"]
    assert clock.now() == train.seconds["scoring"] == 48 * 2.0


def test_the_first_batch_is_a_dry_run() -> None:
    def scalar(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def per_class(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs

    def batch_norm(outputs: Tensor, targets: Tensor) -> Tensor:
        return LOSS(outputs, targets) / targets.sum()

    cases = [
        (scalar, r"loss_fn returned a scalar, expected \[8\]: use reduction='none'"),
        (per_class, r"loss_fn returned shape \[8, 3\], expected \[8\]"),
        (batch_norm, "when the rest of its batch changes"),
        (lambda outputs, targets: -LOSS(outputs, targets), "negative|below zero"),
    ]
    for loss_fn, message in cases:
        recipe = "loss" if loss_fn is cases[-1][0] else "pool"
        train = gradsift.sift(planted_loader(), nn.Linear(2, 3), loss_fn, recipe=recipe)
        with pytest.raises(UsageError, match=message):
            next(iter(train))


def test_the_dry_run_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train = gradsift.sift(planted_loader(shuffle=False), model, LOSS)
    plain = iter(planted_loader(shuffle=False))
    next(plain)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    next(iter(train))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_inputs_of_every_kind_reach_the_model() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.linear(x) * scale[:, None]

    mappings = [
        {"x": torch.randn(4, 2), "scale": torch.ones(4), "labels": torch.arange(4) % 3}
        for _ in range(6)
    ]
    tuples = [((m["x"], m["scale"]), m["labels"]) for m in mappings]
    model = Keywords()
    for batches in (mappings, tuples):
        train = gradsift.sift(batches, model, LOSS, recipe="pool")
        for batch in train:
            inputs = batch.inputs
            outputs = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
            assert batch.loss(outputs).shape == ()
        assert train.examples_scored == 72


def test_own_split_and_forward() -> None:
    batches = [{"image": torch.randn(4, 2), "y": torch.arange(4) % 3} for _ in range(6)]
    model = nn.Linear(2, 3)
    with pytest.raises(UsageError, match=r"'image', 'y'.*split="):
        next(iter(gradsift.sift(batches, model, LOSS, recipe="uniform")))
    train = gradsift.sift(
        batches,
        model,
        LOSS,
        recipe="pool",
        split=lambda batch: (batch["image"], batch["y"]),
        forward=lambda model, image: model(2 * image),
    )
    assert sum(1 for _ in train) == 6


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(N):
            yield torch.tensor([index + 1.0, float(index)]), torch.tensor(index % 3)


def test_streams_are_restarted_when_exhausted() -> None:
    train = gradsift.sift(DataLoader(Stream(), batch_size=8), nn.Linear(2, 3), LOSS, recipe=POOL)
    for _ in range(3):
        batches = list(train)
        assert [len(batch) for batch in batches] == [8] * 6
        assert all(torch.equal(b.inputs[:, 1].long(), b.indices % N) for b in batches)
    with pytest.raises(TypeError):
        len(train)


def test_a_one_pass_stream_gives_fewer_steps() -> None:
    batches = ((torch.randn(8, 2), torch.arange(8) % 3) for _ in range(7))
    train = gradsift.sift(batches, nn.Linear(2, 3), LOSS, recipe="pool")
    with pytest.raises(TypeError, match="one-pass"):
        len(train)
    assert [len(batch) for batch in train] == [8, 8, 8]
    assert list(train) == []
    assert any("one-pass" in notice for notice in train.notices)


def test_ragged_batches_are_refused_with_the_name_of_the_leaf() -> None:
    batches = [{"x": torch.randn(4, k), "labels": torch.arange(4)} for k in (5, 6, 7)]
    model = nn.LazyLinear(4)
    train = gradsift.sift(
        batches, model, LOSS, recipe="pool", forward=lambda model, inputs: inputs["x"][:, :4]
    )
    with pytest.raises(UsageError, match=r"\['x'\] is ragged: shapes \[4, 5\]"):
        list(train)


def test_a_second_sift_of_a_living_loader_is_an_error() -> None:
    loader, model = planted_loader(), nn.Linear(2, 3)
    first = gradsift.sift(loader, model, LOSS)
    with pytest.raises(UsageError, match="sifted already"):
        gradsift.sift(loader, model, LOSS)
    list(first)
    del first
    gc.disable()
    try:
        gradsift.sift(loader, model, LOSS)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "nonsense"}, "recipe 'nonsense' is unknown, expected one of"),
        ({"loss_fn": 3}, "loss_fn is a int, expected a callable"),
        ({"model": None}, "model is a NoneType"),
        ({"engine": "ray"}, "engine 'ray' received"),
        ({"spend": "money"}, "spend 'money' received"),
        ({"rank": 2, "world_size": 2}, "rank 2 received, expected 0 to 1"),
        ({"loader": 5}, "the loader is a int"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "loader": planted_loader(),
        "model": nn.Linear(2, 3),
        "loss_fn": LOSS,
    }
    given |= arguments
    unchecked: Any = getattr(gradsift.sift, "__wrapped__", gradsift.sift)
    with pytest.raises(UsageError, match=message):
        unchecked(given.pop("loader"), given.pop("model"), given.pop("loss_fn"), **given)


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    inputs = torch.zeros(N, 2)
    inputs[5] = torch.nan
    data = TensorDataset(inputs, torch.arange(N) % 3)
    train = gradsift.sift(DataLoader(data, batch_size=8), model := nn.Linear(2, 3), LOSS)
    batch = next(iter(train))
    with pytest.raises(TrainingError, match=r"1 of 8 examples is not finite \(ids 5\)"):
        batch.loss(model(batch.inputs))


def test_scores_that_are_not_finite_are_counted_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(model: Any, loss_fn: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(inputs[:, 1] == 5, torch.nan, inputs[:, 0])

    recipe = Recipe(score=broken, ratio=6, name="broken")
    train = gradsift.sift(planted_loader(), nn.Linear(2, 3), LOSS, recipe=recipe)
    with caplog.at_level(logging.WARNING, logger="gradsift"):
        list(train)
    assert train.quarantined == 6
    assert sum("not finite" in record.message for record in caplog.records) == 1


def test_batchnorm_and_bias_are_said_once() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
    recipe = Recipe(score=scores.Loss(), draw=draws.TopK(), name="top")
    train = gradsift.sift(planted_loader(), model, LOSS, recipe=recipe)
    for _ in range(2):
        list(train)
    assert [n.split()[0] for n in train.notices] == ["recipe", "the"]
    assert "biased on purpose" in train.notices[0]
    assert "BatchNorm" in train.notices[1]


def test_a_silent_loop_is_told_how_to_report() -> None:
    train = gradsift.sift(planted_loader(), nn.Linear(2, 3), LOSS)
    list(train)
    assert any("batch.loss(outputs)" in notice for notice in train.notices)


def test_the_log_holds_steps_gate_and_events(tmp_path: Path) -> None:
    loader, model = sharp_task()
    train = gradsift.sift(
        loader, model, LOSS, recipe="katharopoulos2018", log=tmp_path / "run", clock=VirtualClock()
    )
    for _ in range(3):
        for batch in train:
            batch.loss(model(batch.inputs))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all({"kind", "step", "seconds"} <= line.keys() for line in lines)
    assert [line["state"] for line in lines if line["kind"] == "gate"] == ["off", "on"]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, 31))
    assert steps[0]["drawn"] is False
    assert steps[0]["kappa"] is None
    last = steps[-1]
    assert last["drawn"] is True
    assert 0 < last["kappa"] <= 1 + 1e-9
    assert last["trained"] == 600
    assert last["scored"] == train.examples_scored
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_a_log_changes_no_number(tmp_path: Path) -> None:
    def run(log: Path | None) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(2, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        train = gradsift.sift(planted_loader(), model, LOSS, recipe="pool", log=log)
        for _ in range(3):
            for batch in train:
                optimizer.zero_grad()
                batch.loss(model(batch.inputs)).backward()
                optimizer.step()
        return model.weight.detach()

    assert torch.equal(run(None), run(tmp_path))


def test_default_dtype_carries_the_weights() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        train = gradsift.sift(planted_loader(), nn.Linear(2, 3), LOSS, recipe=POOL)
        assert next(iter(train)).weights.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_unwritable_log_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write measurements"):
        gradsift.sift(planted_loader(), nn.Linear(2, 3), LOSS, log=tmp_path / "file/run")


def test_weights_of_the_plain_order_are_ones_that_cannot_be_written_to() -> None:
    """They are one number, shared by every batch."""
    batches = [(torch.ones(size, 2), torch.zeros(size, dtype=torch.int64)) for size in (4, 4, 3)]
    train = gradsift.sift(batches, nn.Linear(2, 3), LOSS, recipe="uniform")
    for batch in train:
        assert torch.equal(batch.weights, torch.ones(len(batch)))
        with pytest.raises(RuntimeError, match="single memory location"):
            batch.weights.mul_(2)
