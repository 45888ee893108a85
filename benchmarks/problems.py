"""Problems for the benchmarks, as ``--data problems:NAME`` from within ``benchmarks/``.

They need Fashion-MNIST, and `pictures` CIFAR-10, below the folder that ``GRADSIFT_DATA`` names.
"""

from copy import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.problem import Problem, from_datasets
from gradsift.data.readers.arrays import Rows

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


class Augmented(Dataset[Any]):
    """Images that are flipped at random and cropped out of a border of four, anew at every access.

    What is random depends on how often an example was looked at, and on nothing else.
    """

    def __init__(self, images: Dataset[Any], border: int = 4) -> None:
        self._images = images
        self._border = border
        self._looks = torch.zeros(len(images), dtype=torch.int64)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(self._looks)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._images[index]
        self._looks[index] += 1
        generator = torch.Generator().manual_seed(1_000_003 * index + int(self._looks[index]))
        down, right = torch.randint(2 * self._border + 1, (2,), generator=generator).tolist()
        flipped = bool(torch.randint(2, (), generator=generator))
        padded = torch.nn.functional.pad(image, [self._border] * 4)
        height, width = image.shape[-2:]
        cropped = padded[:, down : down + height, right : right + width]
        return (cropped.flip(-1) if flipped else cropped), label


def pictures() -> Problem:
    """10,000 images of CIFAR-10 to train on, augmented, and 2,000 to test on."""
    problem = load_problem("cifar10", ReadOptions())
    train = Augmented(Subset(problem.train, range(10_000)))
    return replace(problem, name="pictures", train=train, test=Subset(problem.test, range(2_000)))


def clothes() -> Problem:
    """Fashion-MNIST."""
    return load_problem("fashion-mnist", ReadOptions())


def fifth_of_clothes() -> Problem:
    """The first 12,000 images of Fashion-MNIST to train on, and the first 5,000 to test on.

    They come in no order. A comparison of many recipes has the passes that it needs in a fifth of
    the time.
    """
    problem = clothes()
    train, test = first(problem.train, 12_000), first(problem.test, 5_000)
    return replace(problem, name="a fifth of clothes", train=train, test=test)


def first(data: Any, count: int) -> Rows:
    """The first examples, which are still fetched a batch at a time."""
    part = copy(cast(Rows, data))
    part.inputs, part.targets = part.inputs[:count], part.targets[:count]
    return part


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


def flipped(share: float, seed: int = 11) -> tuple[Problem, Tensor]:
    """Fashion-MNIST with that share of its training labels wrong, and which of them are.

    As many examples as that, drawn once for all runs, get one of the nine other classes each. The
    test part keeps its own labels.
    """
    problem = clothes()
    train = copy(cast(Rows, problem.train))
    train.targets, wrong = flip(train.targets, share, seed)
    return replace(problem, name=f"flipped clothes {round(100 * share)}", train=train), wrong


def flip(labels: Tensor, share: float, seed: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Labels of which a share is replaced by another class, and a mask of these."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    steps = torch.randint(1, classes, (len(chosen),), generator=generator)
    found, wrong = labels.clone(), torch.zeros(len(labels), dtype=torch.bool)
    found[chosen] = (labels[chosen] + steps) % classes
    wrong[chosen] = True
    return found, wrong


def flipped_clothes_10() -> Problem:
    """Fashion-MNIST with one training label in ten wrong."""
    return flipped(0.1)[0]


def flipped_clothes_20() -> Problem:
    """Fashion-MNIST with one training label in five wrong."""
    return flipped(0.2)[0]


def flipped_fifth_20() -> Problem:
    """A fifth of clothes with one training label in five wrong: more passes in the same time."""
    problem = flipped_clothes_20()
    train, test = first(problem.train, 12_000), first(problem.test, 5_000)
    return replace(problem, name="a fifth of flipped clothes 20", train=train, test=test)
