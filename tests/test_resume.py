"""A sifted loop that is saved at any step and taken up elsewhere goes on to the bit."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import gradsift
from gradsift import Recipe, UsageError, recipes
from gradsift.clock import VirtualClock
from gradsift.data.replay import Listed
from gradsift.gate import TauThreshold

EXAMPLES, BATCH = 26, 4
LOSS = nn.CrossEntropyLoss(reduction="none")
OPENING = Recipe(gate=TauThreshold(threshold=0.3), name="opening")
"""A published gate that opens after a few steps."""

STEPS = 17
"""Two epochs of six or seven batches, and a part of the third."""

Build = Callable[[int], Any]


class Cloud(Dataset[tuple[Tensor, Tensor]]):
    """Three overlapping classes; noise from the global generator where it is asked for."""

    def __init__(self, *, noisy: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(EXAMPLES, 4, generator=generator)
        self.noisy = noisy

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn(4) if self.noisy else 0.0
        return self.x[index] + noise, torch.tensor(index % 3)


class Run:
    """A user's own loop: model with dropout, optimiser, loader, sifted loader, global random state.

    It saves and loads as ``docs/resume.md`` says.
    """

    def __init__(self, build: Build, recipe: str | Recipe, workers: int, **options: Any) -> None:
        torch.manual_seed(11)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.clock = VirtualClock()
        self.train = gradsift.sift(
            build(workers), self.model, LOSS, recipe=recipe, clock=self.clock, **options
        )

    def steps(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Ids, weights and loss of each step, epoch after epoch."""
        while True:
            for batch in self.train:
                loss = batch.loss(self.model(batch.inputs))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.clock.charge(trained=len(batch))
                yield batch.indices, batch.weights, loss.item()

    def save(self) -> bytes:
        kept = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "train": self.train.state_dict(),
            "random": torch.get_rng_state(),
        }
        file = io.BytesIO()
        torch.save(kept, file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        kept = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.train.load_state_dict(kept["train"])
        torch.set_rng_state(kept["random"])


def take(run: Run, count: int) -> list[tuple[list[int], list[float], float]]:
    found = []
    steps = run.steps()
    for _ in range(count):
        ids, weights, loss = next(steps)
        found.append((ids.tolist(), weights.tolist(), loss))
    return found


def saved_everywhere(
    make: Callable[[], Run], count: int
) -> tuple[list[tuple[list[int], list[float], float]], list[bytes]]:
    """A run of so many steps, and what was saved before each of them and after the last."""
    run = make()
    steps = run.steps()
    found, saved = [], [run.save()]
    for _ in range(count):
        ids, weights, loss = next(steps)
        found.append((ids.tolist(), weights.tolist(), loss))
        saved.append(run.save())
    return found, saved


def shuffled(workers: int) -> DataLoader:
    return DataLoader(Cloud(noisy=workers == 0), BATCH, shuffle=True, num_workers=workers)


def own_generator(workers: int) -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(
        Cloud(noisy=workers == 0),
        BATCH,
        shuffle=True,
        num_workers=workers,
        generator=generator,
        drop_last=True,
    )


FAMILIES: dict[str, str | Recipe] = {
    "uniform": "uniform",
    "uniform-iid": "uniform-iid",
    "pool": "pool",
    "published gate": OPENING,
    "constant time": "katharopoulos2018-constant-time",
    "table": "table",
    "auto": "auto",
}


@pytest.mark.parametrize("build", [shuffled, own_generator], ids=lambda build: build.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_later_step_is_the_same_from_every_step(family: str, build: Build) -> None:
    def make() -> Run:
        return Run(build, FAMILIES[family], workers=0)

    with torch.random.fork_rng():
        whole, saved = saved_everywhere(make, STEPS)
        assert take(make(), STEPS) == whole  # saving changes nothing
        for step, state in enumerate(saved):
            run = make()
            torch.manual_seed(step)
            run.load(state)
            assert take(run, STEPS - step) == whole[step:], f"from step {step}"


def test_the_families_do_what_they_are_there_for() -> None:
    with torch.random.fork_rng():
        drawn = {}
        for family in ("published gate", "table", "pool"):
            run = Run(own_generator, FAMILIES[family], workers=0)
            weights = [weights for _, weights, _ in take(run, STEPS)]
            drawn[family] = [any(weight != 1 for weight in step) for step in weights]
    assert not drawn["published gate"][0]
    assert drawn["published gate"][-1]
    assert not any(drawn["table"][:6])
    assert all(drawn["table"][8:])
    assert all(drawn["pool"])
