"""The examples that a variance is measured on: their gradients, and their scores at any moment."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from gradsift.data.problem import Problem
from gradsift.errors import UsageError
from gradsift.nested import move, take
from gradsift.scores.base import ScoreFunction
from gradsift.scores.evaluate import score_examples
from gradsift.scores.untouched import untouched
from gradsift.trainer.evaluation import count_examples

EXAMPLES = 512
"""Examples that stand for the data, at least four batches where there are as many."""

NUMBERS = 250_000_000
"""Numbers of all gradients together that are held at once, in float32: a gigabyte."""

BLOCK = 4096
"""Parameters whose inner products are summed up together."""


@dataclass(frozen=True, eq=False)
class Population:
    """Some training examples, on the model's device.

    Attributes:
        inputs: what the model takes.
        targets: what the loss takes.
        count: how many examples.
        loss_fn: one loss per example.
    """

    inputs: Any
    targets: Any
    count: int
    loss_fn: Any

    def scores(self, score: ScoreFunction, model: nn.Module) -> Float64[Tensor, " n"]:
        """One score for each example, of the model as it is."""
        found = score_examples(
            score, model, self.loss_fn, self.inputs, self.targets, count=self.count, chunk=256
        )
        return found.double().cpu()

    def gradients(self, model: nn.Module) -> Float[Tensor, "n d"]:
        """The gradient of each example's loss in eval mode, all parameters in one row.

        A loop over the examples: slow, and right for any model.
        """
        parameters = [value for value in model.parameters() if value.requires_grad]
        rows = []
        with untouched(model), torch.enable_grad():
            for place in range(self.count):
                x, y = (
                    take(side, slice(place, place + 1), self.count)
                    for side in (self.inputs, self.targets)
                )
                loss = self.loss_fn(model(x), y).sum()
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                pairs = zip(found, parameters, strict=True)
                flat = [
                    (torch.zeros_like(value) if part is None else part).flatten()
                    for part, value in pairs
                ]
                rows.append(torch.cat(flat).float().cpu())
        return torch.stack(rows)


def population(
    problem: Problem, model: nn.Module, batch_size: int, device: torch.device, seed: int
) -> Population:
    """Random training examples, at least twice the batch.

    Raises:
        UsageError: where the gradients of so many would not fit.
    """
    parameters = sum(value.numel() for value in model.parameters() if value.requires_grad)
    available = count_examples(problem.train)
    fitting = NUMBERS // max(parameters, 1)
    count = min(available, max(EXAMPLES, 4 * batch_size), fitting)
    if count < min(2 * batch_size, available):
        raise UsageError(
            f"a model of {parameters:,} parameters and batches of {batch_size} received, expected "
            f"at most {NUMBERS:,} numbers in the gradients of two batches: take a smaller model "
            "or batch"
        )
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
    data = Subset(problem.train, order[:count].tolist())
    loader = DataLoader(data, batch_size=count, generator=torch.Generator())
    inputs, targets = move(next(iter(loader)), device)
    return Population(inputs, targets, count, problem.loss_fn)


def coordinates(gradients: Float[Tensor, "n d"]) -> Float64[Tensor, "n n"]:
    """As many numbers per example as there are examples, with the same inner products.

    Every variance of a weighted sum of gradients depends on their inner products alone, so the
    ``d`` parameters can be forgotten: with ``G Gᵀ = V Λ Vᵀ`` the rows of ``V √Λ`` are the same
    gradients in other axes.

    Example:
        >>> gradients = torch.tensor([[3.0, 0.0, 4.0], [0.0, 1.0, 0.0]])
        >>> found = coordinates(gradients)
        >>> (found @ found.T).round(decimals=9).tolist()
        [[25.0, 0.0], [0.0, 1.0]]
    """
    n = len(gradients)
    products = torch.zeros(n, n, dtype=torch.float64)
    for block in gradients.split(BLOCK, dim=1):
        precise = block.double()
        products += precise @ precise.T
    values, vectors = torch.linalg.eigh(products)
    return vectors * values.clamp(min=0.0).sqrt()
