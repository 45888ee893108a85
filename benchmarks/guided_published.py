"""The author's six cells of guided SGD: wdbc, logistic regression, plain and guided.

Published per run beside the code of Sharma (2021), ``parallel-GSGD``: best test accuracy over
epochs (the model is chosen on the test data, as its comments admit), 30 runs a cell. Ours have 300,
so that nearly all of the standard error is theirs. The settings, from code and
result files: 341 training and 227 test examples, batch 4, learning rate 0.1, 10 workers, ρ = 10,
weights uniform on [0, 1], 50 evaluations, the first before training.

Three things of that code decide its numbers and are modelled here.

* *last-of-rho*: the server has one slot for a gradient, and its update takes the last. At most 466
  updates are reported for 49 epochs of 86 batches: one per 9 gradients (``SLOT``).
* The history that is scored is cleared by every update, and again whenever a counter that runs from
  0 to 10 starts again, so of a round only the batches since then are candidates.
* A candidate's number is used as a place in the rest of the epoch's order, cut by 10 batches after
  every update, so what is replayed is another batch near it, or, at the epoch's end, none.

Arm ``published`` is that. ``guided`` is the rule as meant: the batches replayed are those scored,
all of the round but the newest. ``random`` replays as many at random.

    python benchmarks/guided_published.py --data DATA/uci
"""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Optimizer, RMSprop

from gradsift.parallel import (
    AbstractGuide,
    FreshVerification,
    ParameterServer,
    Random,
    RoundGuide,
    ssgd,
)
from gradsift.parallel.guide import AbstractConsistencyGuide
from guided_problem import WDBC, Runs, prepare, read_table

RUNS, EPOCHS, SIZE, RHO, RATE, SHARE = 300, 50, 4, 10, 0.1, 0.6
SLOT = 9
LIMIT = 2.64
"""Standard errors of a difference: 5 % two-sided over six cells (Bonferroni)."""


@dataclass(frozen=True)
class Cell:
    """Published mean and standard deviation over runs, and the most updates reported."""

    mean: float
    deviation: float
    runs: int
    updates: int


PUBLISHED = {
    ("canonical", "plain"): Cell(93.60, 1.34, 30, 428),
    ("canonical", "guided"): Cell(95.13, 1.38, 33, 1438),
    ("adagrad", "plain"): Cell(91.76, 2.04, 30, 455),
    ("adagrad", "guided"): Cell(92.89, 1.49, 30, 1448),
    ("rmsprop", "plain"): Cell(96.14, 1.14, 30, 466),
    ("rmsprop", "guided"): Cell(97.75, 0.82, 30, 1372),
}


