"""A training loop with every feature of PyTorch that a user may have, and its slow twin."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import gradsift
from gradsift import Recipe, WeightedBatch
from gradsift.clock import VirtualClock
from gradsift.gate import Decision, Offer, TauThreshold
from gradsift.scores.base import call_model
from gradsift.sifting.auto import Auto
from twins import row

LOSS = nn.CrossEntropyLoss(reduction="none")
N, BATCH, WIDTH = 96, 8, 8
FAMILIES = ("uniform", "pool", "published", "table", "two-stage", "auto")
PUBLISHED = Recipe(gate=TauThreshold(threshold=1.02), name="published")
TWO_STAGE = Decision(
    Offer("two-stage", 1.0, 2.0, 2.0, candidates=2.0), 2.0, "as the test says", 8.0
)

Dress = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Feature:
    """What a user's loop does beyond the five lines.

    Attributes:
        build: the model.
        dress: the inputs of one example out of ``WIDTH`` numbers.
        wrap: the model that is trained, around the built one.
        context: of the forward pass.
        accumulate: micro-batches per update.
        scaled: whether gradients are scaled.
        clip: largest norm of the gradient, or None.
        second: a second loss, one number per example.
        tolerance: of a gradient against its twin, relative to the largest entry.
        collate: of the loader.
    """

    build: Callable[[], nn.Module]
    dress: Dress = lambda x: x
    wrap: Callable[[nn.Module], Any] = lambda model: model
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    accumulate: int = 1
    scaled: bool = False
    clip: float | None = None
    second: Callable[[Tensor], Tensor] | None = None
    tolerance: float = 1e-4
    collate: Callable[[list[Any]], Any] | None = None


class Uneven(Dataset[tuple[Any, Tensor]]):
    """Most examples are easy for ever, a tenth has no class to be seen: scores that persist."""

    def __init__(self, dress: Dress) -> None:
        generator = torch.Generator().manual_seed(0)
        self.targets = torch.arange(N) % 2
        self.numbers = torch.randn(N, WIDTH, generator=generator)
        self.numbers[:, 0] = (2 * self.targets - 1) * 6.0
        self.numbers[: N // 10, 0] = 0.0
        self.dress = dress

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.dress(self.numbers[index]), self.targets[index]


def sift_family(family: str, feature: Feature, model: Any, clock: VirtualClock) -> Any:
    """The sifted loader of one family of recipes."""
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(
        Uneven(feature.dress),
        BATCH,
        shuffle=True,
        generator=generator,
        collate_fn=feature.collate,
    )
    named: dict[str, str | Recipe] = {"published": PUBLISHED, "two-stage": "auto"}
    recipe = named.get(family, family)
    spend = "noise" if recipe == "auto" else None
    return gradsift.sift(loader, model, LOSS, recipe=recipe, clock=clock, spend=spend)


def decide(policy: Auto) -> None:
    """From now on in two stages."""
    policy.deciding.decision = TWO_STAGE
    policy.deciding.changed_at = 10**9


def slow_gradient(
    feature: Feature, model: nn.Module, batches: Sequence[WeightedBatch]
) -> list[Tensor]:
    """``Σ_micro Σ_j w_j ∇ℓ_j / Σ b_micro``, one example at a time."""
    total = torch.zeros(())
    for batch in batches:
        for place, weight in enumerate(batch.weights.tolist()):
            with feature.context():
                outputs = call_model(model, row(batch.inputs, place))
                (loss,) = LOSS(outputs, row(batch.targets, place))
                if feature.second is not None:
                    loss = loss + feature.second(outputs)[0]
            total = total + weight * loss
    parameters = [value for value in model.parameters() if value.requires_grad]
    mean = total / sum(batch.size for batch in batches)
    found = torch.autograd.grad(mean, parameters)
    if feature.clip is None:
        return list(found)
    norm = torch.cat([part.flatten() for part in found]).norm()
    return [part * min(1.0, feature.clip / float(norm)) for part in found]


class Loop:
    """Trains, and compares gradients with their twins now and then.

    Attributes:
        train: the sifted loader.
        drawn: of every batch, whether its examples were drawn.
        updates: so far, skipped ones too.
        skipped: by the gradient scaler.
        compared: gradients that agreed.
    """

    def __init__(self, family: str, feature: Feature) -> None:
        torch.manual_seed(0)
        self.feature = feature
        self.built = feature.build()
        self.model = feature.wrap(self.built)
        self.clock = VirtualClock()
        self.family = family
        self.train = sift_family(family, feature, self.model, self.clock)
        self.drawn: list[bool] = []
        self.updates = self.skipped = self.compared = 0
        learning = [value for value in self.built.parameters() if value.requires_grad]
        self.optimizer = torch.optim.SGD(learning, lr=0.05)
        self.scaler = torch.amp.GradScaler("cpu", enabled=feature.scaled)

    def run(self, steps: int, every: int = 10) -> None:
        """At least so many batches; the gradients of one in ``every`` updates are compared."""
        group: list[WeightedBatch] = []
        while len(self.drawn) < steps:
            for batch in self.train:
                self._backward(batch)
                group.append(batch)
                if len(group) == self.feature.accumulate:
                    self._update(group, check=every > 0 and self.updates % every == 0)
                    group = []
                self.clock.charge(trained=len(batch))
                self.drawn.append(batch.drawn)
                if self.family == "two-stage" and len(self.drawn) == 2 * N // BATCH:
                    decide(self.train.policy)

    def _backward(self, batch: WeightedBatch) -> None:
        with self.feature.context():
            outputs = call_model(self.model, batch.inputs)
            loss = batch.loss(outputs)
            if self.feature.second is not None:
                loss = loss + batch.mean(self.feature.second(outputs))
        self.scaler.scale(loss / self.feature.accumulate).backward()

    def _update(self, group: list[WeightedBatch], *, check: bool) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.feature.clip is not None:
            nn.utils.clip_grad_norm_(self.built.parameters(), self.feature.clip)
        finite = all(
            bool(value.grad.isfinite().all())
            for value in self.built.parameters()
            if value.grad is not None
        )
        if check and finite:
            self.compare(group)
            self.compared += 1
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.skipped += self.scaler.get_scale() < before
        self.optimizer.zero_grad()
        self.updates += 1

    def compare(self, group: list[WeightedBatch]) -> None:
        """The gradients as they are against the slow ones."""
        learning = [value for value in self.built.parameters() if value.requires_grad]
        expected = slow_gradient(self.feature, self.built, group)
        scale = max(float(part.abs().max()) for part in expected)
        for value, truth in zip(learning, expected, strict=True):
            assert value.grad is not None
            assert float((value.grad - truth).abs().max()) <= self.feature.tolerance * scale
