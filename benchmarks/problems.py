"""Problems for the benchmarks, as ``--data problems:NAME`` from within ``benchmarks/``.

They need Fashion-MNIST below the folder that ``GRADSIFT_DATA`` names.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.problem import Problem, from_datasets

RARE = (2, 6)
"""Classes of clothes (pullover, shirt) that `rare_clothes` has few of."""

RARITY = 50


class FreshLabels(Dataset[Any]):
    """Images whose labels are drawn anew at every access: there is nothing to learn."""

    def __init__(self, images: Dataset[Any], seed: int = 0) -> None:
        self._images = images
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._images)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = torch.randint(10, (), generator=self._generator)
        return self._images[index][0], int(label)


def clothes() -> Problem:
    """Fashion-MNIST."""
    return load_problem("fashion-mnist", ReadOptions())


def rare_clothes() -> Problem:
    """Two classes are kept one in fifty in the training part; the test part is balanced."""
    problem = clothes()
    labels = torch.tensor([problem.train[place][1] for place in range(60_000)])
    kept = torch.ones(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(7)
    for label in RARE:
        places = (labels == label).nonzero().flatten()
        places = places[torch.randperm(len(places), generator=generator)]
        kept[places[len(places) // RARITY :]] = False
    train = Subset(problem.train, kept.nonzero().flatten().tolist())
    return replace(problem, name="rare clothes", train=train)


def noise() -> Problem:
    """Fashion-MNIST's images with labels that are drawn anew at every access."""
    problem = clothes()
    return replace(
        problem, name="noise", train=FreshLabels(problem.train), test=FreshLabels(problem.test, 1)
    )


def absolute() -> Problem:
    """A regression by mean absolute error: every gradient at the output has the same norm."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20_000, 64, generator=generator)
    hidden = torch.relu(inputs @ torch.randn(64, 32, generator=generator) / 8)
    values = hidden @ torch.randn(32, 1, generator=generator) / 32**0.5
    values += 0.3 * torch.randn(20_000, 1, generator=generator)
    train, test = (
        TensorDataset(inputs[part], values[part]) for part in (slice(16_000), slice(16_000, None))
    )
    problem = from_datasets("absolute", train, test)
    return replace(problem, loss_fn=absolute_error)


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``|f(x) − y|`` for each example."""
    return (outputs - targets).abs().sum(1)
