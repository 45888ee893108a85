"""A line fitted by least squares, in float64: closed gradients that the parallel tests rest on."""

import torch
from torch import Tensor

from gradsift.parallel import AbstractScoredObjective


class Lines(AbstractScoredObjective):
    """``e = mean (x·w + c − y)²/2``, for one run (``x [N, d]``) or several (``x [R, N, d]``)."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def gradient(self, weights, batch):
        x, residual = self._residual(weights, batch)
        size = residual.shape[-1]
        slope = (residual.unsqueeze(-1) * x).sum(-2) / size
        return [slope, residual.sum(-1, keepdim=True) / size]

    def scored_gradient(self, weights, batch, importance):
        x, residual = self._residual(weights, batch)
        size, weighted = residual.shape[-1], importance * residual
        slope = (weighted.unsqueeze(-1) * x).sum(-2) / size
        scores = residual.abs() * (x.square().sum(-1) + 1).sqrt()
        return [slope, weighted.sum(-1, keepdim=True) / size], scores

    def loss(self, weights, batch):
        return self._residual(weights, batch)[1].square().mean(-1) / 2

    def _residual(self, weights, batch):
        x = torch.take_along_dim(self.x, batch.unsqueeze(-1), dim=-2)
        y = torch.take_along_dim(self.y, batch, dim=-1)
        w, c = (weight.detach() for weight in weights)
        return x, (x * w.unsqueeze(-2)).sum(-1) + c - y


def lines(runs: tuple[int, ...] = (), examples: int = 24, seed: int = 0) -> Lines:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((*runs, examples, 3), dtype=torch.float64, generator=generator)
    y = torch.randn((*runs, examples), dtype=torch.float64, generator=generator)
    return Lines(x, y + x.sum(-1))


def start(runs: tuple[int, ...] = ()) -> list[Tensor]:
    """Weights and intercept, all one half."""
    shapes = ((*runs, 3), (*runs, 1))
    return [torch.full(s, 0.5, dtype=torch.float64, requires_grad=True) for s in shapes]


def batches(count: int, runs: tuple[int, ...] = (), size: int = 4, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(24, (*runs, size), generator=generator) for _ in range(count)]


def slow_gradient(objective: Lines, weights: list[Tensor], batch: Tensor) -> list[Tensor]:
    """One run's gradient, an example at a time."""
    slope, level = torch.zeros(3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for k in batch.tolist():
        residual = float((objective.x[k] * weights[0]).sum() + weights[1] - objective.y[k])
        slope += residual * objective.x[k] / len(batch)
        level += residual / len(batch)
    return [slope, level]


def slow_loss(objective: Lines, weights: list[Tensor], batch: Tensor) -> float:
    """One run's mean loss, an example at a time."""
    total = 0.0
    for k in batch.tolist():
        residual = float((objective.x[k] * weights[0]).sum() + weights[1] - objective.y[k])
        total += residual**2 / 2
    return total / len(batch)
