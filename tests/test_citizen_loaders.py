"""Every id comes with its own example, whatever loader, worker, wrapper or stream there is."""

import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    get_worker_info,
    random_split,
)

import gradsift
from citizens import FAMILIES, PUBLISHED
from gradsift import UsageError
from gradsift.clock import VirtualClock

LOSS = nn.CrossEntropyLoss(reduction="none")
N, BATCH = 48, 8


class Planted(Dataset[tuple[Tensor, Tensor]]):
    """Example i says that it is example ``first + i``."""

    def __init__(self, count: int = N, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        own = self.first + index
        return torch.tensor([own / N, float(own)]), torch.tensor(own % 3)


class Streamed(IterableDataset[tuple[Tensor, Tensor]]):
    """The same examples without ids, shared out among workers."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(start, N, step):
            yield Planted()[index]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3))


def check(loader: Any, family: str, meaning: Callable[[int], int], epochs: int = 4) -> None:
    """Trains, and compares each id with what its example says.

    Args:
        loader: to be sifted.
        family: of recipes.
        meaning: the example that an id stands for.
        epochs: so many.
    """
    recipe = {"published": PUBLISHED, "two-stage": "auto"}.get(family, family)
    model, clock = network(), VirtualClock()
    train = gradsift.sift(loader, model, LOSS, recipe=recipe, clock=clock)
    drawn = False
    for _ in range(epochs):
        for batch in train:
            says = batch.inputs[:, 1].long().tolist()
            assert batch.indices.dtype == torch.int64
            assert says == [meaning(one) for one in batch.indices.tolist()]
            assert batch.targets.tolist() == [one % 3 for one in says]
            assert len(batch) <= BATCH
            batch.loss(model(batch.inputs)).backward()
            clock.charge(trained=len(batch))
            drawn |= batch.drawn
    if family in ("pool", "table"):
        assert drawn
    if train.table is not None:
        assert train.table.size == len(loader.dataset)


def half_of(data: Dataset[Any]) -> Subset[Any]:
    return Subset(data, range(N - 1, N // 2 - 1, -1))


def splits() -> list[Subset[Any]]:
    return random_split(Planted(), [N // 3, N - N // 3], torch.Generator().manual_seed(4))


LOADERS: dict[str, tuple[Callable[[], Any], Callable[[int], int]]] = {
    "plain": (partial(DataLoader, Planted(), BATCH, shuffle=True), lambda one: one),
    "subset": (partial(DataLoader, half_of(Planted()), BATCH, shuffle=True), lambda one: 47 - one),
    "subset of a subset": (
        partial(DataLoader, Subset(half_of(Planted()), [3, 9, 5, 20] * 8), BATCH, shuffle=True),
        lambda one: 47 - ([3, 9, 5, 20] * 8)[one],
    ),
    "concatenation": (
        partial(DataLoader, ConcatDataset([Planted(20, 28), Planted(28)]), BATCH, shuffle=True),
        lambda one: one + 28 if one < 20 else one - 20,
    ),
    "random split": (
        partial(DataLoader, splits()[1], BATCH, shuffle=True),
        lambda one: splits()[1].indices[one],
    ),
    "tensors": (
        lambda: DataLoader(
            TensorDataset(*(torch.stack(side) for side in zip(*Planted(), strict=True))),
            BATCH,
            shuffle=True,
        ),
        lambda one: one,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LOADERS)
def test_ids_of_wrapped_data_are_those_of_their_examples(name: str, family: str) -> None:
    build, meaning = LOADERS[name]
    check(build(), family, meaning)


WORKERS: dict[str, dict[str, Any]] = {
    "fork": {"multiprocessing_context": "fork"},
    "persistent": {"persistent_workers": True},
    "far ahead": {"prefetch_factor": 5, "persistent_workers": True},
    "one ahead": {"prefetch_factor": 1},
}
SLOW_STARTS: dict[str, dict[str, Any]] = {
    "spawn": {"multiprocessing_context": "spawn", "persistent_workers": True},
    "forkserver": {
        "multiprocessing_context": multiprocessing.get_context("forkserver"),
        "persistent_workers": True,
    },
}


@pytest.mark.parametrize("family", ["pool", "table"])
@pytest.mark.parametrize("name", WORKERS)
def test_workers_bring_what_was_planned(name: str, family: str) -> None:
    loader = DataLoader(Planted(), BATCH, shuffle=True, num_workers=2, **WORKERS[name])
    check(loader, family, lambda one: one)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pool", "table"])
@pytest.mark.parametrize("name", SLOW_STARTS)
def test_workers_that_start_from_nothing(name: str, family: str) -> None:
    loader = DataLoader(Planted(), BATCH, shuffle=True, num_workers=2, **SLOW_STARTS[name])
    check(loader, family, lambda one: one)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="pinning needs an accelerator")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches(family: str, workers: int) -> None:
    loader = DataLoader(Planted(), BATCH, shuffle=True, num_workers=workers, pin_memory=True)
    assert next(iter(loader))[0].is_pinned()
    check(loader, family, lambda one: one)


STREAMS = tuple(name for name in FAMILIES if name != "table")


@pytest.mark.parametrize("family", STREAMS)
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_count_their_examples(family: str, workers: int) -> None:
    """An id says how many examples arrived before; with two workers every other batch is odd."""

    def meaning(one: int) -> int:
        one %= N
        if workers == 0:
            return one
        batch, place = divmod(one, BATCH)
        return 2 * (batch // 2 * BATCH + place) + batch % 2

    check(DataLoader(Streamed(), BATCH, num_workers=workers), family, meaning)


def test_a_stream_has_no_table() -> None:
    with pytest.raises(UsageError, match="draws ids from the whole data set"):
        gradsift.sift(DataLoader(Streamed(), BATCH), network(), LOSS, recipe="table")


@pytest.mark.parametrize("family", STREAMS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_torchdatas_stateful_loader_is_a_stream(family: str, workers: int) -> None:
    """Its workers are its own: it is iterated as it is, so no id can be asked for."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    loader = stateful.StatefulDataLoader(Planted(), BATCH, num_workers=workers)
    check(loader, family, lambda one: one % N)


def test_a_lookalike_of_the_stateful_loader_is_a_stream_too() -> None:
    """A subclass with an ``__iter__`` of its own is not read by id, whatever it is made of."""

    class Stateful(DataLoader[Any]):
        def __iter__(self) -> Any:
            return super().__iter__()

    train = gradsift.sift(Stateful(Planted(), BATCH, shuffle=True), network(), LOSS)
    assert train.table is None
    seen = [one for batch in train for one in batch.inputs[:, 1].long().tolist()]
    assert sorted(seen) == list(range(N))
    assert any("only pools are considered" in notice for notice in train.notices)


def test_a_planted_mistake_is_found() -> None:
    with pytest.raises(AssertionError):
        check(DataLoader(Planted(), BATCH, shuffle=True), "pool", lambda one: one ^ 1)
