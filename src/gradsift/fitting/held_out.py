"""Losses of examples by a model that has not seen them: what training cannot take away.

The data are cut into two random halves. A copy of the model is trained on each, and tells the
losses of the other: so no example has to be put aside.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from gradsift.errors import TrainingError, UsageError
from gradsift.records import LossFunction
from gradsift.scores.base import Forward, call_model
from gradsift.scores.evaluate import score_examples
from gradsift.scores.loss import Loss

Fetch = Callable[[Tensor], tuple[Any, Any]]
"""``fetch(ids)``: inputs and targets on the model's device."""


@dataclass(frozen=True)
class Holdout:
    """How the two copies are trained: Adam, on shuffled batches of the loader's own size.

    Args:
        epochs: passes of each copy over its half, at least 1. After each one the losses of the
            other half are taken, and those of the pass with the lowest mean are kept.
        lr: of Adam, > 0.

    Raises:
        UsageError: for parameters out of range.

    Example:
        >>> Holdout(epochs=3).lr
        0.001
    """

    epochs: int = 5
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.epochs < 1 or not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(
                f"Holdout received epochs={self.epochs}, lr={self.lr}: expected at least one pass "
                "and a positive learning rate"
            )


def held_out_losses(
    model: Any,
    loss_fn: LossFunction,
    fetch: Fetch,
    examples: int,
    batch_size: int,
    generator: torch.Generator,
    *,
    holdout: Holdout,
    forward: Forward = call_model,
) -> Float64[Tensor, " examples"]:
    """The loss of every example by the copy that was trained on the other half of the data.

    Args:
        model: copied as it is; nothing of it changes.
        loss_fn: one loss per example.
        fetch: examples by id.
        examples: N, at least 2.
        batch_size: of training; scoring takes two at a time.
        generator: of the halves and of the order.
        holdout: how to train.
        forward: how the model is called.

    Raises:
        UsageError: for a model that is no module, or fewer than two examples.
        TrainingError: when a loss is not finite.

    Example:
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> fetch = lambda ids: (x[ids], y[ids])
        >>> loss_fn = nn.CrossEntropyLoss(reduction="none")
        >>> held_out_losses(
        ...     nn.Linear(4, 2), loss_fn, fetch, 4, 2, torch.Generator(), holdout=Holdout()
        ... ).shape
        torch.Size([4])
    """
    if not isinstance(model, nn.Module) or examples < 2:
        raise UsageError(
            f"a hold-out model received a {type(model).__name__} and {examples} examples, expected "
            "a torch.nn.Module, which can be copied, and at least two examples"
        )
    order = torch.randperm(examples, generator=generator)
    halves = order[: examples // 2], order[examples // 2 :]
    found = torch.empty(examples, dtype=torch.float64)
    for mine, others in (halves, halves[::-1]):
        student = copy.deepcopy(model).train()
        optimizer = torch.optim.Adam(student.parameters(), lr=holdout.lr)
        best = mean = math.inf
        for _ in range(holdout.epochs):
            _train(
                student, optimizer, loss_fn, fetch, forward, _batches(mine, batch_size, generator)
            )
            losses = _losses(student, loss_fn, fetch, forward, others, 2 * batch_size)
            if (mean := float(losses.mean())) < best:
                best, found[others] = mean, losses
        if not math.isfinite(best):
            raise TrainingError(
                f"the hold-out model has a loss of {mean} on examples that it was not trained on: "
                f"lower its learning rate, which is {holdout.lr}"
            )
    return found


def _batches(ids: Tensor, size: int, generator: torch.Generator) -> Sequence[Tensor]:
    return ids[torch.randperm(len(ids), generator=generator)].split(size)


def _train(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFunction,
    fetch: Fetch,
    forward: Forward,
    batches: Sequence[Tensor],
) -> None:
    with torch.enable_grad():
        for ids in batches:
            inputs, targets = fetch(ids)
            optimizer.zero_grad()
            loss_fn(forward(student, inputs), targets).mean().backward()
            optimizer.step()


def _losses(
    student: nn.Module,
    loss_fn: LossFunction,
    fetch: Fetch,
    forward: Forward,
    ids: Int64[Tensor, " n"],
    chunk: int,
) -> Float64[Tensor, " n"]:
    parts = []
    for part in ids.split(chunk):
        inputs, targets = fetch(part)
        losses = score_examples(
            Loss(), student, loss_fn, inputs, targets, count=len(part), forward=forward
        )
        parts.append(losses.double().cpu())
    return torch.cat(parts)
