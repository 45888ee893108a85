"""Small models, data and scores that a worker in another process can import."""

import os
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from gradsift.data.split import split_batch
from gradsift.engine.identity import fingerprint
from gradsift.engine.task import Task
from gradsift.scores import GradientNorm
from gradsift.scores.base import call_model

N, BLOCK = 40, 8
CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none")


def examples() -> TensorDataset:
    """Forty points of three classes."""
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(N, 4, generator=generator), torch.arange(N) % 3)


def swapped() -> TensorDataset:
    """The same points, two of them in each other's place."""
    order = torch.arange(N)
    order[[0, 1]] = order[[1, 0]]
    inputs, targets = examples().tensors
    return TensorDataset(inputs[order], targets[order])


class Noisy(Dataset):
    """Every read of an input is another one, as under random transforms."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        x, y = examples()[place]
        return x + torch.randn(4), y


def noisy() -> Noisy:
    return Noisy()


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def collate(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])


class Faulty:
    """The sum of a model's weights for every example, and faults that the weights ask for.

    A weight is the only thing that a worker hears: the published ``fault`` says what happens to
    the block that begins with the published ``at``.
    """

    def __call__(self, model: Any, loss_fn: object, inputs: Tensor, targets: Tensor) -> Tensor:
        fault, at = int(model.fault), float(model.at)
        if float(inputs[0, 0]) == at or at < 0:
            act(fault)
        if fault == NAN and float(inputs[0, 0]) == at:
            return torch.full((len(inputs),), torch.nan)
        sign = -1.0 if fault == NEGATIVE and float(inputs[0, 0]) == at else 1.0
        return sign * (inputs[:, 0] + 1) * float(model.weight.detach().sum())


NONE, KILL, HANG, RAISE, NAN, NEGATIVE, SLOW = range(7)


def act(fault: int) -> None:
    """What goes wrong inside a worker."""
    if fault == KILL:
        os.kill(os.getpid(), 9)
    if fault == HANG:
        time.sleep(1000)
    if fault == RAISE:
        raise ValueError("cannot read this picture")
    if fault == SLOW:
        time.sleep(0.2)


def first_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that tells inputs and version: their product."""
    return outputs[:, 0]


def is_one(outputs: Tensor, targets: Tensor) -> Tensor:
    """An error that tells targets."""
    return (targets == 1).float()


class Commanded(nn.Module):
    """A model that is a message to `Faulty`."""

    def __init__(self, fault: int = NONE, at: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4096))
        self.register_buffer("fault", torch.tensor(fault))
        self.register_buffer("at", torch.tensor(at))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight.sum()


def numbered() -> TensorDataset:
    """Example i is the number i."""
    return TensorDataset(torch.arange(N).float().unsqueeze(1), torch.arange(N) % 3)


def few() -> TensorDataset:
    """Five of them: fewer than slices."""
    return TensorDataset(*(side[:5] for side in numbered().tensors))


def faulty_task() -> Task:
    return Task(
        model=Commanded(),
        loss_fn=first_output,
        score=Faulty(),
        split=split_batch,
        forward=call_model,
        collate=collate,
        opening="engines:numbered",
        expected=fingerprint(numbered(), collate, split_batch),
        evaluate={"train": None, "few": "engines:few"},
        error_fn=is_one,
    )


def norm_task(opening: object = "engines:examples", trainers: Dataset | None = None) -> Task:
    mine = examples() if trainers is None else trainers
    return Task(
        model=model(),
        loss_fn=CROSS_ENTROPY,
        score=GradientNorm(),
        split=split_batch,
        forward=call_model,
        collate=collate,
        opening=opening,
        expected=fingerprint(mine, collate, split_batch),
    )
