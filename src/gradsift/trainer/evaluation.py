"""How good a model is: the unweighted loss and error over a data set, in eval mode."""

import math
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from gradsift.data.problem import Problem
from gradsift.nested import move

EVALUATIONS = 20
"""Evaluations over a budget, besides the one before the first step."""

SUBSAMPLE = 2_000
"""Training examples whose loss is followed during a run; the summary has all of them."""

TEST_SUBSAMPLE = 10_000
"""Likewise of the test examples: a text has so many that following them all takes minutes."""


@dataclass(frozen=True)
class Quality:
    """Unweighted means over a data set.

    Attributes:
        loss: of the problem's loss.
        error: share of wrong classes, or mean squared error.
    """

    loss: float
    error: float


def evaluate(
    model: nn.Module,
    problem: Problem,
    data: Dataset[Any],
    device: torch.device,
    batch_size: int = 512,
) -> Quality:
    """The mean loss and error over all of ``data``, summed in float64.

    The model is in eval mode meanwhile, and then in the mode it was in. No random state is read.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from gradsift.data.problem import from_datasets
        >>> data = TensorDataset(torch.eye(2), torch.tensor([0, 1]))
        >>> evaluate(nn.Identity(), from_datasets("toy", data, data), data, torch.device("cpu"))
        Quality(loss=0.31326..., error=0.0)
    """
    # The loader draws a seed for its workers, even without any: not from the global state.
    loader = DataLoader(data, batch_size=batch_size, generator=torch.Generator())
    training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64)
    error = torch.zeros((), dtype=torch.float64)
    try:
        with torch.no_grad():
            for batch in loader:
                inputs, targets = move(batch, device)
                outputs = model(inputs)
                loss += problem.loss_fn(outputs, targets).double().sum().cpu()
                error += problem.error_fn(outputs, targets).double().sum().cpu()
    finally:
        model.train(training)
    count = count_examples(data)
    return Quality(float(loss) / count, float(error) / count)


def count_examples(data: Dataset[Any]) -> int:
    """How many examples a map-style data set holds."""
    return len(cast(Sized, data))


def subsample(data: Dataset[Any], limit: int, seed: int) -> Dataset[Any]:
    """The data set itself, or ``limit`` random examples of it, the same for the same seed.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> len(subsample(TensorDataset(torch.zeros(10)), 3, seed=0))
        3
    """
    count = count_examples(data)
    if count <= limit:
        return data
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return Subset(data, order[:limit].tolist())


def followed(problem: Problem, seed: int) -> tuple[Dataset[Any], Dataset[Any]]:
    """The training and test examples that are looked at during a run."""
    train = subsample(problem.train, SUBSAMPLE, seed)
    return train, subsample(problem.test, TEST_SUBSAMPLE, seed)


def next_evaluation(share: float) -> float:
    """The share of the budget at which the evaluation after ``share`` is due.

    Example:
        >>> next_evaluation(0.0), next_evaluation(0.26)
        (0.05, 0.3)
    """
    return (math.floor(share * EVALUATIONS) + 1) / EVALUATIONS


def sizes(problem: Problem, model: nn.Module) -> dict[str, Any]:
    """What a run writes down about its data and its model, as plain values."""
    return {
        "train_examples": count_examples(problem.train),
        "test_examples": count_examples(problem.test),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "task": problem.task,
    }
