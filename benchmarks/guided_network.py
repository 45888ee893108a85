"""Fashion-MNIST under delay: the small convolutional network, delay 9, equal updates, three seeds.

Plain SGD, batches of 32, 10,000 training images, 1,000 updates for every arm (replays are updates),
last weights, or those of the second half averaged. The learning rate is the best of a grid for
sequential SGD, on another seed and on 5,000 training images that are not trained on. Nothing is
timed. A seed fixes the first weights and the order, so arms are paired by seed; three seeds
describe and decide nothing.

    GRADSIFT_DATA=DATA python benchmarks/guided_network.py [--seeds 0 1 2] [--out FILE.json]
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.optim import SGD

from gradsift.data.named import ReadOptions, load_problem
from gradsift.models import build_model
from gradsift.parallel import (
    AbstractGuide,
    ConstantDelay,
    DrawnBatches,
    FreshVerification,
    ModuleObjective,
    ParameterServer,
    SharedTable,
    TailAverage,
    arrivals_by_age,
    asgd,
    sampled_asgd,
)
from gradsift.sampling.distributions import Mixed, Proportional
from gradsift.sampling.table import ScoreTable
from gradsift.trainer.work import shuffled
from guided_arms import ALL, DEFAULT, RHO, SETS, Arm

SIZE, TRAINED, HELD_OUT, UPDATES = 32, 10_000, 5_000, 1_000
GRID = (0.02, 0.05, 0.1, 0.2)
DELAY, TUNING_SEED = 9, 100
NAMES = dict.fromkeys(
    (
        *("none", "rate/age", "DC-ASGD-c", "DC-ASGD-a", "gap-aware", "gSGD (consistent)"),
        *("gSGD, random", "replay 5 of 10", "none, averaged", "rate/age, replay", DEFAULT),
        *("uniform draws", "table", "rate/age, uniform draws", "rate/age, table"),
    )
)


@dataclass(frozen=True)
class Images:
    """Images and labels to train on, and others to judge by."""

    x: Tensor
    y: Tensor
    other_x: Tensor
    other_y: Tensor


@dataclass(frozen=True)
class Ended:
    """How a run ended: test loss, test error in percent, and what was measured of draws."""

    arm: str
    delay: int
    seed: int
    lr: float
    loss: float
    error: float
    gain: float | None = None
    age: float | None = None


def read_images() -> tuple[Images, Images]:
    """For tuning, judged by training images left out; and for the table, by test images."""
    problem = load_problem("fashion-mnist", ReadOptions())
    x, y = stacked(problem.train, TRAINED + HELD_OUT)
    test_x, test_y = stacked(problem.test, 10_000)
    tuning = Images(x[:TRAINED], y[:TRAINED], x[TRAINED:], y[TRAINED:])
    return tuning, Images(x[:TRAINED], y[:TRAINED], test_x, test_y)


def stacked(dataset, count: int) -> tuple[Tensor, Tensor]:
    """The first examples of a data set."""
    pairs = [dataset[place] for place in range(count)]
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


class Training:
    """One run of one arm."""

    def __init__(self, images: Images, arm: Arm, delay: int, lr: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = build_model("cnn", (1, 28, 28), 10, generator=generator)
        self.arm, self.images, self.delay, self.seed = arm, images, delay, seed
        parameters = list(self.model.parameters())
        self.server = ParameterServer(
            parameters, SGD(parameters, lr=lr), compensation=arm.compensation(), memory=delay
        )
        ids = torch.arange(len(images.x))
        fresh = FreshVerification(ids, SETS * SIZE, torch.Generator().manual_seed(seed))
        self.guide: AbstractGuide | None = arm.guide(fresh, seed)
        self.drawn = None
        if arm.uniform is not None:
            law = Mixed(Proportional(), uniform=arm.uniform)
            table = ScoreTable(len(ids), distribution=law, seed=seed)
            self.drawn = DrawnBatches(SharedTable(table), SIZE)

    def rounds(self, updates: int) -> Iterator[int]:
        """Asynchronous SGD on shuffled or drawn batches."""
        x, y = self.images.x, self.images.y
        loss_fn = nn.CrossEntropyLoss(reduction="none")
        objective = ModuleObjective(self.model, loss_fn, lambda ids: (x[ids], y[ids]))
        generator = torch.Generator().manual_seed(self.seed)
        arrivals = arrivals_by_age(ConstantDelay(self.delay), self.delay + 1, updates, generator)
        if self.drawn is not None:
            return sampled_asgd(self.server, objective, arrivals, self.drawn)
        batches = shuffled(torch.arange(len(x)), SIZE, generator)
        return asgd(self.server, objective, arrivals, batches, self.guide)

    def run(self, updates: int) -> tuple[float, float]:
        """Trains for so many updates, replays included; loss and error on the other images."""
        average = TailAverage()
        for received in self.rounds(updates):
            count = received + (0 if self.guide is None else int(self.guide.corrections))
            if self.arm.average and count > updates // 2:
                average.add(self.server.weights)
            if count >= updates and received % RHO == 0:
                break
        if average.count:
            with torch.no_grad():
                for parameter, mean in zip(self.model.parameters(), average.weights, strict=True):
                    parameter.copy_(mean)
        return judged(self.model, self.images)


def judged(model: nn.Module, images: Images) -> tuple[float, float]:
    """Mean loss and error in percent; infinite where the weights are lost."""
    losses, wrong = [], []
    with torch.no_grad():
        for x, y in zip(images.other_x.split(500), images.other_y.split(500), strict=True):
            outputs = model(x)
            losses.append(nn.functional.cross_entropy(outputs, y).item())
            wrong.append((outputs.argmax(1) != y).double().mean().item())
    loss = fmean(losses)
    return (loss if loss == loss else float("inf")), 100 * fmean(wrong)


def tuned(images: Images, updates: int) -> float:
    """The grid's best for sequential SGD."""
    losses = []
    for lr in GRID:
        losses.append(Training(images, ALL["none"], 0, lr, TUNING_SEED).run(updates)[0])
        print(f"tuning: learning rate {lr:g}, held-out loss {losses[-1]:.4f}", flush=True)
    return GRID[losses.index(min(losses))]


