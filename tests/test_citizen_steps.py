"""A good citizen of PyTorch: every family of recipes with everything that a training step may do.

Gradients are compared with a loop over examples. Exceptions, with their reasons:

* BatchNorm and dropout in train mode have no loss per example, so nothing is compared
  (`test_citizen_norms.py` looks at them).
* Batches that are padded to their longest example work. A list with a tensor of another length for
  each example cannot be cut by example, so every recipe that scores refuses it in the dry run.
* Reentrant checkpoints hide their inside from `torch.autograd.grad`: the gradients that `auto`
  looks at now and then are those outside of them. Training is not affected.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import gradsift
from citizens import BATCH, FAMILIES, LOSS, PUBLISHED, WIDTH, Feature, Loop, N, Uneven
from gradsift import UsageError
from gradsift.monitors.timing import Allowance
from gradsift.sifting.auto import Auto

STEPS = {"auto": 150, "two-stage": 60}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 2))


class Pictures(nn.Module):
    """A convolution whose memory format is channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 2)
        self.last = nn.Linear(4, 2)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.last(self.first(x).tanh().flatten(1))


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 8), nn.Linear(8, 2)
        self.reentrant = reentrant

    def inside(self, x: Tensor) -> Tensor:
        return self.first(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        hidden: Any = checkpoint(self.inside, x, use_reentrant=self.reentrant)
        return self.last(hidden)


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).tanh()).tanh())


def frozen_trunk() -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    return model


class Parts(nn.Module):
    """Takes two inputs, by name or in order."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2)

    def forward(self, a: Tensor, b: Any) -> Tensor:
        if isinstance(b, dict):
            b = b["deep"][0]
        return self.linear(torch.cat([a, b], 1))


def ragged(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Padded to the longest of the batch, as texts are."""
    longest = max(3, int(3 + examples[0][0][1].abs()))
    x = torch.zeros(len(examples), longest + WIDTH)
    x[:, :WIDTH] = torch.stack([inputs for inputs, _ in examples])
    return x, torch.stack([target for _, target in examples])


class Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[:, :WIDTH]) + x[:, WIDTH:].sum(1, keepdim=True)


bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)
float16 = partial(torch.autocast, "cpu", torch.float16)

FEATURES = {
    "plain": Feature(network),
    "bfloat16": Feature(network, context=bfloat16, tolerance=0.05),
    "float16 scaled": Feature(network, context=float16, scaled=True, tolerance=0.05),
    "accumulation": Feature(network, accumulate=3),
    "clipping": Feature(network, clip=0.01),
    "scaled, accumulated, clipped": Feature(network, accumulate=2, scaled=True, clip=0.01),
    "channels last": Feature(Pictures, dress=lambda x: x.view(2, 2, 2)),
    "checkpoint": Feature(partial(Checkpointed, reentrant=False)),
    "tied parameters": Feature(Tied),
    "frozen trunk": Feature(frozen_trunk),
    "two losses": Feature(network, second=lambda outputs: 0.1 * outputs.square().sum(1)),
    "mapping": Feature(Parts, dress=lambda x: {"a": x[:4], "b": x[4:]}),
    "tuple": Feature(Parts, dress=lambda x: (x[:4], x[4:])),
    "ragged": Feature(Pooling, collate=ragged),
    "nested": Feature(Parts, dress=lambda x: {"a": x[:4], "b": {"deep": [x[4:]]}}),
}

FIRST_TIER = ("scaled, accumulated, clipped", "nested")


