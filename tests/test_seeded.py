"""Augmentation that repeats: in workers and without, in a resumed loop and in a whole one."""

import pickle
import random
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import gradsift
from gradsift import UsageError
from gradsift.clock import VirtualClock
from gradsift.data.seeded import Seeded, Visit, seed_of, seeded

EXAMPLES, BATCH = 12, 4
LOSS = nn.CrossEntropyLoss(reduction="none")


class Noisy(Dataset[tuple[Tensor, int]]):
    """Draws from all three generators at every access."""

    classes = 3

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert type(index) is int
        drawn = [torch.rand(()).item(), float(np.random.rand()), random.random()]
        return torch.tensor([float(index), *drawn]), index % 3


def sifted(
    workers: int = 0, recipe: str = "uniform", seed: int = 0, **options: Any
) -> tuple[Any, nn.Module]:
    order = torch.Generator().manual_seed(3)
    loader = DataLoader(Noisy(), BATCH, shuffle=True, num_workers=workers, generator=order)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) / 10)
    clock = VirtualClock()
    options = {"per_example_seed": True, **options}
    train = gradsift.sift(loader, model, LOSS, recipe=recipe, seed=seed, clock=clock, **options)
    return train, model


def seen(train: Any, model: nn.Module, steps: int) -> list[Tensor]:
    """Ids and inputs of the next steps, side by side."""
    found = []
    for batch in islice(chain.from_iterable(repeat(train)), steps):
        batch.loss(model(batch.inputs))
        found.append(torch.cat([batch.indices[:, None].float(), batch.inputs], 1))
    return found


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_every_access_has_the_numbers_of_its_seed_step_and_id() -> None:
    """The slow way: seed, draw, by hand."""
    train, model = sifted(seed=5)
    for step, rows in enumerate(seen(train, model, 7), start=1):
        for row in rows:
            seed = seed_of(5, step, int(row[0]))
            drawn = [
                torch.rand((), generator=torch.Generator().manual_seed(seed)).item(),
                float(np.random.RandomState(seed % 2**32).rand()),
                random.Random(seed).random(),
            ]
            assert torch.equal(row[1:], torch.tensor([float(row[0]), *drawn]))


@pytest.mark.parametrize("recipe", ["uniform", "table", "pool"])
def test_workers_change_nothing(recipe: str) -> None:
    """Of two that prefetch: tables draw by older scores then, so the first pass is compared."""
    steps = EXAMPLES // BATCH if recipe == "table" else 7
    expected = seen(*sifted(0, recipe), steps)
    assert equal(seen(*sifted(2, recipe), steps), expected)
    assert not equal(seen(*sifted(0, recipe, seed=1), steps), expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_resumed_loop_sees_the_same_pictures(cut: int, workers: int) -> None:
    whole, model = sifted(workers)
    expected = seen(whole, model, 8)
    first, model = sifted(workers)
    before, batches = [], iter(first)
    for _ in range(cut):
        if (batch := next(batches, None)) is None:
            batches = iter(first)
            batch = next(batches)
        batch.loss(model(batch.inputs))
        before.append(torch.cat([batch.indices[:, None].float(), batch.inputs], 1))
    state = first.state_dict()
    second, model = sifted(workers)
    second.load_state_dict(state)
    assert equal(before + seen(second, model, 8 - cut), expected)
    assert second.notices == ()


def test_global_generators_are_left_alone() -> None:
    """Python's own is looked at apart: the checks of types in these tests draw from it."""

    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), str(np.random.get_state())]

    batches = iter(sifted()[0])
    before = states()
    next(batches)
    assert states() == before
    python = random.getstate()
    with seeded(3):
        random.random()
    assert random.getstate() == python


def test_the_plain_order_of_ids_is_kept() -> None:
    plain, model = sifted(per_example_seed=False)
    known, _ = sifted()
    ids = [torch.stack([rows[:, 0] for rows in seen(each, model, 6)]) for each in (plain, known)]
    assert torch.equal(*ids)


def test_a_stream_has_no_ids_to_seed_by() -> None:
    with pytest.raises(UsageError, match="per_example_seed received with a list"):
        gradsift.sift(
            [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))],
            nn.Linear(4, 3),
            LOSS,
            per_example_seed=True,
        )


def test_the_state_of_another_kind_is_refused() -> None:
    state = sifted()[0].state_dict()
    with pytest.raises(UsageError, match="per_example_seed"):
        sifted(per_example_seed=False)[0].load_state_dict(state)


def test_a_visit_and_its_data_set_travel() -> None:
    visit = pickle.loads(pickle.dumps(Visit(4, 9)))
    assert (visit, visit.step, type(visit)) == (4, 9, Visit)
    data = pickle.loads(pickle.dumps(Seeded(Noisy(), seed=2)))
    assert torch.equal(data[visit][0], Seeded(Noisy(), seed=2)[Visit(4, 9)][0])
    assert data.classes == 3
    assert len(data) == EXAMPLES
    with pytest.raises(AttributeError):
        _ = data.absent
