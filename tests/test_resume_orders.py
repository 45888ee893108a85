"""Whatever the user's own order is, the rest of an epoch has the very same ids and data."""

import io
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

import gradsift
from gradsift import UsageError
from gradsift.data.replay import replay

EXAMPLES, BATCH = 14, 4
DATA = TensorDataset(torch.arange(float(EXAMPLES))[:, None], torch.arange(EXAMPLES) % 3)
LOSS = nn.CrossEntropyLoss(reduction="none")


class Buckets(Sampler[list[int]]):
    """A batch sampler of one's own, out of NumPy's global generator."""

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.permutation(EXAMPLES).tolist()
        yield from (order[:3], order[3:9], order[9:])

    def __len__(self) -> int:
        return 3


class AsItGoes(Sampler[list[int]]):
    """Draws every batch when it is asked for, out of a generator that it shows."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(8)

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(4):
            yield torch.randint(EXAMPLES, (BATCH,), generator=self.generator).tolist()

    def __len__(self) -> int:
        return 4


class Endless(Sampler[list[int]]):
    """Neither a generator nor a length."""

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield torch.randint(EXAMPLES, (BATCH,)).tolist()


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Examples without ids."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*DATA.tensors, strict=True)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of(sampler: Any, **options: Any) -> DataLoader:
    return DataLoader(DATA, BATCH, sampler=sampler, **options)


LOADERS: dict[str, Callable[[], Any]] = {
    "in turn": lambda: DataLoader(DATA, BATCH),
    "shuffled": lambda: DataLoader(DATA, BATCH, shuffle=True),
    "shuffled, own generator": lambda: DataLoader(DATA, BATCH, shuffle=True, generator=seeded(1)),
    "two generators": lambda: of(RandomSampler(DATA, generator=seeded(2)), generator=seeded(3)),
    "with replacement": lambda: of(RandomSampler(DATA, replacement=True, num_samples=70)),
    "weighted": lambda: of(WeightedRandomSampler([1.0, 2.0] * 7, 14)),
    "weighted, own generator": lambda: of(
        WeightedRandomSampler([1.0, 2.0] * 7, 14, generator=seeded(4))
    ),
    "subset": lambda: of(SubsetRandomSampler([1, 3, 5, 7, 9, 11, 13])),
    "distributed": lambda: of(DistributedSampler(DATA, num_replicas=2, rank=1, seed=3)),
    "buckets": lambda: DataLoader(DATA, batch_sampler=Buckets()),
    "as it goes": lambda: DataLoader(DATA, batch_sampler=AsItGoes()),
    "list": lambda: [(torch.full((4, 1), float(k)), torch.arange(4) % 3) for k in range(4)],
    "stream": lambda: DataLoader(Stream(), BATCH),
}

KINDS = {
    "in turn": "generators",
    "shuffled": "a seed per pass",
    "shuffled, own generator": "generators",
    "weighted": "its ids",
    "distributed": "generators",
    "buckets": "its ids",
    "as it goes": "generators",
}


def sifted(build: Callable[[], Any], recipe: str) -> gradsift.SiftedLoader:
    torch.manual_seed(0)
    np.random.seed(0)
    model = nn.Linear(1, 3)
    return gradsift.sift(build(), model, LOSS, recipe=recipe)


def epochs(train: gradsift.SiftedLoader) -> Iterator[tuple[list[int], list[float]]]:
    while True:
        for batch in train:
            yield batch.indices.tolist(), batch.inputs.flatten().tolist()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", LOADERS)
def test_the_rest_of_every_epoch_is_the_same(name: str) -> None:
    check_the_rest(LOADERS[name], "uniform", range(9))


@pytest.mark.parametrize("name", ["shuffled", "buckets", "as it goes", "list"])
def test_the_same_where_passes_are_cut_into_pools(name: str) -> None:
    check_the_rest(LOADERS[name], "pool", range(0, 9, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_pools_from_every_step(name: str) -> None:
    check_the_rest(LOADERS[name], "pool", range(9))


@pytest.mark.parametrize("name", LOADERS)
def test_between_two_epochs(name: str) -> None:
    with torch.random.fork_rng():
        train, again = (sifted(LOADERS[name], "uniform") for _ in range(2))
        assert len([*train]) > 1
        state, random = train.state_dict(), (torch.get_rng_state(), np.random.get_state())
        expected = list(islice(epochs(train), 6))
        again.load_state_dict(through_a_file(state))
        torch.set_rng_state(random[0])
        np.random.set_state(random[1])
        assert list(islice(epochs(again), 6)) == expected


def check_the_rest(build: Callable[[], Any], recipe: str, places: range, count: int = 9) -> None:
    """Nothing is trained here, so that ids and data alone are compared, over two epochs."""
    with torch.random.fork_rng():
        for step in places:
            train = sifted(build, recipe)
            steps = epochs(train)
            list(islice(steps, step))
            state, random = train.state_dict(), (torch.get_rng_state(), np.random.get_state())
            expected = list(islice(steps, count - step))

            again = sifted(build, recipe)
            torch.manual_seed(99)
            np.random.seed(99)
            again.load_state_dict(through_a_file(state))
            torch.set_rng_state(random[0])
            np.random.set_state(random[1])
            assert list(islice(epochs(again), count - step)) == expected, f"from step {step}"


@pytest.mark.parametrize("name", KINDS)
def test_how_an_order_is_kept(name: str) -> None:
    loader = LOADERS[name]()
    assert replay(loader.batch_sampler, loader).kind == KINDS[name]


def test_a_fixed_order_in_batches_of_its_own() -> None:
    lists = BatchSampler(SequentialSampler(DATA), BATCH, drop_last=False)
    assert replay(lists).kind == "generators"


def test_the_seed_of_a_pass_is_the_one_that_pytorch_draws() -> None:
    for replacement in (False, True):
        sampler = RandomSampler(DATA, replacement=replacement)
        lists = BatchSampler(sampler, BATCH, drop_last=False)
        with torch.random.fork_rng():
            torch.manual_seed(6)
            expected, after = list(lists), torch.get_rng_state()
            torch.manual_seed(6)
            assert list(replay(lists).restart()) == expected
            assert torch.equal(torch.get_rng_state(), after)


def test_the_epoch_of_a_distributed_sampler_comes_back() -> None:
    def build() -> DataLoader:
        return LOADERS["distributed"]()

    loader, other = build(), build()
    train = gradsift.sift(loader, nn.Linear(1, 3), LOSS, recipe="uniform")
    again = gradsift.sift(other, nn.Linear(1, 3), LOSS, recipe="uniform")
    sampler, theirs = loader.sampler, other.sampler
    assert isinstance(sampler, DistributedSampler)
    assert isinstance(theirs, DistributedSampler)
    sampler.set_epoch(5)
    steps = epochs(train)
    next(steps)
    again.load_state_dict(train.state_dict())
    assert theirs.epoch == 5
    assert next(epochs(again)) == next(steps)


def test_after_the_last_batch_of_an_epoch_nothing_is_left_of_it() -> None:
    train = sifted(LOADERS["shuffled"], "uniform")
    batches = iter(train)
    for _ in range(len(train)):
        next(batches)
    again = sifted(LOADERS["shuffled"], "uniform")
    again.load_state_dict(train.state_dict())
    assert sum(1 for _ in again) == 0
    assert sum(1 for _ in again) == len(train)


@pytest.mark.parametrize("recipe", ["uniform", "pool"])
def test_an_epoch_that_was_left_is_over(recipe: str) -> None:
    train = sifted(LOADERS["shuffled, own generator"], recipe)
    for _ in train:
        break
    state = train.state_dict()
    expected = [batch.indices.tolist() for batch in train]
    again = sifted(LOADERS["shuffled, own generator"], recipe)
    again.load_state_dict(state)
    assert [batch.indices.tolist() for batch in again] == expected
    assert len(expected) == len(train)


def test_what_is_loaded_can_be_saved_again_before_any_step() -> None:
    train, again, third = (sifted(LOADERS["shuffled, own generator"], "pool") for _ in range(3))
    steps = epochs(train)
    next(steps)
    again.load_state_dict(train.state_dict())
    third.load_state_dict(again.state_dict())
    assert list(islice(epochs(third), 5)) == list(islice(steps, 5))


def test_a_stream_that_ends_too_early_is_refused() -> None:
    batches = LOADERS["list"]()
    train = gradsift.sift(batches, nn.Linear(1, 3), LOSS, recipe="uniform")
    list(islice(epochs(train), 3))
    shorter = gradsift.sift(batches[:2], nn.Linear(1, 3), LOSS, recipe="uniform")
    with pytest.raises(UsageError, match="ended after 2 batches, expected at least 3"):
        shorter.load_state_dict(train.state_dict())


def test_an_order_that_nobody_can_repeat_is_refused() -> None:
    loader = DataLoader(DATA, batch_sampler=Endless())
    train = gradsift.sift(loader, nn.Linear(1, 3), LOSS, recipe="uniform")
    list(islice(epochs(train), 2))
    with pytest.raises(UsageError, match="give it an attribute `generator`"):
        train.state_dict()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no state of a sifted loader"),
        ({"format": 2}, "saved by a newer gradsift"),
        ({"format": "1"}, "no state of a sifted loader"),
    ],
)
def test_what_is_no_state_is_refused(state: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sifted(LOADERS["shuffled"], "pool").load_state_dict(state)


@pytest.mark.parametrize(
    ("recipe", "name", "message"),
    [
        ("uniform", "shuffled", "recipe 'pool' received, expected 'uniform'"),
        ("pool", "list", "examples 14 received, expected None"),
        ("pool", "shuffled, own generator", "kept by a seed per pass received"),
        ("pool", "two generators", "kept by a seed per pass received"),
    ],
)
def test_the_state_of_another_loader_is_refused(recipe: str, name: str, message: str) -> None:
    state = sifted(LOADERS["shuffled"], "pool").state_dict()
    with pytest.raises(UsageError, match=message):
        sifted(LOADERS[name], recipe).load_state_dict(state)


def test_another_number_of_generators_is_refused() -> None:
    state = sifted(LOADERS["two generators"], "pool").state_dict()
    with pytest.raises(UsageError, match="2 generators received, this one has 1"):
        sifted(LOADERS["shuffled, own generator"], "pool").load_state_dict(state)


def test_the_state_of_another_rank_is_refused() -> None:
    def ranked(rank: int) -> gradsift.SiftedLoader:
        loader = LOADERS["shuffled"]()
        return gradsift.sift(loader, nn.Linear(1, 3), LOSS, recipe="pool", rank=rank, world_size=2)

    with pytest.raises(UsageError, match="rank 1 received, expected 0"):
        ranked(0).load_state_dict(ranked(1).state_dict())


PLAIN = (int, float, str, bool, type(None), Tensor)


def strangers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [
            found for key, inner in value.items() for found in (*strangers(key), *strangers(inner))
        ]
    if isinstance(value, list):
        return [found for inner in value for found in strangers(inner)]
    return [] if type(value) in PLAIN else [value]


@pytest.mark.parametrize("recipe", ["uniform", "pool", "table", "auto", "katharopoulos2018"])
def test_a_state_is_made_of_plain_values(recipe: str) -> None:
    train = sifted(LOADERS["shuffled"], recipe)
    for _ in range(3):
        for batch in train:
            batch.loss(torch.zeros(len(batch), 3, requires_grad=True))
    assert strangers(train.state_dict()) == []
