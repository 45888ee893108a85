"""What gradsift adds to a training step: shut, and drawing from the table.

    python benchmarks/overhead.py [--out FILE.json] [--models mlp cnn] [--blocks N] [--threads N]

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
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, repeat
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradsift import Recipe, recipes, sift
from gradsift.comparison.machine import between, read_meters
from gradsift.gate import MeasuredGate
from gradsift.models import build_model

LOSS = nn.CrossEntropyLoss(reduction="none")
SHAPE, CLASSES = (1, 28, 28), 10
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


def stepper(
    recipe: Recipe | None, name: str, data: TensorDataset, batch: int
) -> Callable[[], None]:
    """One training step of an arm, each time it is called."""
    model = build_model(name, SHAPE, CLASSES, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    loader = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)
    losses = _plain(loader, model) if recipe is None else _sifted(loader, model, recipe)

    def step() -> None:
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _plain(loader: DataLoader, model: nn.Module) -> Iterator[Tensor]:
    for inputs, targets in chain.from_iterable(repeat(loader)):
        yield LOSS(model(inputs), targets).mean()


def _sifted(loader: DataLoader, model: nn.Module, recipe: Recipe) -> Iterator[Tensor]:
    train = sift(loader, model, LOSS, recipe=recipe)
    for batch in chain.from_iterable(repeat(train)):
        yield batch.loss(model(batch.inputs))


def measure(name: str, data: TensorDataset, batch: int, blocks: int, steps: int) -> list[Row]:
    """Rounds of blocks; every place in a round falls to every arm equally often."""
    work = {arm: stepper(recipe, name, data, batch) for arm, recipe in ARMS.items()}
    for step in work.values():  # a whole pass, after which the table draws and the gate has looked
        for _ in range(len(data) // batch + 64):
            step()
    times: dict[str, list[float]] = {arm: [] for arm in work}
    before = read_meters()
    for number in range(blocks):
        place = number % len(work)
        for arm in [*work, *work][place : place + len(work)]:
            start = time.perf_counter()
            for _ in range(steps):
                work[arm]()
            times[arm].append((time.perf_counter() - start) / steps)
    foreign = between(before, read_meters()).foreign_cpu
    rows = []
    for arm, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["plain"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append(Row(name, arm, median, low, high, 1e3 * statistics.median(seconds), foreign))
    return rows


def line(row: Row) -> str:
    load = "load unknown" if row.foreign is None else f"{row.foreign:.1%} foreign"
    mark = ", contended" if row.foreign is not None and row.foreign > 0.05 else ""
    ratio = f"{row.median:.3f} [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.model:5} {row.arm:8} {row.milliseconds:8.3f} ms  {ratio}  {load}{mark}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What gradsift adds to a training step.")
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=40, help="rounds of all arms")
    parser.add_argument("--steps", type=int, default=25, help="steps in a block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
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
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()), flush=True)
    data = images(options.examples)
    rows = []
    for name in options.models:
        found = measure(name, data, options.batch, options.blocks, options.steps)
        print("\n".join(map(line, found)), flush=True)
        rows += found
    if options.out is not None:
        result = {"setting": setting, "rows": [asdict(row) for row in rows]}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
