"""What gradsift adds to a training step: shut, and drawing from the table.

    python benchmarks/overhead.py [--out FILE.json] [--models mlp small-mlp cnn] [--blocks N]
                                  [--threads N] [--clock wall|cpu]

Every arm trains its own copy of a model, from its own loader over the same N examples, in blocks of
steps that take turns; ratios are paired within a round and compared with the plain loop. "again" is
the plain loop a second time (A/A): a difference within its quartiles is noise. Arms:

* uniform: the loop sifted, with a recipe that chooses nothing;
* shut: `auto` with a gate that never opens, so that its allowance for finding out is in use;
* table: ids drawn from the score table at every step, scores kept.

A row is marked "contended" where other processes took more than 5 % of the cores meanwhile.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradsift import Recipe, recipes
from gradsift.gate import MeasuredGate
from gradsift.models import build_model
from paired import CLOCKS, loop, take_turns

LOSS = nn.CrossEntropyLoss(reduction="none")
SHAPE, CLASSES = (1, 28, 28), 10
SMALL = {"small-mlp": "mlp"}
"""Models of the command line under another name here: 784-256-256-10 takes 3 ms per step."""

WARM_UP = 256
"""Steps after the first pass, before anything is timed."""

SHUT = replace(recipes["auto"], gate=MeasuredGate(margin=1e9), name="shut")
ARMS: dict[str, Recipe | None] = {
    "plain": None,
    "again": None,
    "uniform": recipes["uniform"],
    "shut": SHUT,
    "table": recipes["table"],
}


@dataclass(frozen=True)
class Row:
    """One arm on one model.

    Attributes:
        model: its name.
        arm: its name.
        median: of the ratios of its steps to those of the plain loop, paired by round.
        low: their lower quartile.
        high: their upper quartile.
        milliseconds: median of a step.
        foreign: share of the cores that other processes took meanwhile; None where unknown.
    """

    model: str
    arm: str
    median: float
    low: float
    high: float
    milliseconds: float
    foreign: float | None


def images(count: int) -> TensorDataset:
    """Random images whose labels can be learnt, so that scores become uneven."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, *SHAPE, generator=generator)
    noise = torch.randn(count, *SHAPE, generator=generator)
    return TensorDataset(0.3 * centres[labels] + noise, labels)


def build(name: str) -> nn.Module:
    """The MLP of the papers (784-2048-2048-10), or a model of the command line."""
    generator = torch.Generator().manual_seed(0)
    if name != "mlp":
        return build_model(SMALL.get(name, name), SHAPE, CLASSES, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(2048, CLASSES))


def measure(
    name: str, data: TensorDataset, batch: int, blocks: int, steps: int, clock: str
) -> list[Row]:
    """All arms on one model, after a whole pass and some steps, when the gate has looked."""
    loops = {
        arm: loop(recipe, build(name), DataLoader(data, batch, shuffle=True, drop_last=True), LOSS)
        for arm, recipe in ARMS.items()
    }
    for each in loops.values():
        each.go(len(data) // batch + WARM_UP)
    times = take_turns(loops, blocks, steps, clock)
    rows = []
    for arm in loops:
        low, median, high = times.ratio(arm, "plain")
        milliseconds = times.milliseconds(arm)
        rows.append(Row(name, arm, median, low, high, milliseconds, times.foreign))
        print(line(rows[-1], times.load), flush=True)
    return rows


def line(row: Row, load: str) -> str:
    ratio = f"{row.median:.3f} [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.model:9} {row.arm:8} {row.milliseconds:8.3f} ms  {ratio}  {load}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What gradsift adds to a training step.")
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=40, help="rounds of all arms")
    parser.add_argument("--steps", type=int, default=25, help="steps in a block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what is measured")
    options = parser.parse_args()
    if min(options.blocks - 1, options.steps, options.threads, options.batch) < 1:
        parser.error("--blocks must be at least 2; --steps, --threads and --batch at least 1")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    setting = {
        "examples": options.examples,
        "batch": options.batch,
        "blocks": options.blocks,
        "steps": options.steps,
        "threads": options.threads,
        "clock": options.clock,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()), flush=True)
    data = images(options.examples)
    rows = []
    for name in options.models:
        rows += measure(name, data, options.batch, options.blocks, options.steps, options.clock)
    if options.out is not None:
        result = {"setting": setting, "rows": [asdict(row) for row in rows]}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
