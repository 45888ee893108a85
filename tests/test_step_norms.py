"""A table of exact norms that the training steps tell themselves: against a loop over examples."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from gradsift import Recipe, SiftedLoader
from gradsift.budget import parse_budget
from gradsift.data.named import ReadOptions, load_problem
from gradsift.errors import UsageError
from gradsift.records import ScoreUpdate
from gradsift.sampling.distributions import Mixed, Proportional
from gradsift.sampling.draws import Stratified
from gradsift.scores import GradientNorm
from gradsift.scores.gradient_loop import gradient_norms
from gradsift.sifting.watching import StepWatch
from gradsift.trainer import Settings, run
from norms import LOSS, filled, normal
from twins import assert_close

N, BATCH, STEPS, WIDTH = 24, 6, 3, 4
CLASSES = torch.arange(N) % 3


class Recurrent(nn.Module):
    """An LSTM and attention, whose rules read the parameters after the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.memory(x)[0]
        return self.head(self.attention(x, x, x)[0].mean(1))


def dense() -> Any:
    return filled(
        nn.Sequential(nn.Flatten(), nn.Linear(STEPS * WIDTH, 5), nn.Tanh(), nn.Linear(5, 3))
    )


def data() -> TensorDataset:
    """Inputs of very different size, so that norms differ."""
    return TensorDataset(
        normal(3, N, STEPS, WIDTH) * torch.logspace(-1, 1, N).view(-1, 1, 1), CLASSES
    )


def recipe(score: GradientNorm | None = None, **parts: Any) -> Recipe:
    mixed = Mixed(Proportional(), uniform=0.3)
    given = {"distribution": mixed, "draw": Stratified(), "smoothing": 0.0, **parts}
    return Recipe(source="table", score=score or GradientNorm(), name="exact", **given)


def loader(batch: int = BATCH) -> DataLoader[Any]:
    return DataLoader(data(), batch, shuffle=True, generator=torch.Generator().manual_seed(5))


def listened(train: SiftedLoader) -> list[ScoreUpdate]:
    """What the policy learns from here on."""
    told: list[ScoreUpdate] = []
    learn = train.policy.learn

    def listen(update: ScoreUpdate, weights: Tensor, *, drawn: bool) -> None:
        told.append(update)
        learn(update, weights, drawn=drawn)

    train.policy.learn = listen  # pyright: ignore[reportAttributeAccessIssue]
    return told


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    return {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name](model.parameters(), lr=0.05)


@pytest.mark.parametrize("divisor", [1.0, 3.0, 1 / 1024])
@pytest.mark.parametrize("build", [dense, lambda: filled(Recurrent())])
def test_every_norm_is_that_of_the_loop_before_the_step(build: Any, divisor: float) -> None:
    """In the first pass and drawn, accumulated over batches or scaled, while parameters move."""
    model, twin = build(), build()
    train = gradsift.sift(loader(), model, LOSS, recipe=recipe())
    told, optimizer = listened(train), optimizer_of(model, "sgd")
    expected: list[Tensor] = []
    drawn = 0
    for _ in range(3):
        for batch in train:
            twin.load_state_dict(model.state_dict())
            expected.append(gradient_norms(twin, LOSS, batch.inputs, batch.targets))
            loss = batch.loss(model(batch.inputs)) / divisor
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                parameter.grad.mul_(divisor)
            optimizer.step()
            drawn += batch.drawn
    assert drawn > 4
    assert train.examples_scored == 0
    assert len(told) == len(expected) == 12
    for update, norms in zip(told, expected, strict=True):
        assert_close(update.score, norms, 1e-9)
        assert update.label is not None
        assert torch.equal(update.label, CLASSES[update.index])


def test_the_table_holds_the_norms() -> None:
    """All examples in one step: what the table holds of each is its norm over their level."""
    model = dense()
    train = gradsift.sift(loader(N), model, LOSS, recipe=recipe())
    for batch in train:
        batch.loss(model(batch.inputs)).backward()
    x, y = data().tensors
    norms = gradient_norms(model, LOSS, x, y)
    table = train.table
    assert table is not None
    torch.testing.assert_close(
        table.relative(torch.arange(N)), norms / norms.square().mean().sqrt(), rtol=2e-3, atol=0
    )


def test_preconditioned_norms_are_those_of_the_optimiser_before_its_step() -> None:
    model, twin = dense(), dense()
    optimizer, other = optimizer_of(model, "adam"), optimizer_of(twin, "adam")
    score, exact = GradientNorm(precondition=optimizer), GradientNorm(precondition=other)
    train = gradsift.sift(loader(), model, LOSS, recipe=recipe(score))
    told, expected = listened(train), []
    for batch in train:
        twin.load_state_dict(model.state_dict())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        expected.append(exact(twin, LOSS, batch.inputs, batch.targets))
        optimizer.zero_grad()
        batch.loss(model(batch.inputs)).backward()
        optimizer.step()
    assert len(told) == N // BATCH
    for update, norms in zip(told, expected, strict=True):
        assert_close(update.score, norms, 1e-9)


