"""What the age of scores costs: the traces of Alain et al. (2015), with the age set exactly.

    GRADSIFT_DATA=FOLDER python benchmarks/staleness.py [--data cifar10 fashion-mnist]
        [--steps 1600] [--width 128] [--out FILE.json] [--picture FILE.svg]

One process and one thread; nothing depends on a clock. A permutation-invariant network with four
hidden layers learns by SGD with Nesterov momentum 0.95 and batches of 128, as published; the width
is 128 instead of 2,048, the steps are 1,600 instead of tens of thousands, and 12,800 training
examples stand for the 574,168 of SVHN, so that a pass has 100 steps instead of 4,486. The
initial deviation is scaled so that every layer has the published gain.

Four cells (two learning rates, uniform and ISSGD) and a slower engine are trained. The engine is
the inline one: at every step it scores as many examples as are trained on (one sweep per pass), or
a quarter, with parameters published every 32 steps. At checkpoints, on a fixed sample of training
examples, covariance traces of one example's gradient by these proposals:

* uniform; ideal (norms of this step); drawn (what the table would draw now, its floor included);
* norms of one age for all examples, in proportion, and with a floor of λ = 0.2.

The recovered share is the ratio of sums over checkpoints of ``uniform − drawn`` and ``uniform −
ideal``: in variance units. The law for ``scale_sim.py`` is that of floored norms of one age, over
the second half of a run, where ages up to half of the run can be compared on the same checkpoints.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.data import Subset

from gradsift.comparison.machine import between, read_meters
from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.problem import Problem
from gradsift.monitors.averages import Estimate
from gradsift.monitors.recovered import RecoveredShare
from stale_run import Checkpoint, Plan, train

RATES = (0.01, 0.001)
CHECKPOINTS = 10
SLOWER = 0.25
"""Sweeps per pass of the engine that is tried beside the one of one sweep."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        data: its problem.
        plan: how it was trained.
        epoch: steps of a pass.
        checkpoints: what was measured.
    """

    data: str
    plan: Plan
    epoch: int
    checkpoints: tuple[Checkpoint, ...]

    @property
    def name(self) -> str:
        """Of the method."""
        slower = "" if self.plan.sweeps == 1 else f", {self.plan.sweeps:g} sweeps"
        return self.plan.method + slower


def plans(epoch: int, options: argparse.Namespace) -> list[Plan]:
    """The four cells, and ISSGD with a slower engine at the first rate: that rate first."""
    first = 2 * epoch
    if options.steps < 2 * first:
        raise SystemExit(f"--steps {options.steps}: four passes at least, {2 * first}, are needed")
    fractions = [k / CHECKPOINTS for k in range(1, CHECKPOINTS + 1)]
    checkpoints = tuple(round(first + (options.steps - first) * part) for part in fractions)
    ages = {0, 16, epoch // 4, epoch // 2, epoch, first, 4 * epoch, options.steps // 2}
    base = Plan(
        method="issgd",
        lr=RATES[0],
        steps=options.steps,
        checkpoints=checkpoints,
        ages=tuple(sorted(ages)),
        width=options.width,
        sample=options.sample,
        seed=options.seed,
        smoothing=options.smoothing,
    )
    cells = [replace(base, lr=lr, method=method) for lr in RATES for method in ("issgd", "uniform")]
    return [*cells[:2], replace(base, sweeps=SLOWER), *cells[2:]][: options.cells]


def share(checkpoints: Iterable[Checkpoint], traces: Mapping[int, float]) -> tuple[Estimate, int]:
    """The recovered share over those checkpoints that have a trace, and how many count."""
    found = RecoveredShare()
    for checkpoint in checkpoints:
        if checkpoint.step in traces:
            found.add(checkpoint.uniform, traces[checkpoint.step], checkpoint.ideal)
    return found.estimate, found.checkpoints


def drawn(cell: Cell) -> dict[int, float]:
    """By step, of the table."""
    return {each.step: each.drawn for each in cell.checkpoints if each.drawn is not None}


def aged(cell: Cell, age: int, *, floor: bool) -> dict[int, float]:
    """By step, of norms of one age, where the run is old enough."""
    rows = ((each.step, each.floored if floor else each.pure) for each in cell.checkpoints)
    return {step: traces[age] for step, traces in rows if age in traces}


def law_of(cell: Cell) -> tuple[list[int], list[float]]:
    """Ages and recovered shares of floored norms, over the second half of a run."""
    late = [each for each in cell.checkpoints if each.step >= max(cell.plan.ages)]
    ages = sorted(cell.plan.ages)
    return ages, [share(late, aged(cell, age, floor=True))[0].value for age in ages]


def predicted(law: tuple[Sequence[int], Sequence[float]], cell: Cell) -> float:
    """Of a sweep, by the law: its ages are even, and older by half a publication's wait.

    The law has a floor of 0.2 and is of the second half of a run.
    """
    oldest = cell.epoch / cell.plan.sweeps
    ages = np.arange(round(oldest)) + (cell.plan.every - 1) / 2
    return float(np.interp(np.log1p(ages), np.log1p(law[0]), law[1]).mean())


def in_words(found: tuple[Estimate, int]) -> str:
    estimate, count = found
    if not count:
        return "no gap"
    return f"{estimate.value:.3f} ± {estimate.standard_error:.3f} ({count})"


def told(cells: Sequence[Cell]) -> str:
    """Two tables in Markdown."""
    ages = cells[0].plan.ages
    lines = [
        "| lr | method | final loss | test error | age, median | share, drawn | second half |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        last = cell.checkpoints[-1]
        late = [each for each in cell.checkpoints if each.step >= max(ages)]
        both = [in_words(share(part, drawn(cell))) for part in (cell.checkpoints, late)]
        shown = both if drawn(cell) else ["", ""]
        age = "" if last.age is None else f"{last.age:.0f}"
        lines.append(
            f"| {cell.plan.lr:g} | {cell.name} | {last.loss:.4f} | {100 * last.test_error:.1f} % "
            f"| {age} | {shown[0]} | {shown[1]} |"
        )
    lines += ["", f"| lr | method | norms | {' | '.join(f'{age} steps' for age in ages)} |"]
    lines.append("|---" * (3 + len(ages)) + "|")
    for cell in cells:
        for floor in (False, True):
            found = [
                in_words(share(cell.checkpoints, aged(cell, age, floor=floor))) for age in ages
            ]
            kind = "λ = 0.2" if floor else "alone"
            lines.append(f"| {cell.plan.lr:g} | {cell.name} | {kind} | {' | '.join(found)} |")
    return "\n".join(lines)


def picture(cells: Sequence[Cell], path: Path) -> None:
    """Square roots of the traces against steps, ISSGD at the first rate, a panel per problem."""
    chosen = [cell for cell in cells if (cell.name, cell.plan.lr) == ("issgd", RATES[0])]
    figure = Figure(figsize=(4.6 * len(chosen), 3.6), layout="constrained")
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axes, cell in zip(panels, chosen, strict=True):
        curves = {
            "uniform": {each.step: each.uniform for each in cell.checkpoints},
            "norms two passes old": aged(cell, 2 * cell.epoch, floor=False),
            "norms one pass old": aged(cell, cell.epoch, floor=False),
            "as drawn": drawn(cell),
            "ideal": {each.step: each.ideal for each in cell.checkpoints},
        }
        for label, traces in curves.items():
            roots = [math.sqrt(max(trace, 0.0)) for trace in traces.values()]
            axes.plot(list(traces), roots, marker=".", label=label)
        axes.set(title=cell.data, xlabel="step", ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("√ trace of the covariance")
    panels[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def read(name: str, examples: int) -> Problem:
    """A problem with the first examples of its training set."""
    problem = load_problem(name, ReadOptions())
    count = min(examples, len(problem.train))  # pyright: ignore[reportArgumentType]
    return replace(problem, train=Subset(problem.train, range(count)))


def measure(
    name: str, problem: Problem, options: argparse.Namespace, kept: Callable[[Cell], None]
) -> list[Cell]:
    """All cells of one problem; each is handed over as it ends."""
    epoch = len(problem.train) // Plan.batch  # pyright: ignore[reportArgumentType]
    cells = []
    for plan in plans(epoch, options):
        cells.append(Cell(name, plan, epoch, tuple(train(problem, plan))))
        kept(cells[-1])
        last = cells[-1].checkpoints[-1]
        print(f"{name}, {cells[-1].name}, lr {plan.lr:g}: loss {last.loss:.4f}", flush=True)
    print(f"\n## {name}, a pass has {epoch} steps\n\n{told(cells)}", flush=True)
    for cell in cells:
        if drawn(cell):
            expected = predicted(law_of(cell), cell)
            print(f"{cell.name}, lr {cell.plan.lr:g}: by its own law {expected:.3f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description="What the age of scores costs.")
    parser.add_argument("--data", nargs="+", default=["cifar10", "fashion-mnist"])
    parser.add_argument("--examples", type=int, default=12_800, help="of the training set")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--sample", type=int, default=1000, help="whose gradients are looked at")
    parser.add_argument("--cells", type=int, default=5, help="runs of each problem, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoothing", type=float, default=Plan.smoothing, help="of ISSGD's scores")
    parser.add_argument("--out", type=Path, help="write everything to this JSON file")
    parser.add_argument("--picture", type=Path, help="draw the traces into this SVG file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = read_meters()
    cells: list[Cell] = []

    def keep(cell: Cell) -> None:
        cells.append(cell)
        if options.out is not None:
            foreign = between(before, read_meters()).foreign_cpu
            options.out.write_text(json.dumps(content_of(cells, foreign), indent=1) + "\n")

    for name in options.data:
        measure(name.partition(":")[0], read(name, options.examples), options, keep)
    if options.picture is not None:
        picture(cells, options.picture)


def content_of(cells: Sequence[Cell], foreign: float | None) -> dict[str, Any]:
    """For the file: everything, and a law: of the lowest rate, where it is age that costs."""
    searched = [cell for cell in cells if cell.name == "issgd"]
    chosen = min(searched, key=lambda cell: cell.plan.lr)
    ages, shares = law_of(chosen)
    source = f"{chosen.data}, ISSGD, lr {chosen.plan.lr:g}, λ = 0.2, second half of the run"
    return {
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "foreign": foreign,
        "law": {"ages": ages, "shares": shares, "source": source},
        "cells": [asdict(cell) for cell in cells],
    }


if __name__ == "__main__":
    main()