def table(rows: list[Ended]) -> None:
    """Means over seeds, and the range."""
    print("\n| arm | delay | test loss | from | to | test error, % | moments | age of scores |")
    print("|---|---|---|---|---|---|---|---|")
    for arm, delay in dict.fromkeys((row.arm, row.delay) for row in rows):
        own = [row for row in rows if (row.arm, row.delay) == (arm, delay)]
        losses = [row.loss for row in own]
        gains = [f"{row.gain:.2f}" for row in own if row.gain is not None]
        ages = [f"{row.age:.0f}" for row in own if row.age is not None]
        print(
            f"| {arm} | {delay} | {fmean(losses):.4f} | {min(losses):.4f} | {max(losses):.4f} | "
            f"{fmean(row.error for row in own):.2f} | {' '.join(gains)} | {' '.join(ages)} |"
        )


def main() -> None:
    """Tunes, trains every arm with every seed, and prints."""
    parser = argparse.ArgumentParser(description="The delay table on Fashion-MNIST.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(NAMES))
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--lr", type=float, help="instead of tuning")
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tuning, images = read_images()
    lr = tuned(tuning, given.updates) if given.lr is None else given.lr
    rows: list[Ended] = []
    for seed in given.seeds:
        for arm, delay in (("none", 0), ("table", 0), *((arm, DELAY) for arm in given.arms)):
            training = Training(images, ALL[arm], delay, lr, seed)
            loss, error = training.run(given.updates)
            drawn = training.drawn
            extra = () if drawn is None else (drawn.gain, drawn.mean_age)
            rows.append(Ended(arm, delay, seed, lr, loss, error, *extra))
            print(f"seed {seed}, delay {delay}, {arm}: {loss:.4f}, {error:.2f} %", flush=True)
        if given.out is not None:
            found = [asdict(row) for row in rows]
            given.out.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
    table(rows)


if __name__ == "__main__":
    main()