def trained(sifted: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5), nn.Dropout(), nn.Linear(5, 3)
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batches = gradsift.sift(loader(), model, LOSS, recipe=recipe()) if sifted else loader()
    for batch in batches:
        x, y = (batch.inputs, batch.targets) if sifted else batch
        loss = batch.loss(model(x)) if sifted else LOSS(model(x), y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return copy.deepcopy(model.state_dict())


def test_the_first_pass_is_bit_identical_to_the_plain_loop() -> None:
    sifted, plain = trained(True), trained(False)
    assert all(torch.equal(sifted[name], plain[name]) for name in plain)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_a_step_that_is_not_taken_leaves_no_hook() -> None:
    model = dense()
    train = gradsift.sift(loader(), model, LOSS, recipe=recipe())
    told = listened(train)
    for place, batch in enumerate(train):
        assert hooks(model) > 0
        loss = batch.loss(model(batch.inputs))
        if place == 2:
            break
        if place:
            loss.backward()
            assert hooks(model) == 0
    assert hooks(model) == 0
    assert len(told) == 1


def test_what_happens_after_the_backward_pass_is_not_seen() -> None:
    model = dense()
    train = gradsift.sift(loader(), model, LOSS, recipe=recipe())
    told = listened(train)
    for batch in train:
        loss = batch.loss(model(batch.inputs))
        loss.backward(retain_graph=True)
        loss.backward()
        model(batch.inputs).sum().backward()
    assert len(told) == N // BATCH
    assert all(bool(update.score.isfinite().all()) for update in told)


def test_without_the_losses_nothing_arrives_and_that_is_said() -> None:
    model = dense()
    train = gradsift.sift(loader(), model, LOSS, recipe=recipe())
    for batch in train:
        LOSS(model(batch.inputs), batch.targets).mean().backward()
    assert any("no scores arrive" in notice for notice in train.notices)
    assert hooks(model) == 0


def test_an_example_that_counted_nothing_has_no_norm() -> None:
    model, (x, y) = dense(), data().tensors
    watch, told = StepWatch(GradientNorm(), model), []
    weights = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)
    watch.begin(3)
    losses = LOSS(model(x[:3]), y[:3])
    watch.expect(losses, told.append)
    (weights * losses).sum().backward()
    expected = gradient_norms(model, LOSS, x[:3], y[:3])
    expected[0] = torch.nan
    torch.testing.assert_close(told[0], expected, equal_nan=True, rtol=1e-10, atol=0)
    assert not watch.looks


def test_the_log_has_the_efficiency_of_the_draws(tmp_path: Path) -> None:
    model = dense()
    train = gradsift.sift(loader(), model, LOSS, recipe=recipe(), log=tmp_path)
    for _ in range(3):
        for batch in train:
            batch.loss(model(batch.inputs)).backward()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    known = [line["kappa"] for line in lines if line["kind"] == "train" and line["kappa"]]
    assert known
    assert all(0 < kappa <= 1 + 1e-9 for kappa in known)


def test_what_cannot_be_watched_is_said_before_the_first_step() -> None:
    norm: Any = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)).double()
    compiled: Any = torch.compile(dense(), backend="eager")
    for model, message in (
        (norm, "normalises by the statistics of its batch"),
        (compiled, "watch received a compiled model"),
    ):
        with pytest.raises(UsageError, match=message):
            gradsift.sift(loader(), model, LOSS, recipe=recipe())
    later = gradsift.sift(loader(), norm.eval(), LOSS, recipe=recipe())
    norm.train()
    with pytest.raises(UsageError, match="normalises by the statistics of its batch"):
        next(iter(later))
    linear = nn.Linear(12, 3).double()
    with pytest.raises(UsageError, match="watches training steps and received a function"):
        gradsift.sift(loader(), lambda x: linear(x.flatten(1)), LOSS, recipe=recipe())
    with pytest.raises(UsageError, match="source 'auto' received the score GradientNorm"):
        Recipe(source="auto", score=GradientNorm())


def test_a_run_that_cannot_be_watched_writes_nothing(tmp_path: Path) -> None:
    settings = Settings(
        model="wrn-10-1", norm="batch", recipe="table-exact", budget=parse_budget("2steps")
    )
    with pytest.raises(UsageError, match="normalises by the statistics of its batch"):
        run(load_problem("digits", ReadOptions()), settings, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
