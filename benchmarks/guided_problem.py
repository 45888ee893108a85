"""Logistic regression on small tables, many independent runs side by side in float64.

Run r has its own split, its own order of the data and its own weights, all from ``seed + r``, so
arms that share seeds are paired. Features are scaled to [0, 1] over the whole table, as the author
of guided SGD does (after a z-score, which the second scaling undoes); a leading column of ones is
the intercept.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from gradsift.parallel import AbstractScoredObjective


@dataclass(frozen=True)
class Table:
    """A file of one table.

    Attributes:
        file: under the folder of the data.
        label: its column; negative from the end.
        positive: the label that becomes +1.
        drop: columns that are no features.
    """

    file: str
    label: int
    positive: tuple[str, ...]
    drop: tuple[int, ...] = ()


WDBC = Table("wdbc.data", label=1, positive=("M",), drop=(0,))
TABLES = {
    "wdbc": WDBC,
    "breast": Table("breast-cancer-wisconsin.data", label=-1, positive=("4",), drop=(0,)),
    "pima": Table("pima-indians-diabetes.data", label=-1, positive=("1",)),
    "haberman": Table("haberman.data", label=-1, positive=("2",)),
    "thyroid": Table("new-thyroid.data", label=0, positive=("2", "3")),
    "liver": Table("liver_disorders_bupa.csv", label=-1, positive=("1",)),
    "sonar": Table("sonar.all-data", label=-1, positive=("M",)),
}
"""The seven tables; thyroid has three classes, here the ill ones against the healthy one."""


def read_table(folder: Path, table: Table) -> tuple[Tensor, Tensor]:
    """Features ``[N, 1 + d]`` in [0, 1] behind a column of ones, and labels −1 or +1."""
    with (folder / table.file).open(encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and "?" not in row]
    width = len(rows[0])
    label = table.label % width
    columns = [c for c in range(width) if c != label and c not in table.drop]
    x = np.array([[float(row[c]) for c in columns] for row in rows])
    low, high = x.min(axis=0), x.max(axis=0)
    scaled = (x - low) / np.where(high > low, high - low, 1.0)
    features = np.concatenate([np.ones((len(rows), 1)), scaled], axis=1)
    signs = [1.0 if row[label].strip() in table.positive else -1.0 for row in rows]
    return torch.tensor(features), torch.tensor(signs, dtype=torch.float64)


@final
class Logistic(AbstractScoredObjective):
    """``e = mean log(1 + exp(−y·xᵀw))`` of R runs: ``x [R, N, d]``, ``y [R, N]``, ``w [R, d]``."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.signed = x * y.unsqueeze(-1)
        self._rows = torch.arange(x.shape[0]).unsqueeze(1)

    def gradient(self, weights, batch):
        """``−mean σ(−y·xᵀw)·y·x``."""
        rows = self.signed[self._rows, batch]
        margins = torch.bmm(rows, weights[0].detach().unsqueeze(-1))
        return [(rows * -torch.sigmoid(-margins)).mean(1)]

    def scored_gradient(self, weights, batch, importance):
        """The weighted gradient, and the exact norm of each example's: ``σ(−y·xᵀw)·‖x‖``."""
        rows = self.signed[self._rows, batch]
        margins = torch.bmm(rows, weights[0].detach().unsqueeze(-1))
        slopes = torch.sigmoid(-margins)
        gradient = (rows * (-slopes * importance.unsqueeze(-1))).mean(1)
        return [gradient], slopes.squeeze(-1) * rows.norm(dim=-1)

    def loss(self, weights, batch):
        """One mean per run."""
        rows = self.signed[self._rows, batch]
        margins = torch.bmm(rows, weights[0].detach().unsqueeze(-1)).squeeze(-1)
        return torch.nn.functional.softplus(-margins).mean(1)


@dataclass(frozen=True)
class Runs:
    """R runs, ready to train.

    Attributes:
        train: the objective on the training parts.
        test: on the test parts.
        batches: ``[R, epochs · per_epoch, size]`` training ids, each epoch a new order.
        per_epoch: batches of an epoch.
        start: weights ``[R, d]``, uniform on [0, 1].
        examples: of a training part, the largest where runs of several tables are merged.
        counts: training examples of every run.
        tested: test examples of every run; rows beyond them are zeros.
    """

    train: Logistic
    test: Logistic
    batches: Tensor
    per_epoch: int
    start: Tensor
    examples: int
    counts: Tensor
    tested: Tensor

    def accuracy(self, weights: Tensor) -> Tensor:
        """Share of right test labels, in percent."""
        margins = torch.einsum("rnd,rd->rn", self.test.signed, weights)
        return 100 * (margins > 0).double().sum(1) / self.tested

    def test_loss(self, weights: Tensor) -> Tensor:
        """Mean test loss per run."""
        margins = torch.einsum("rnd,rd->rn", self.test.signed, weights)
        there = torch.arange(margins.shape[1]) < self.tested.unsqueeze(1)
        return (torch.nn.functional.softplus(-margins) * there).sum(1) / self.tested


def prepare(
    x: Tensor, y: Tensor, runs: int, epochs: int, size: int, share: float, seed: int
) -> Runs:
    """Splits, orders and first weights of every run.

    The order of an epoch is circular: its last batch is filled up with the first examples.
    """
    count = len(x)
    examples = int(count * share)
    per_epoch = -(-examples // size)
    splits, orders, starts = [], [], []
    for run in range(runs):
        generator = torch.Generator().manual_seed(seed + run)
        splits.append(torch.randperm(count, generator=generator))
        starts.append(torch.rand(x.shape[1], dtype=torch.float64, generator=generator))
        epochs_of_run = []
        for _ in range(epochs):
            order = torch.randperm(examples, generator=generator)
            filled = torch.cat([order, order])[: per_epoch * size]
            epochs_of_run.append(filled.reshape(per_epoch, size))
        orders.append(torch.cat(epochs_of_run))
    split = torch.stack(splits)
    train, test = split[:, :examples], split[:, examples + (count * share > examples) :]
    return Runs(
        train=Logistic(x[train], y[train]),
        test=Logistic(x[test], y[test]),
        batches=torch.stack(orders),
        per_epoch=per_epoch,
        start=torch.stack(starts),
        examples=examples,
        counts=torch.full((runs,), examples),
        tested=torch.full((runs,), test.shape[1]),
    )


def merge(parts: Sequence[Runs]) -> Runs:
    """Runs of several tables side by side: features and examples that one lacks are zeros.

    A weight of such a feature starts at zero and has no gradient, so it stays there.
    """
    width = max(part.start.shape[1] for part in parts)
    steps = min(part.batches.shape[1] for part in parts)

    def rows(objectives: list[Logistic]) -> Logistic:
        longest = max(one.signed.shape[1] for one in objectives)
        signed = [
            pad(one.signed, (0, width - one.signed.shape[2], 0, longest - one.signed.shape[1]))
            for one in objectives
        ]
        return Logistic(torch.cat(signed), torch.ones(sum(map(len, signed)), longest).double())

    return Runs(
        train=rows([part.train for part in parts]),
        test=rows([part.test for part in parts]),
        batches=torch.cat([part.batches[:, :steps] for part in parts]),
        per_epoch=max(part.per_epoch for part in parts),
        start=torch.cat([pad(part.start, (0, width - part.start.shape[1])) for part in parts]),
        examples=max(part.examples for part in parts),
        counts=torch.cat([part.counts for part in parts]),
        tested=torch.cat([part.tested for part in parts]),
    )