def probe_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three probes of `auto` once, whatever the allowance says."""
    monkeypatch.setattr(Allowance, "allows", lambda *_, **__: True)
    monkeypatch.setattr(Auto, "wishes", property(lambda policy: policy._steps in (20, 30, 40)))


@pytest.mark.parametrize(
    ("family", "feature"),
    [
        pytest.param(family, feature, marks=() if feature in FIRST_TIER else pytest.mark.slow)
        for family in FAMILIES
        for feature in FEATURES
    ],
)
def test_gradients_are_the_direct_ones(
    family: str, feature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_now_and_then(monkeypatch)
    loop = Loop(family, FEATURES[feature])
    loop.run(STEPS.get(family, 40))
    assert loop.compared >= 2
    if family != "auto":  # which opens when its measurements say so
        assert any(loop.drawn) == (family != "uniform")
    assert loop.train.updates == loop.updates - loop.skipped
    assert not any("BatchNorm" in notice for notice in loop.train.notices)


def test_the_comparison_can_fail() -> None:
    """Dividing each micro-batch by what its weights sum to is another gradient."""
    loop = Loop("table", FEATURES["accumulation"])
    loop.run(24)
    batch = next(iter(loop.train))
    assert batch.drawn
    loop.optimizer.zero_grad()
    losses = LOSS(loop.model(batch.inputs), batch.targets)
    ((batch.weights * losses).sum() / batch.weights.sum()).backward()
    with pytest.raises(AssertionError):
        loop.compare([batch])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_reentrant_checkpoints_train(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_now_and_then(monkeypatch)
    loop = Loop(family, Feature(partial(Checkpointed, reentrant=True)))
    before = [value.detach().clone() for value in loop.built.parameters()]
    loop.run(STEPS.get(family, 40), every=0)
    after = list(loop.built.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def as_a_list(examples: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    """One tensor for each example, each of its own length."""
    lengths = [3 + int(target) for _, target in examples]
    inputs = [x[:length] for (x, _), length in zip(examples, lengths, strict=True)]
    return inputs, torch.stack([target for _, target in examples])


def of_a_list(model: nn.Module, inputs: list[Tensor]) -> Tensor:
    return model(torch.stack([x[:3] for x in inputs]))


@pytest.mark.parametrize("family", FAMILIES)
def test_lists_of_tensors_are_refused_where_pools_are_cut(family: str) -> None:
    cuts = family in ("pool", "two-stage", "published", "auto")
    recipe = {"published": PUBLISHED, "two-stage": "auto"}.get(family, family)
    model = nn.Linear(3, 2)
    loader = DataLoader(Uneven(lambda x: x), BATCH, shuffle=True, collate_fn=as_a_list)
    train = gradsift.sift(loader, model, LOSS, recipe=recipe, forward=of_a_list)
    if family == "uniform":
        assert sum(len(batch) for batch in train) == N
        return
    with pytest.raises(UsageError, match=r"leaf \[0\] of the batch is a tensor"):
        next(iter(train))
    assert cuts or family == "table"


def test_a_skipped_step_moves_no_version() -> None:
    """An infinite scaled gradient: `GradScaler` leaves the parameters, and versions stay."""
    loop = Loop("table", Feature(network, scaled=True))
    versions, skipped = [], 0
    for step, batch in enumerate(loop.train):
        loop.optimizer.zero_grad()
        loss = batch.loss(loop.model(batch.inputs))
        versions.append(loop.train.updates)
        loop.scaler.scale(loss * (torch.inf if step in (3, 4, 9) else 1.0)).backward()
        before = loop.scaler.get_scale()
        loop.scaler.step(loop.optimizer)
        loop.scaler.update()
        skipped += loop.scaler.get_scale() < before
    assert skipped == 3
    assert versions == [1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 8, 9]


def test_the_table_knows_the_versions_of_updates() -> None:
    """Accumulation over three batches: scores of one update are of one age."""
    loop = Loop("table", Feature(network, accumulate=3))
    loop.run(4 * 12)
    table = loop.train.table
    assert table is not None
    ages = table.ages(torch.arange(table.size), loop.train.updates)
    assert loop.train.updates == loop.updates
    assert int(ages.max()) < loop.updates
    assert int(ages.min()) <= 16 // 3 + 1
