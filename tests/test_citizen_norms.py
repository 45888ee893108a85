"""BatchNorm and dropout: what is said about them, and statistics of the data before evaluation."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gradsift
from citizens import BATCH, FAMILIES, Feature, Loop, Uneven
from gradsift import UsageError, recalibrate_batch_norm
from twins import assert_close


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
    )


def layer_of(model: Any) -> Any:
    return model[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_norm_and_dropout_train_at_the_users_batch_size(family: str) -> None:
    loop = Loop(family, Feature(normed))
    loop.run(36, every=0)
    told = sum("BatchNorm" in notice for notice in loop.train.notices)
    assert told == (family != "uniform")
    assert loop.model.training
    assert loop.train.examples_trained == BATCH * len(loop.drawn)
    assert int(layer_of(loop.model).num_batches_tracked) == len(loop.drawn)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.sampled_from([(), (3,), (2, 3)]))
def test_statistics_are_those_of_all_examples_together(
    sizes: list[int], positions: tuple[int, ...]
) -> None:
    kinds: list[Any] = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d]
    layer = kinds[len(positions)](4).double()
    generator = torch.Generator().manual_seed(sum(sizes))
    data = [
        3 + 2 * torch.randn(size, 4, *positions, generator=generator, dtype=torch.float64)
        for size in sizes
    ]
    assert recalibrate_batch_norm(nn.Sequential(layer), [(x, None) for x in data]) == 1
    for channel in range(4):
        seen = torch.tensor([v for x in data for v in x[:, channel].flatten().tolist()])
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean = sum(seen.double().tolist()) / len(seen)
        assert float(layer.running_mean[channel]) == pytest.approx(mean, rel=1e-6)
        spread = sum((v - mean) ** 2 for v in seen.double().tolist()) / (len(seen) - 1)
        assert float(layer.running_var[channel]) == pytest.approx(spread, rel=1e-6)


def test_a_second_layer_sees_what_training_shows_it() -> None:
    """Its input comes from batches that the first one normalises by themselves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    data = [(torch.randn(8, 3, dtype=torch.float64) + k, None) for k in range(4)]
    second = [
        model[1]((x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-5)).detach()
        for x, _ in data
    ]
    recalibrate_batch_norm(model, data)
    together = torch.cat(second)
    layer: Any = model[2]
    assert_close(layer.running_mean, together.mean(0))
    assert_close(layer.running_var, together.var(0))


def test_nothing_else_of_the_model_changes() -> None:
    model = normed()
    model.train()
    layer_of(model).eval()
    model(torch.randn(4, 8)).sum().backward()
    before = copy.deepcopy(model)
    gradients = [value.grad for value in model.parameters()]
    state = torch.get_rng_state()
    recalibrate_batch_norm(model, DataLoader(Uneven(lambda x: x), BATCH))
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(a is b.grad for a, b in zip(gradients, model.parameters(), strict=True))
    for name, value in model.state_dict().items():
        changed = name in ("1.running_mean", "1.running_var")
        assert torch.equal(value, before.state_dict()[name]) != changed
    assert not layer_of(model)._forward_pre_hooks
    assert layer_of(model).track_running_stats


def test_a_model_that_fails_is_left_as_it_was() -> None:
    model = normed()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm(model, [(torch.ones(4, 8), None), (torch.ones(4, 7), None)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not layer_of(model)._forward_pre_hooks


def test_it_undoes_the_drift_of_drawn_batches() -> None:
    """Running statistics follow the examples picked; those of the plain loader do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))
    loader = DataLoader(Uneven(lambda x: x), BATCH, shuffle=True)
    recipe = gradsift.Recipe(score=hard, ratio=4, name="hard")
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    train = gradsift.sift(loader, model, loss_fn, recipe=recipe)
    for _ in range(4):
        for batch in train:
            model(batch.inputs)
    layer: Any = model[0]
    truth = Uneven(lambda x: x).numbers.var(0)
    drifted = abs(float(layer.running_var[0] - truth[0]))
    recalibrate_batch_norm(model, loader)
    assert drifted > 4.0
    assert abs(float(layer.running_var[0] - truth[0])) < 1e-4


def hard(model: Any, loss_fn: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    return 0.01 + (inputs[:, 0].abs() < 1).float()


def test_no_more_batches_than_asked_for_and_mappings_too() -> None:
    taken = []

    def batches() -> Iterator[dict[str, Tensor]]:
        for k in range(10):
            taken.append(k)
            yield {"input": torch.full((2, 3), float(k)), "labels": torch.zeros(2)}

    model = nn.BatchNorm1d(3)
    recalibrate_batch_norm(model, batches(), batches=4)
    assert taken == [0, 1, 2, 3]
    assert model.running_mean is not None
    assert model.running_mean.tolist() == [1.5] * 3


def test_without_batch_norm_nothing_is_read() -> None:
    assert recalibrate_batch_norm(nn.Linear(2, 2), iter([])) == 0
    assert recalibrate_batch_norm(nn.BatchNorm1d(2, track_running_stats=False), iter([])) == 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="batches=0 received"):
        recalibrate_batch_norm(normed(), [], batches=0)
    with pytest.raises(UsageError, match="no batch of two or more examples"):
        recalibrate_batch_norm(normed(), [(torch.ones(1, 8), None)])
