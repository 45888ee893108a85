"""A sifted loop that stays off is bit-identical to the plain loop."""

from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

import gradsift
from gradsift import Recipe
from gradsift.gate import TauThreshold

Build = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
EXAMPLES = 37
LOSS = nn.CrossEntropyLoss(reduction="none")
SHUT = Recipe(gate=TauThreshold(threshold=1e9), name="shut")


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Adds noise from the global generator, as augmentations do."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        clean = torch.full((4,), index / EXAMPLES)
        return clean + 0.1 * torch.randn(4), torch.tensor(index % 3)


class Uneven(Sampler[list[int]]):
    """A batch sampler of one's own, with batches of different sizes."""

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(EXAMPLES).tolist()
        yield from (order[:5], order[5:17], order[17:20], order[20:])

    def __len__(self) -> int:
        return 4


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Augmented examples without ids."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(EXAMPLES):
            yield Augmented()[index]


def shuffled(workers: int) -> DataLoader:
    return DataLoader(Augmented(), batch_size=8, shuffle=True, num_workers=workers)


def own_generator(workers: int) -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(
        Augmented(), batch_size=8, shuffle=True, num_workers=workers, generator=generator
    )


def even_batches(workers: int) -> DataLoader:
    """37 = 37 x 1: the sampler's last request finds nothing, which must happen here too."""
    sampler = RandomSampler(Augmented(), generator=torch.Generator().manual_seed(3))
    return DataLoader(Augmented(), batch_size=1, sampler=sampler, num_workers=workers)


def dropping_last(workers: int) -> DataLoader:
    return DataLoader(Augmented(), batch_size=8, shuffle=True, drop_last=True, num_workers=workers)


def weighted(workers: int) -> DataLoader:
    sampler = WeightedRandomSampler(torch.arange(1.0, EXAMPLES + 1).tolist(), 40)
    return DataLoader(Augmented(), batch_size=8, sampler=sampler, num_workers=workers)


def own_batches(workers: int) -> DataLoader:
    return DataLoader(Augmented(), batch_sampler=Uneven(), num_workers=workers)


def wrapped(workers: int) -> DataLoader:
    data = ConcatDataset([Subset(Augmented(), range(0, 20)), Subset(Augmented(), range(20, 37))])
    sampler = BatchSampler(RandomSampler(data), batch_size=6, drop_last=False)
    return DataLoader(data, batch_sampler=sampler, num_workers=workers)


def persistent(workers: int) -> DataLoader:
    return DataLoader(
        Augmented(),
        batch_size=8,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def stream(workers: int) -> DataLoader:
    return DataLoader(Stream(), batch_size=8, num_workers=workers)


def list_of_batches(workers: int) -> list[tuple[Tensor, Tensor]]:
    del workers
    return [(torch.full((4, 4), float(k)), torch.arange(4) % 3) for k in range(5)]


LOADERS = (
    shuffled,
    own_generator,
    even_batches,
    dropping_last,
    weighted,
    own_batches,
    wrapped,
    persistent,
    stream,
    list_of_batches,
)


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3)
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def plain(build: Build, workers: int) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(11)
    loader = build(workers)
    model, optimizer = model_and_optimizer()
    for _ in range(3):
        for inputs, targets in loader:
            if len(inputs) == 1:
                model.eval()
            loss = LOSS(model(inputs), targets).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [*model.state_dict().values()], torch.get_rng_state()


def sifted(build: Build, workers: int, recipe: str | Recipe) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(11)
    loader = build(workers)
    model, optimizer = model_and_optimizer()
    train = gradsift.sift(loader, model, LOSS, recipe=recipe)
    for _ in range(3):
        for batch in train:
            if len(batch) == 1:
                model.eval()
            loss = batch.loss(model(batch.inputs))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [*model.state_dict().values()], torch.get_rng_state()


@pytest.mark.parametrize("recipe", ["uniform", SHUT], ids=["uniform", "shut gate"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("build", LOADERS, ids=lambda build: build.__name__)
def test_identical_to_the_plain_loop(build: Build, workers: int, recipe: str | Recipe) -> None:
    expected, expected_random = plain(build, workers)
    found, found_random = sifted(build, workers, recipe)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert torch.equal(expected_random, found_random)


def test_the_comparison_can_fail() -> None:
    expected, _ = plain(shuffled, 0)
    found, _ = sifted(shuffled, 0, "pool")
    assert not all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def first_examples(batches: Iterator[Tensor]) -> list[int]:
    seen: list[int] = []
    for step, inputs in enumerate(batches):
        seen += inputs.tolist()
        if step == 2:
            break
    return seen


def test_leaving_an_epoch_early_starts_the_next_afresh() -> None:
    def loader() -> DataLoader:
        torch.manual_seed(3)
        data = TensorDataset(torch.arange(20), torch.arange(20))
        return DataLoader(data, batch_size=4, shuffle=True)

    plain_loader = loader()
    expected = [first_examples(batch[0] for batch in plain_loader) for _ in range(3)]
    train = gradsift.sift(loader(), nn.Identity(), LOSS, recipe="uniform")
    found = [first_examples(batch.inputs for batch in train) for _ in range(3)]
    assert found == expected
