"""A batch: how it unpacks, moves, averages, and what it says when a loss goes wrong."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradsift.errors import TrainingError, UsageError
from gradsift.records import Draw, Plan, WeightedBatch, check_per_example
from twins import assert_close

CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none")
few = settings(derandomize=True, max_examples=60, deadline=None)


class Reports:
    """Keeps what a batch reports."""

    def __init__(self) -> None:
        self.calls: list[tuple[WeightedBatch, Any, Tensor]] = []

    def __call__(self, batch: WeightedBatch, outputs: Any, losses: Tensor) -> None:
        self.calls.append((batch, outputs, losses))


def make(weights: Tensor, *, drawn: bool = True, size: int | None = None, **parts: Any) -> Any:
    count = len(weights)
    defaults: dict[str, Any] = {
        "inputs": torch.arange(count, dtype=torch.float32).unsqueeze(1),
        "targets": torch.zeros(count, dtype=torch.int64),
        "ids": torch.arange(100, 100 + count),
        "loss_fn": CROSS_ENTROPY,
        "report": Reports(),
    }
    size = count if size is None else size
    return WeightedBatch(weights=weights, size=size, drawn=drawn, **{**defaults, **parts})


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_it_unpacks_as_inputs_targets_weights() -> None:
    batch = make(torch.ones(3))
    inputs, targets, weights = batch
    assert inputs is batch.inputs
    assert targets is batch.targets
    assert weights is batch.weights
    assert len(batch) == 3


@given(seed=st.integers(0, 1000), count=st.integers(1, 20), size=st.integers(1, 30))
@few
def test_the_mean_of_a_draw_is_a_weighted_sum_over_the_nominal_size(
    seed: int, count: int, size: int
) -> None:
    weights, values = normal(seed, count).exp(), normal(seed + 1, count)
    terms = [w * v for w, v in zip(weights.tolist(), values.tolist(), strict=True)]
    expected = torch.tensor(math.fsum(terms) / size, dtype=torch.float64)
    assert_close(make(weights, size=size).mean(values), expected)


@given(seed=st.integers(0, 1000), count=st.integers(1, 300))
@few
def test_the_mean_in_the_users_order_is_the_mean_to_the_bit(seed: int, count: int) -> None:
    values = normal(seed, count).float()
    assert torch.equal(make(torch.ones(count), drawn=False).mean(values), values.mean())


def test_the_mean_is_never_normalised_by_the_weights() -> None:
    batch = make(torch.tensor([2.0, 2.0]))
    assert batch.mean(torch.tensor([1.0, 1.0])) == 2.0


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_booleans_and_whole_numbers_are_averaged(dtype: torch.dtype, drawn: bool) -> None:
    batch = make(torch.tensor([1.0, 3.0, 0.5, 1.0]), drawn=drawn)
    mean = batch.mean(torch.tensor([1, 1, 0, 0]).to(dtype))
    assert mean == (1.0 if drawn else 0.5)
    assert mean.dtype == torch.float32


def test_an_empty_draw_has_the_mean_zero() -> None:
    batch = make(torch.ones(0), size=4)
    assert batch.mean(torch.zeros(0)) == 0.0


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (3, 2), (1, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    found = "a scalar" if shape == () else str(list(shape)).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(UsageError, match=rf"batch.mean received values .*{found}, expected \[3\]"):
        make(torch.ones(3)).mean(torch.ones(shape))


def test_gradients_flow_through_the_mean_with_the_weights() -> None:
    values = torch.ones(3, requires_grad=True)
    make(torch.tensor([1.0, 2.0, 4.0]), size=2).mean(values).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("drawn", [False, True])
def test_the_loss_is_the_mean_of_the_losses_and_is_reported_once(drawn: bool) -> None:
    batch = make(torch.tensor([0.5, 1.5, 2.0]), drawn=drawn)
    outputs = normal(0, 3, 4)
    losses = CROSS_ENTROPY(outputs, batch.targets)
    assert torch.equal(batch.loss(outputs), batch.mean(losses))
    ((reported, seen, values),) = batch.report.calls
    assert reported is batch
    assert seen is outputs
    assert torch.equal(values, losses)


@pytest.mark.parametrize(
    ("loss_fn", "found"),
    [
        (nn.CrossEntropyLoss(), r"a scalar, expected \[3\]: use reduction='none'"),
        (nn.MSELoss(reduction="none"), r"shape \[3, 4\], expected \[3\]"),
    ],
)
def test_anything_but_one_loss_per_example_is_refused(loss_fn: Any, found: str) -> None:
    targets = torch.zeros(3, dtype=torch.int64)
    if isinstance(loss_fn, nn.MSELoss):
        targets = normal(1, 3, 4)
    batch = make(torch.ones(3), loss_fn=loss_fn, targets=targets)
    with pytest.raises(UsageError, match=f"loss_fn returned {found}"):
        batch.loss(normal(0, 3, 4))
    assert batch.report.calls == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_the_examples_and_is_not_reported(bad: float) -> None:
    batch = make(torch.ones(4), loss_fn=lambda z, y: z)
    with pytest.raises(TrainingError, match=r"loss of 2 of 4 examples .*\(ids 101, 103\)") as error:
        batch.loss(torch.tensor([0.0, bad, 1.0, bad]))
    assert "\n" not in str(error.value)
    assert batch.report.calls == []


def test_at_most_ten_examples_are_named() -> None:
    batch = make(torch.ones(12), loss_fn=lambda z, y: z)
    with pytest.raises(TrainingError, match=r"12 of 12 .*ids 100, .*, 109, …\)"):
        batch.loss(torch.full((12,), math.nan))
    batch = make(torch.ones(10), loss_fn=lambda z, y: z)
    with pytest.raises(TrainingError, match=r"ids 100, .*, 109\)"):
        batch.loss(torch.full((10,), math.nan))


def test_to_moves_everything_and_keeps_the_rest() -> None:
    inputs = {"x": torch.ones(2, 3), "name": ["a", "b"]}
    batch = make(torch.ones(2), inputs=inputs)
    moved = batch.to("meta")
    assert type(moved) is WeightedBatch
    devices = [moved.inputs["x"], moved.targets, moved.weights, moved.indices]
    assert {tensor.device.type for tensor in devices} == {"meta"}
    assert moved.inputs["name"] == ["a", "b"]
    assert (moved.size, moved.drawn, moved.loss_fn) == (2, True, CROSS_ENTROPY)
    assert moved.report is batch.report
    assert batch.weights.device.type == "cpu"
    assert batch.to(torch.device("cpu"), non_blocking=True).indices.tolist() == [100, 101]


def test_it_is_a_frozen_dataclass_that_frameworks_can_move() -> None:
    batch = make(torch.ones(2))
    assert callable(batch.to)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.size = 3
    assert dataclasses.is_dataclass(batch)


def test_records_have_defaults() -> None:
    assert Plan() == Plan(candidates=None, size=None, draw=None)
    draw = Draw(torch.tensor([0]), torch.ones(1, dtype=torch.float64), 1)
    assert draw.quarantined == 0


def test_the_check_accepts_exactly_one_number_per_example() -> None:
    check_per_example(torch.zeros(3), 3, "it returned")
    with pytest.raises(UsageError, match=r"it returned shape \[3\], expected \[2\]"):
        check_per_example(torch.zeros(3), 2, "it returned")


def test_large_weights_survive_half_precision_losses() -> None:
    batch = make(torch.tensor([1e5, 1.0]), size=2)
    mean = batch.mean(torch.tensor([0.5, 1.0], dtype=torch.float16))
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(25000.5)


def test_ids_are_a_tensor_only_once_somebody_looks() -> None:
    batch = make(torch.ones(3), ids=[7, 5, 9])
    assert len(batch) == 3
    assert "indices" not in vars(batch)
    assert torch.equal(batch.indices, torch.tensor([7, 5, 9]))
    assert batch.indices is batch.indices
    moved = batch.to("cpu")
    assert torch.equal(moved.indices, batch.indices)