class PublishedRMSprop(RMSprop):
    """``r ← 0.9r + 0.1g²``, ``w ← w − ηg/√(r + 1e-8)``: the constant inside the root."""

    @torch.no_grad()
    def step(self, closure=None):
        """One step; a closure means nothing here."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["square_avg"] = torch.zeros_like(parameter)
                mean = state["square_avg"]
                mean.mul_(0.9).addcmul_(parameter.grad, parameter.grad, value=0.1)
                parameter.addcdiv_(parameter.grad, (mean + 1e-8).sqrt(), value=-group["lr"])


OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "canonical": partial(SGD, lr=RATE),
    "adagrad": partial(Adagrad, lr=RATE, eps=1e-8),
    "rmsprop": partial(PublishedRMSprop, lr=RATE),
}


class AsPublished(AbstractConsistencyGuide):
    """The Java server's guided phase, slips included; see the top of this file."""

    def __init__(self, runs: Runs, generator: torch.Generator) -> None:
        pool = torch.arange(runs.examples).expand(len(runs.start), -1)
        size = min(100, runs.examples // 10)
        verification = FreshVerification(pool, size, generator)
        super().__init__(verification, RHO, min(4, RHO // 2), start=math.inf)
        self._runs = runs
        self._gradients = 0
        self._epoch = 0
        self._cut = 0

    def after_update(self, server, objective, batches):
        """Scores what the counter left, replays by place, cuts the order."""
        numbers = [(self._gradients + k) % (RHO + 1) for k in range(len(batches))]
        self._gradients += len(batches)
        epoch = (self._gradients - 1) // self._runs.per_epoch
        self._cut = 0 if epoch != self._epoch else self._cut
        self._epoch = epoch
        first = max((k for k, number in enumerate(numbers) if number == 0), default=0)
        before, _ = self._look(server, objective)
        scores = [self._score(server, objective, b, before) for b in batches[first:-1]]
        if scores:
            self._replay_places(server, objective, torch.stack(scores, -1), numbers[first:-1])
        self._cut += RHO

    def _replay_places(self, server, objective, scores: Tensor, numbers: list[int]) -> None:
        order = scores.argsort(dim=-1, descending=True, stable=True)
        alive = torch.ones(scores.shape[0], dtype=torch.bool)
        begin, end = self._epoch * self._runs.per_epoch, (self._epoch + 1) * self._runs.per_epoch
        for rank in range(min(self._limit, scores.shape[-1])):
            chosen = order[:, rank]
            positive = scores.gather(1, chosen[:, None])[:, 0] > 0
            places = begin + self._cut + torch.tensor(numbers)[chosen]
            alive &= ~positive | (places < end)
            where = positive & alive
            batch = self._runs.batches[torch.arange(len(places)), places.clamp(max=end - 1)]
            server.correct(objective.gradient(server.weights, batch), where)
            self.replays += 1


def guide_of(arm: str, runs: Runs, seed: int) -> AbstractGuide | None:
    """The guide of an arm; None for plain."""
    generator = torch.Generator().manual_seed(seed)
    if arm == "plain":
        return None
    if arm == "published":
        return AsPublished(runs, generator)
    pool = torch.arange(runs.examples).expand(len(runs.start), -1)
    fresh = FreshVerification(pool, min(100, runs.examples // 10), generator)
    chooser = Random(torch.Generator().manual_seed(seed + 1)) if arm == "random" else None
    return RoundGuide(fresh, rho=RHO, selector=chooser)


def train(runs: Runs, optimizer: str, guide: AbstractGuide | None) -> tuple[Tensor, Tensor]:
    """Best and final test accuracy of every run, by the author's 50 evaluations."""
    weights = runs.start.clone().requires_grad_()
    server = ParameterServer([weights], OPTIMIZERS[optimizer]([weights]))
    accuracy = best = runs.accuracy(weights.detach())
    evaluated, epochs = 1, EPOCHS - 1
    batches = runs.batches[:, : epochs * runs.per_epoch].unbind(1)
    for done in ssgd(server, runs.train, SLOT, batches, guide, combine="last"):
        while done * SLOT >= evaluated * runs.per_epoch:
            accuracy = runs.accuracy(weights.detach())
            best = torch.maximum(best, accuracy)
            evaluated += 1
    final = runs.accuracy(weights.detach())
    return torch.maximum(best, final), final


def row(optimizer: str, arm: str, best: Tensor, final: Tensor, cell: Cell | None) -> str:
    """One line of the table."""
    ours = f"{best.mean():.2f} ± {best.std():.2f}"
    ended = f"{final.mean():.2f} ± {final.std():.2f}"
    if cell is None:
        return f"| {optimizer} | {arm} | | {ours} | {ended} | | |"
    error = math.sqrt(cell.deviation**2 / cell.runs + float(best.var()) / len(best))
    away = (float(best.mean()) - cell.mean) / error
    verdict = "yes" if abs(away) <= LIMIT else "**no**"
    theirs = f"{cell.mean:.2f} ± {cell.deviation:.2f}"
    return f"| {optimizer} | {arm} | {theirs} | {ours} | {ended} | {away:+.2f} | {verdict} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="The six published cells.")
    place = Path(os.environ.get("GRADSIFT_DATA", ".")) / "uci"
    parser.add_argument("--data", type=Path, default=place, help="folder with wdbc.data")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    x, y = read_table(given.data, WDBC)
    runs = prepare(x, y, RUNS, EPOCHS, SIZE, SHARE, given.seed)
    print(
        "| optimiser | arm | published best | ours, best | ours, final | apart by, s.e. | within |"
    )
    print("|---|---|---|---|---|---|---|")
    for optimizer in OPTIMIZERS:
        for arm in ("plain", "published", "guided", "random"):
            name = {"plain": "plain", "published": "guided"}.get(arm, arm)
            guide = guide_of(arm, runs, given.seed + 1000)
            best, final = train(runs, optimizer, guide)
            print(row(optimizer, arm, best, final, PUBLISHED.get((optimizer, name))), flush=True)


if __name__ == "__main__":
    main()
