"""Three cases in which `auto` should stay off: what does that cost per step, and what does it say?

    python benchmarks/stays_off.py [--out FILE.json] [--cases noise absolute first-pass]

* noise: labels that are drawn anew at every access, a CNN on Fashion-MNIST's images;
* absolute: mean absolute error, whose gradient at the output has the same norm for every example;
* first-pass: the first pass over Fashion-MNIST, a wide ResNet, where nothing is known yet.

Each loop trains its own copy from the same parameters. "uniform" is the sifted loop that chooses
nothing; "again" a second one (A/A); ratios are paired within a round.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset

import problems
from gradsift import recipes
from gradsift.data.problem import Problem
from gradsift.models import build_model
from paired import Loop, loop, take_turns


@dataclass(frozen=True)
class Case:
    """Where nothing is to be gained.

    Attributes:
        problem: makes the data.
        model: by name.
        examples: of the training part that are used.
        warm_up: passes before anything is timed.
        blocks: rounds of blocks.
        steps: in a block.
    """

    problem: Callable[[], Problem]
    model: str
    examples: int
    warm_up: float
    blocks: int
    steps: int


CASES = {
    "noise": Case(problems.noise, "cnn", 12_800, warm_up=2.0, blocks=40, steps=25),
    "absolute": Case(problems.absolute, "mlp", 16_000, warm_up=2.0, blocks=40, steps=100),
    "first-pass": Case(problems.clothes, "wrn-10-1", 60_000, warm_up=0.01, blocks=12, steps=10),
}
BATCH = 64


@dataclass(frozen=True)
class Row:
    """Seconds per step of one loop over those of the uniform one.

    Attributes:
        case: its name.
        arm: "uniform", "again" or "auto".
        median: of the ratios.
        low: their lower quartile.
        high: their upper quartile.
        milliseconds: median of a step.
        foreign: share of the cores that other processes took; None where unknown.
        opened: whether `auto` ever drew by score.
        says: what `auto` says about itself in the end.
    """

    case: str
    arm: str
    median: float
    low: float
    high: float
    milliseconds: float
    foreign: float | None
    opened: bool
    says: str


def measure(name: str, case: Case) -> list[Row]:
    """All loops of one case."""
    problem = case.problem()
    data = Subset(problem.train, range(case.examples))
    loops: dict[str, Loop] = {}
    for arm, recipe in (("uniform", "uniform"), ("again", "uniform"), ("auto", "auto")):
        generator = torch.Generator().manual_seed(0)
        model = build_model(case.model, problem.input_shape, problem.outputs, generator=generator)
        loader = DataLoader(data, BATCH, shuffle=True, drop_last=True)
        loops[arm] = loop(recipes[recipe], model, loader, problem.loss_fn)
        loops[arm].go(int(case.warm_up * case.examples / BATCH))
    times = take_turns(loops, case.blocks, case.steps)
    rows = []
    for arm, each in loops.items():
        low, median, high = times.ratio(arm, "uniform")
        gate = None if each.train is None else each.train.gate
        opened = gate is not None and gate["opened_at_step"] is not None
        milliseconds, says = times.milliseconds(arm), str(each.train)
        rows.append(Row(name, arm, median, low, high, milliseconds, times.foreign, opened, says))
        print(line(rows[-1], times.load), flush=True)
    return rows


def line(row: Row, load: str) -> str:
    ratio = f"{row.median:.3f} [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.case:10} {row.arm:8} {row.milliseconds:8.3f} ms  {ratio}  {load}  {row.says}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs to stay off.")
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--blocks", type=int, help="rounds of all loops, at least 2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.blocks is not None and options.blocks < 2:
        parser.error("--blocks must be at least 2")
    chosen = {name: CASES[name] for name in options.cases}
    if options.blocks is not None:
        chosen = {name: replace(case, blocks=options.blocks) for name, case in chosen.items()}
    rows = [row for name, case in chosen.items() for row in measure(name, case)]
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
