"""Scoring leaves no trace: everything is noted before by a slow snapshot and compared after."""

import copy
import inspect
import random
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradsift.scores import Loss, OutputGradient, score_examples
from gradsift.scores.untouched import Mode, random_states, untouched

LOSS = nn.CrossEntropyLoss(reduction="none")
MODES: list[Mode] = ["eval", "train"]


class Restless(nn.Module):
    """Counts in place, replaces a buffer, fills an empty one, adds one, and draws numbers."""

    count: Tensor
    replaced: Tensor
    late: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.BatchNorm1d(4).eval()
        self.dropout = nn.Dropout(0.5)
        self.first = nn.Linear(4, 4)
        self.shared = self.first
        self.head = nn.Linear(4, 3)
        self.head.bias.requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("late", None)
        self.alias = self.norm

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.replaced = self.replaced + 1
        self.late = torch.ones(1)
        if "added" not in self._buffers:
            self.register_buffer("added", torch.ones(1))
        random.random()
        np.random.rand()
        noise = torch.rand(())
        return self.head(self.dropout(self.first(self.frozen(self.norm(self.shared(x)))))) + noise


class AlwaysTraining(nn.Sequential):
    """Its BatchNorm trains whatever mode is asked for."""

    def train(self, mode: bool = True) -> "AlwaysTraining":
        for module in self.modules():
            module.training = mode or isinstance(module, nn.BatchNorm1d)
        return self


def with_gradients(model: nn.Module) -> nn.Module:
    """One parameter has a gradient, the others have none."""
    next(iter(model.parameters())).grad = torch.ones_like(next(iter(model.parameters())))
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a pass could move, by value and by identity.

    Not Python's random state: the type checker that runs with the tests draws from it.
    """
    buffers = {
        f"{place}.{name}": (id(value), None if value is None else value.tolist())
        for place, module in model.named_modules()
        for name, value in module._buffers.items()
    }
    parameters = {
        name: (
            id(value),
            value.tolist(),
            value.requires_grad,
            id(value.grad),
            None if value.grad is None else value.grad.tolist(),
        )
        for name, value in model.named_parameters()
    }
    kind, keys, *rest = np.random.get_state()
    return {
        "buffers": buffers,
        "parameters": parameters,
        "training": {place: module.training for place, module in model.named_modules()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": (kind, list(keys), rest),
        "gradients": torch.is_grad_enabled(),
    }


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [OutputGradient, Loss])
@pytest.mark.parametrize("chunk", [None, 4])
def test_a_restless_model_is_as_before(mode: Mode, kind: Any, chunk: int | None) -> None:
    model = with_gradients(Restless())
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    before = snapshot(model)
    scores = score_examples(kind(mode=mode), model, LOSS, x, y, count=12, chunk=chunk)
    assert snapshot(model) == before
    kind(mode=mode)(model, LOSS, x, y)
    assert snapshot(model) == before
    assert bool((scores > 0).all())


def test_the_snapshot_sees_a_pass() -> None:
    model = with_gradients(Restless())
    before = snapshot(model)
    LOSS(model(torch.randn(6, 4)), torch.arange(6) % 3).mean().backward()
    after = snapshot(model)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"buffers", "parameters", "torch", "numpy"}


@given(
    flags=st.lists(st.booleans(), min_size=5, max_size=5),
    mode=st.sampled_from(MODES),
)
@settings(derandomize=True, max_examples=30, deadline=None)
def test_every_training_flag_by_itself(flags: list[bool], mode: Mode) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    with untouched(model, mode):
        found = [module.training for module in model.modules()]
        as_the_user_trains = flags if flags[0] else [True] * len(flags)
        assert found == (as_the_user_trains if mode == "train" else [False] * len(flags))
    assert [module.training for module in model.modules()] == flags


def fail_after_backward(model: nn.Module, x: Tensor, mode: Mode) -> None:
    with untouched(model, mode):
        model(x).sum().backward()
        raise ZeroDivisionError


@pytest.mark.parametrize("mode", MODES)
def test_an_exception_inside_leaves_no_trace_either(mode: Mode) -> None:
    model = with_gradients(Restless())
    x = torch.randn(4, 4)
    before = snapshot(model)

    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        OutputGradient(mode=mode)(model, broken, x, torch.zeros(4))
    with pytest.raises(ZeroDivisionError):
        fail_after_backward(model, x, mode)
    assert snapshot(model) == before


def test_a_model_that_overrides_train_keeps_its_statistics() -> None:
    model = AlwaysTraining(nn.Linear(2, 3), nn.BatchNorm1d(3))
    x = torch.randn(5, 2)
    before = snapshot(model)
    OutputGradient()(model, LOSS, x, torch.zeros(5, dtype=torch.int64))
    assert snapshot(model) == before


def test_gradients_are_absent_inside_and_back_outside() -> None:
    model = nn.Linear(2, 1)
    kept = model.weight.grad = torch.ones(1, 2)
    with untouched(model):
        assert model.weight.grad is None
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is kept
    assert kept.tolist() == [[1.0, 1.0]]
    assert model.bias.grad is None


def test_hooks_of_the_user_run() -> None:
    model, seen = nn.Linear(2, 3), []
    model.register_forward_hook(lambda module, args, output: seen.append(output.shape[0]))
    OutputGradient()(model, LOSS, torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
    assert seen == [4]


def test_scoring_between_forward_and_backward_is_harmless() -> None:
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    results = []
    for scored in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
        loss = LOSS(model(x), y).mean()
        if scored:
            OutputGradient()(model, LOSS, x, y)
        loss.backward()
        results.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_pythons_random_state(fails: bool) -> None:
    unchecked = contextmanager(inspect.unwrap(random_states))
    state = random.getstate()
    with suppress(ZeroDivisionError), unchecked([]):
        random.random()
        if fails:
            raise ZeroDivisionError
    assert random.getstate() == state


def test_anything_that_is_no_module_keepsrandom_states_only() -> None:
    state = torch.get_rng_state()
    with untouched(lambda x: x, "train"):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)


Score = Callable[[Any, Any, Any, Any], Tensor]
SCORES: dict[str, Score] = {
    f"{kind.__name__} {mode} {precision}": kind(mode=mode, precision=precision)
    for kind in (OutputGradient, Loss)
    for mode in MODES
    for precision in ("auto", "float32", "bfloat16")
}


def train(score: Score | None, place: str, autocast: bool) -> dict[str, Any]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if score and place == "before":
                score(model, LOSS, x, y)
            outputs = model(x)
            if score and place == "after":
                score(model, LOSS, x, y)
            loss = LOSS(outputs, y).mean()
        optimizer.zero_grad()
        if score and place == "outside":
            score(model, LOSS, x, y)
        loss.backward()
        optimizer.step()
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("place", ["before", "after", "outside"])
def test_training_is_bit_identical_with_and_without_scoring(place: str, autocast: bool) -> None:
    plain = train(None, place, autocast)
    for name, score in SCORES.items():
        scored = train(score, place, autocast)
        assert all(torch.equal(plain[key], scored[key]) for key in plain), name


def test_train_mode_keeps_layers_that_are_frozen_in_eval() -> None:
    frozen, free = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    model = nn.Sequential(frozen, free)
    frozen.eval()
    with untouched(model, "train"):
        assert (frozen.training, free.training) == (False, True)
    model.eval()
    with untouched(model, "train"):
        assert free.training
    assert not free.training
