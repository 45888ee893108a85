"""Do predicted scores make a cheaper proposal than the last ones, and what does predicting cost?

    GRADSIFT_DATA=FOLDER python benchmarks/predictor.py [--data clothes text digits] [--seeds 5]
        [--epochs 6] [--examples 20000] [--cost] [--out FILE.json]

Price: a model trains by the recipe `table-forecast`. Every window of 16 steps is priced by
proposals that were made before it, on the same draws: ``E[w w' g²]`` over uniform's, one over the
variance ratio. Two pairs, each against the last seen scores, shrunk by the share λ of the recipe:

* forecast: of the output gradient's norm, from the last scores, their age and the class;
* network: of the loss, by the LSTM of 2017, which learns from every step beside the training.

A row is one seed at the end of one epoch, with averages over about one epoch of windows. Printed
below: the ratio of the two variance ratios (above one where the predictor wins), its geometric mean
over the second half of the epochs, with the t interval over seeds.

Cost (``--cost``): milliseconds of a training step of the CNN on a batch of 64, and ratios to it,
taken in turns: the same step again (A/A), predicting 2,048 losses with what was read kept, as
published without, one step of the network's own training, and the forecasts' part of a step.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from gradsift import ScoreTable, recipes, sift
from gradsift.comparison.estimates import half_width
from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.problem import Problem
from gradsift.models import build_model
from gradsift.predictor import Prediction
from gradsift.predictor.duel import Duel
from gradsift.predictor.recurrent import LossPredictor
from gradsift.report.summary import plain_json
from gradsift.sampling.proposed import ProposedTable
from gradsift.sifting.memory import WINDOW
from paired import Loop, TurnClock, take_turns
from problems import clothes

BATCH = 64
RECIPE = recipes["table-forecast"]


def text() -> Problem:
    """Tiny Shakespeare by characters, 20 of context, one example per character."""
    return load_problem("text:text/tinyshakespeare.txt", ReadOptions())


def digits() -> Problem:
    """The bundled images."""
    return load_problem("digits", ReadOptions())


DATA: dict[str, tuple[Callable[[], Problem], str, Callable[[Any], torch.optim.Optimizer]]] = {
    "clothes": (clothes, "cnn", lambda p: torch.optim.SGD(p, 0.02, momentum=0.9)),
    "text": (text, "lstm", lambda p: torch.optim.Adam(p, 1e-3)),
    "digits": (digits, "mlp", lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
}
"""Problem, model and optimiser by name."""


@dataclass(frozen=True)
class Row:
    """One predictor at the end of one epoch.

    Attributes:
        data: name of the data.
        seed: of parameters and orders.
        epoch: from 1.
        predictor: "forecast" or "network".
        last_seen: variance ratio to uniform of the last scores.
        predicted: variance ratio of the predictions.
        difference: of the two prices, below zero where predictions win.
        standard_error: of it.
        calibration_error: of the predictions.
        in_use: whether the predictions won.
        loss: mean training loss of the epoch.
    """

    data: str
    seed: int
    epoch: int
    predictor: str
    last_seen: float
    predicted: float
    difference: float
    standard_error: float
    calibration_error: float
    in_use: bool
    loss: float


class Network:
    """The LSTM beside a training, and a table of the last losses that it is compared with."""

    def __init__(self, examples: int, seed: int, momentum: float) -> None:
        self.duel = Duel(momentum)
        self._predictor = LossPredictor(examples, Prediction(), seed)
        self._last = ScoreTable(examples, distribution=RECIPE.distribution, smoothing=0.5)
        self._proposed = ProposedTable(examples, RECIPE.distribution)
        self._window: list[tuple[Tensor, Tensor, Tensor]] = []
        self._version = self._trained = 0

    def take(self, ids: Tensor, losses: Tensor, weights: Tensor, labels: Tensor) -> None:
        """One trained batch; every so many of them are priced, then learnt by the table."""
        self._predictor.learn(ids, losses, labels)
        self._window.append((ids, losses.double(), weights.double()))
        self._version += 1
        if len(self._window) == WINDOW:
            self._settle()

    def _settle(self) -> None:
        ids, losses, weights = (torch.cat(part) for part in zip(*self._window, strict=True))
        self._window.clear()
        if self._trained >= self._last.size:
            places = ids.numpy()
            level = self._last.level
            holder = self._last.size * self._last.probabilities(ids).numpy()
            fresh, w = losses.numpy() / level, weights.numpy()
            self.duel.add(fresh, w, holder, self._proposed.masses(places))
            self.duel.calibrate(fresh, w, self._proposed.values(places))
        self._trained += len(ids)
        self._last.update(ids, losses, self._version, weights)
        everyone = self._predictor.predict(torch.arange(self._last.size))
        self._proposed.write(everyone.numpy())


def measure(name: str, seed: int, epochs: int, examples: int) -> list[Row]:
    """One training."""
    make, model_name, optimise = DATA[name]
    problem = make()
    count = min(examples, len(problem.train))  # pyright: ignore[reportArgumentType]
    train_data = Subset(problem.train, range(count))
    generator = torch.Generator().manual_seed(seed)
    vocabulary = None if problem.vocabulary is None else len(problem.vocabulary)
    model = build_model(
        model_name, problem.input_shape, problem.outputs, generator=generator, vocabulary=vocabulary
    )
    optimizer = optimise(model.parameters())
    loader = DataLoader(train_data, BATCH, shuffle=True, drop_last=True, generator=generator)
    train = sift(loader, model, problem.loss_fn, recipe=RECIPE, seed=seed)
    horizon = max(len(loader) // WINDOW, 6)
    network = Network(count, seed, (horizon - 1) / (horizon + 1))
    forecast = train.policy.memory.forecast  # pyright: ignore[reportAttributeAccessIssue]
    rows = []
    for epoch in range(1, epochs + 1):
        total = []
        for batch in train:
            outputs = model(batch.inputs)
            loss = batch.loss(outputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            each = problem.loss_fn(outputs.detach(), batch.targets)
            network.take(batch.indices, each, batch.weights, batch.targets)
            total.append(loss.item())
        train.settle()
        for predictor, duel in (("forecast", forecast.duel), ("network", network.duel)):
            rows.append(row(name, seed, epoch, predictor, duel, statistics.fmean(total)))
    return rows


def row(name: str, seed: int, epoch: int, predictor: str, duel: Duel, loss: float) -> Row:
    """What a duel says."""
    return Row(
        *(name, seed, epoch, predictor, duel.holder.value, duel.challenger.value),
        *(duel.difference.value, duel.difference.standard_error),
        *(duel.calibration_error, duel.wins, loss),
    )


def summed_up(rows: list[Row], name: str, predictor: str) -> str:
    """Geometric mean and interval over seeds of predicted over last seen."""
    own = [row for row in rows if row.data == name and row.predictor == predictor]
    latest = max(row.epoch for row in own)
    logs: dict[int, list[float]] = {}
    for found in own:
        if found.epoch > latest / 2 and math.isfinite(found.predicted / found.last_seen):
            logs.setdefault(found.seed, []).append(math.log(found.predicted / found.last_seen))
    if not logs:
        return f"{name:8} {predictor:9} nothing priced: more epochs are needed"
    means = [statistics.fmean(each) for each in logs.values()]
    middle, half = statistics.fmean(means), half_width(means)
    ends = ""
    if half is not None:
        ends = f" [{math.exp(middle - half):.3f}, {math.exp(middle + half):.3f}]"
    used = statistics.fmean(row.in_use for row in own if row.epoch > latest / 2)
    return (
        f"{name:8} {predictor:9} variance ratio over that of the last scores: "
        f"{math.exp(middle):.3f}{ends}, {len(means)} seeds, ahead at {used:.0%} of epoch ends"
    )


def costs(blocks: int, steps: int) -> list[dict[str, Any]]:
    """Ratios to a training step of the CNN."""
    generator = torch.Generator().manual_seed(0)
    model = build_model("cnn", (1, 28, 28), 10, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    images = torch.randn(BATCH, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (BATCH,), generator=generator)
    size = 60_000
    kept, anew = (LossPredictor(size, Prediction(refresh=r), 0) for r in (64, None))
    candidates = torch.randint(size, (2048,), generator=generator)
    for predictor in (kept, anew):  # full histories of ten
        predictor._history._counts[:] = 10
        predictor._history._values[:] = np.linspace(1.0, 0.1, 10)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def learn() -> None:
        ids = torch.randint(size, (BATCH,), generator=generator)
        kept.learn(ids, torch.rand(BATCH, generator=generator), labels)

    work = {
        "step": train,
        "again": train,
        "predict 2,048": lambda: kept.predict(candidates),
        "predict 2,048, all read anew": lambda: anew.predict(candidates),
        "network's own training": learn,
    }
    loops = {name: Loop(step, None, TurnClock()) for name, step in work.items()}
    for each in loops.values():
        each.go(3)
    times = take_turns(loops, blocks, steps)
    found = []
    for name in work:
        low, median, high = times.ratio(name, "step")
        found.append({"work": name, "low": low, "median": median, "high": high})
        found[-1] |= {"milliseconds": times.milliseconds(name), "foreign": times.foreign}
        print(f"{name:30} {median:.3f} [{low:.3f}, {high:.3f}] of a step, {times.load}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Prices of predicted scores, and their cost.")
    parser.add_argument("--data", nargs="*", default=["clothes", "text"], choices=list(DATA))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--examples", type=int, default=20_000, help="of the training part, first")
    parser.add_argument("--cost", action="store_true", help="measure seconds too")
    parser.add_argument("--blocks", type=int, default=20, help="rounds of the cost")
    parser.add_argument("--steps", type=int, default=10, help="steps in a block of the cost")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spent = costs(options.blocks, options.steps) if options.cost else []
    rows: list[Row] = []
    for name in options.data:
        for seed in range(options.seeds):
            rows += measure(name, seed, options.epochs, options.examples)
            for found in rows[-2:]:
                print(asdict(found), flush=True)
        for predictor in ("forecast", "network"):
            print(summed_up(rows, name, predictor), flush=True)
    if options.out is not None:
        listed = {"rows": [asdict(found) for found in rows], "costs": spent}
        options.out.write_text(plain_json(listed) + "\n")


if __name__ == "__main__":
    main()
