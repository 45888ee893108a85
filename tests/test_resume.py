"""A sifted loop that is saved at any step and taken up elsewhere goes on to the bit."""

import io
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
)

import gradsift
from gradsift import Recipe
from gradsift.clock import VirtualClock
from gradsift.gate import Decision, Offer, TauThreshold

EXAMPLES, BATCH = 18, 4
LOSS = nn.CrossEntropyLoss(reduction="none")
OPENING = Recipe(gate=TauThreshold(threshold=0.3), name="opening")
"""A published gate that opens after a few steps."""

STEPS = 11
"""Two epochs of four batches, and a part of the third."""

MANY = 40
"""Long enough for drawn windows, priced batches and arranged tables."""

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

    def steps(self) -> Generator[tuple[Tensor, Tensor, float], None, None]:
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


Step = tuple[list[int], list[float], float]


def take(run: Run, count: int) -> list[Step]:
    found = []
    steps = run.steps()
    for _ in range(count):
        ids, weights, loss = next(steps)
        found.append((ids.tolist(), weights.tolist(), loss))
    return found


def saved_everywhere(make: Callable[[], Run], count: int) -> tuple[list[Step], list[bytes]]:
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


def check_every_step(make: Callable[[], Run], count: int, first: int = 0, stride: int = 1) -> None:
    """Saves before every step, and takes up the run from each of these states."""
    with torch.random.fork_rng():
        whole, saved = saved_everywhere(make, count)
        assert take(make(), count) == whole, "saving changed something"
        for step in range(first, count + 1, stride):
            run = make()
            torch.manual_seed(step)
            run.load(saved[step])
            assert take(run, count - step) == whole[step:], f"from step {step}"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_later_step_is_the_same_from_every_step(family: str) -> None:
    check_every_step(lambda: Run(own_generator, FAMILIES[family], workers=0), STEPS)


@pytest.mark.parametrize("family", ["pool", "table"])
def test_the_same_without_a_generator_and_with_noise_from_the_global_one(family: str) -> None:
    check_every_step(lambda: Run(shuffled, FAMILIES[family], workers=0), STEPS, stride=2)


@pytest.mark.parametrize("family", ["uniform", "table"])
def test_the_same_with_workers(family: str) -> None:
    check_every_step(lambda: Run(own_generator, FAMILIES[family], workers=2), 6)


def test_that_workers_draw_other_numbers_is_said_within_an_epoch_only() -> None:
    with torch.random.fork_rng():
        run = Run(own_generator, "uniform", workers=2)
        between = run.save()
        steps = run.steps()
        next(steps)
        within = run.save()
        steps.close()
        for workers, state, said in ((2, between, 0), (2, within, 1), (0, within, 0)):
            again = Run(own_generator, "uniform", workers)
            again.load(state)
            assert sum("workers" in notice for notice in again.train.notices) == said


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("build", [shuffled, own_generator], ids=lambda build: build.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_matrix(family: str, build: Build, workers: int) -> None:
    check_every_step(lambda: Run(build, FAMILIES[family], workers), 9 if workers else 14)


@pytest.mark.parametrize("family", ["table", "auto"])
def test_windows_of_scores_and_draws_go_on_in_the_middle(family: str) -> None:
    """After the first windows of scores: the table is arranged, priced and drawn from."""

    def make() -> Run:
        return Run(own_generator, FAMILIES[family], workers=0)

    check_every_step(make, MANY, first=MANY - 12, stride=3)


def forced(source: Any) -> Callable[[], Run]:
    """Runs of auto whose gate has just decided for a source."""

    def make() -> Run:
        run = Run(own_generator, "auto", workers=0)
        policy: Any = run.train.policy
        policy.deciding.decision = Decision(Offer(source, 1.0, 2.0, 2.0, 3.0), 1.5, "forced", 64.0)
        return run

    return make


@pytest.mark.parametrize("source", ["table", "pool", "two-stage"])
def test_whatever_auto_has_opened_goes_on(source: str) -> None:
    """What is loaded is the decision too: the runs that go on are not told."""
    with torch.random.fork_rng():
        whole, saved = saved_everywhere(forced(source), STEPS)
        assert any(weight != 1 for _, weights, _ in whole for weight in weights) or (
            source == "table"
        )
        for step in range(0, STEPS, 3):
            run = Run(own_generator, "auto", workers=0)
            run.load(saved[step])
            assert take(run, STEPS - step) == whole[step:]
            decision = run.train.gate
            assert decision is not None
            assert decision["reason"] == "forced"


@pytest.mark.slow
def test_a_run_whose_gate_opens_by_itself_goes_on_around_its_decisions() -> None:
    def make() -> Run:
        return Run(opening, "auto", workers=0, spend="batch")

    count, first = 420, 120
    with torch.random.fork_rng():
        run = make()
        steps, saved, whole = run.steps(), {}, []
        for step in range(count):
            if step >= first and step % 37 == 0:
                saved[step] = run.save()
            ids, weights, loss = next(steps)
            whole.append((ids.tolist(), weights.tolist(), loss))
        gate = run.train.gate
        assert gate is not None
        assert first < gate["opened_at_step"] < 2 * first
        assert min(len(ids) for ids, _, _ in whole) < len(whole[0][0])  # half batches are tried
        for step, state in saved.items():
            again = make()
            again.load(state)
            assert take(again, count - step) == whole[step:]
            assert again.train.gate == gate


class Uneven(Dataset[tuple[Tensor, Tensor]]):
    """Most examples are easy for ever: scores persist, so that the table pays."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(512) % 2
        self.x = torch.randn(512, 4, generator=generator)
        self.x[:, 0] = (2 * self.y - 1) * 6.0
        self.x[torch.arange(512) < 51, 0] = 0.0

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def opening(workers: int) -> DataLoader:
    generator = torch.Generator().manual_seed(2)
    return DataLoader(Uneven(), 16, shuffle=True, generator=generator, num_workers=workers)
