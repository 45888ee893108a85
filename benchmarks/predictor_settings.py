"""How often must the network of 2017 learn and read, for predictions that are as good?

    GRADSIFT_DATA=FOLDER python benchmarks/predictor_settings.py [--data clothes] [--epochs 4]
        [--seeds 2] [--examples 20000] [--out FILE.json]

A model trains in uniform order (by default a CNN on Fashion-MNIST), and every batch's losses are
kept. They are then told to one `LossPredictor` per setting, a batch at a time. Before each batch is
learnt from, over the second half of the steps:

* error: ``E|ŝ − s|/E[s]``;
* price: ``E[s²/q]·E[q]/E[s²]`` with ``q = ŝ + mean(ŝ)/2`` as the recipe smooths it; below one where
  drawing by predictions costs less than uniform draws would, with the loss for the gradient norm;
* milliseconds: mean of one step, predicting 2,048 losses and learning from 64. The settings take
  turns, so that a slow machine is slow for all of them.
"""

import argparse
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gradsift.data.problem import Problem
from gradsift.models import build_model
from gradsift.predictor import Prediction
from gradsift.predictor.recurrent import LossPredictor
from gradsift.report.summary import plain_json
from predictor import DATA

BATCH = 64
SETTINGS = {
    "as published": Prediction(every=1, refresh=None),
    "every step": Prediction(every=1),
    "every 2": Prediction(every=2),
    "every 4": Prediction(every=4),
    "every 4, lr 0.003": Prediction(every=4, lr=3e-3),
    "every 4, 16 read": Prediction(every=4, refresh=16),
    "every 4, 128 read": Prediction(every=4, refresh=128),
    "every 8": Prediction(every=8),
    "every 8, 128 read": Prediction(every=8, refresh=128),
}
"""Those that name no refresh read 64 anew per step."""


@dataclass
class Told:
    """One setting, and what it said so far."""

    predictor: LossPredictor
    errors: list[tuple[float, float]] = field(default_factory=list)
    prices: list[tuple[float, float, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def take(self, ids: Tensor, losses: Tensor, labels: Tensor, candidates: Tensor) -> None:
        """Predicts, is told, learns."""
        told = self.predictor.predict(ids)
        smoothed = told + 0.5 * told.mean()
        self.errors.append((float((told - losses).abs().mean()), float(losses.mean())))
        squares = losses.square()
        self.prices.append(
            (float((squares / smoothed).mean()), float(smoothed.mean()), float(squares.mean()))
        )
        start = time.perf_counter()
        self.predictor.predict(candidates)
        self.predictor.learn(ids, losses, labels)
        self.seconds.append(time.perf_counter() - start)


@dataclass(frozen=True)
class Row:
    """One setting on one training.

    Attributes:
        setting: its name.
        seed: of the training and the network.
        error: mean absolute error over mean loss.
        price: over that of uniform draws.
        milliseconds: of a step.
    """

    setting: str
    seed: int
    error: float
    price: float
    milliseconds: float


def recorded(
    problem: Problem, name: str, seed: int, epochs: int, examples: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids, losses and classes of each step of a uniform training."""
    _, model_name, optimise = DATA[name]
    generator = torch.Generator().manual_seed(seed)
    vocabulary = None if problem.vocabulary is None else len(problem.vocabulary)
    model = build_model(
        model_name, problem.input_shape, problem.outputs, generator=generator, vocabulary=vocabulary
    )
    optimizer = optimise(model.parameters())
    rows = [(*problem.train[place][:2], place) for place in range(examples)]
    steps = []
    loader = DataLoader(rows, BATCH, shuffle=True, drop_last=True, generator=generator)  # pyright: ignore[reportArgumentType]
    for _ in range(epochs):
        for inputs, targets, ids in loader:
            losses = problem.loss_fn(model(inputs), targets)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            steps.append((ids, losses.detach().double(), targets))
    return steps


def measure(name: str, seed: int, epochs: int, most: int) -> list[Row]:
    """All settings on one training."""
    problem = DATA[name][0]()
    examples = min(most, len(problem.train))  # pyright: ignore[reportArgumentType]
    steps = recorded(problem, name, seed, epochs, examples)
    arms = {s: Told(LossPredictor(examples, p, seed)) for s, p in SETTINGS.items()}
    generator = torch.Generator().manual_seed(seed)
    for ids, losses, labels in steps:
        candidates = torch.randint(examples, (2048,), generator=generator)
        for arm in arms.values():
            arm.take(ids, losses, labels, candidates)
    return [summed(setting, seed, arm) for setting, arm in arms.items()]


def summed(name: str, seed: int, arm: Told) -> Row:
    """Over the second half of the steps."""
    half = len(arm.errors) // 2
    wrong, size = (statistics.fmean(column) for column in zip(*arm.errors[half:], strict=True))
    inverse, mass, square = (statistics.fmean(c) for c in zip(*arm.prices[half:], strict=True))
    spent = 1e3 * statistics.fmean(arm.seconds[half:])
    return Row(name, seed, wrong / size, inverse * mass / square, spent)


def main() -> None:
    parser = argparse.ArgumentParser(description="How often it must learn and read.")
    parser.add_argument("--data", default="clothes", choices=list(DATA))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--examples", type=int, default=20_000, help="of the training part, first")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    options = parser.parse_args()
    rows: list[Row] = []
    for seed in range(options.seeds):
        rows += measure(options.data, seed, options.epochs, options.examples)
    print(f"{'setting':28} {'error':>22} {'price':>22} {'milliseconds':>16}")
    for name in SETTINGS:
        own = [row for row in rows if row.setting == name]
        cells = (sorted(getattr(r, c) for r in own) for c in ("error", "price", "milliseconds"))
        texts = [f"{statistics.median(c):.3f} [{c[0]:.3f}, {c[-1]:.3f}]" for c in cells]
        print(f"{name:28} {texts[0]:>22} {texts[1]:>22} {texts[2]:>16}")
    if options.out is not None:
        options.out.write_text(plain_json([asdict(row) for row in rows]) + "\n")


if __name__ == "__main__":
    main()
