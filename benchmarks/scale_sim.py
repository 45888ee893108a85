"""How far an engine's search scales: ages, recovered variance and the trainer's time, simulated.

    python benchmarks/scale_sim.py [--law docs/results/staleness.json] [--out FILE.json]
                                   [--pictures FOLDER] [--parts here fleet links owners order]

The model is `scale_model`, a discrete-event simulation: nothing random but the seeded spread of the
services. What the library's own work costs is measured first, on this machine, in CPU seconds of
one thread; a GPU's scoring rate, its step of 0.1 s and the links are assumptions, and are printed
as such. What an age costs in variance is the law that `staleness.py` measured: shares recovered by
scores of one age, at a floor of λ = 0.2. With a table's relative scores the second moment of a
mixture of ages is the mean of those of each age, so its share is the mean of the law over ages.
Ages beyond the law count as its oldest, and how many they are is printed.
"""

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from scale_here import BATCH, Here, measure
from scale_model import Costs, Floats, Ints, Setting, look, settle, simulate, wire_bytes

ROOT = Path(__file__).parents[1]
LAW = ROOT / "docs" / "results" / "staleness.json"

FINEST = 2**16
"""Blocks of a sweep, at most: larger data get larger blocks."""

SMALLEST = 512
GBIT = 1e9 / 8


@dataclass(frozen=True, eq=False)
class Law:
    """Share of the gap between uniform and ideal draws that scores of one age recover.

    Attributes:
        ages: in steps, rising from 0.
        shares: in variance units.
        source: where it was measured.
    """

    ages: Floats
    shares: Floats
    source: str

    def share(self, ages: Ints, unseen: float) -> float:
        """Of a mixture of ages; examples without a score recover nothing."""
        found = np.interp(np.log1p(ages), np.log1p(self.ages), self.shares)
        return float(found.mean()) * (1 - unseen)

    def beyond(self, ages: Ints) -> float:
        """Share of the ages that nobody has measured."""
        return float((ages > self.ages[-1]).mean())


def read_law(path: Path) -> Law:
    """Out of the results of ``staleness.py``."""
    content = json.loads(path.read_text(encoding="utf-8"))["law"]
    ages, shares = (np.array(content[key], np.float64) for key in ("ages", "shares"))
    return Law(ages, shares, content["source"])


@dataclass(frozen=True)
class Row:
    """What a simulated system does.

    Attributes:
        setting: of the system.
        ages: quantiles in steps: a tenth, the median, nine tenths.
        passes: the median age in passes of the trainer over the data.
        sweep: seconds of one sweep.
        recovered: share of the possible gain in variance.
        beyond: share of the ages that are older than the law reaches.
        unseen: share of the examples without a score.
        trainer: share of the trainer's time that is training.
        throttle: how many times slower workers are than they could be.
        stride: publications that take place are every so-manieth.
        megabytes: per step over all links, by purpose.
    """

    setting: Setting
    ages: tuple[float, float, float]
    passes: float
    sweep: float
    recovered: float
    beyond: float
    unseen: float
    trainer: float
    throttle: float
    stride: int
    megabytes: Mapping[str, float]


def run(setting: Setting, costs: Costs, law: Law) -> Row:
    """Simulates one system."""
    pace = settle(setting, costs)
    ages, unseen = look(setting, pace, simulate(setting, costs, pace))
    low, middle, high = (float(value) for value in np.quantile(ages, [0.1, 0.5, 0.9]))
    return Row(
        setting=setting,
        ages=(low, middle, high),
        passes=middle * setting.batch / setting.examples,
        sweep=setting.examples / pace.rate,
        recovered=law.share(ages, unseen),
        beyond=law.beyond(ages),
        unseen=unseen,
        trainer=pace.share(setting),
        throttle=pace.throttle,
        stride=pace.stride,
        megabytes={name: count / 1e6 for name, count in wire_bytes(setting, pace).items()},
    )


def sized(setting: Setting, examples: int) -> Setting:
    """The same system with more data, in blocks that it can handle."""
    return replace(setting, examples=examples, block=max(SMALLEST, -(-examples // FINEST)))


def fleet() -> Setting:
    """Assumed: a GPU trainer, GPU workers, 100 million parameters in float32, 16 owners."""
    return Setting(
        examples=10**8,
        workers=64,
        rate=1e4,
        step=0.1,
        parameters=4e8,
        link=10 * GBIT,
        owners=16,
        block=-(-(10**8) // FINEST),
    )


def local(measured: Here) -> Setting:
    """Measured: the model of this benchmark, one trainer and one scorer on a machine like this."""
    return Setting(
        examples=60_000,
        workers=1,
        rate=1 / measured.scoring,
        step=BATCH * measured.training,
        parameters=float(measured.parameters),
        link=1 / measured.costs.copy,
        latency=1e-5,
        batch=BATCH,
    )


def settings(part: str, measured: Here) -> list[Setting]:
    """The systems of one part."""
    base = fleet()
    if part == "here":
        here = local(measured)
        sizes = (60_000, 10**6, 10**7)
        return [
            replace(sized(here, size), workers=workers) for size in sizes for workers in (1, 8, 64)
        ]
    if part == "fleet":
        sizes = (10**6, 10**7, 10**8, 10**9)
        return [
            replace(sized(base, size), workers=workers)
            for size in sizes
            for workers in (1, 8, 64, 256, 1024)
        ]
    if part == "links":
        ends = [(1, 2), (10, 2), (100, 2), (10, 1024), (100, 1024)]
        wide = replace(base, workers=1024)
        return [replace(wide, link=link * GBIT, fanout=fanout) for link, fanout in ends]
    if part == "owners":
        wide = replace(base, workers=1024)
        pairs = [(rate, owners) for rate in (1e3, 1e4, 1e5) for owners in (0, 1, 16, 64)]
        return [replace(wide, rate=rate, owners=owners) for rate, owners in pairs]
    wide = replace(base, workers=1024)
    return [
        wide,
        replace(wide, striped=False),
        replace(wide, slow=0.1),
        replace(wide, spread=1.0),
        replace(wide, every=512),
    ]


PARTS = ("here", "fleet", "links", "owners", "order")
COLUMNS = (
    ("N", lambda row: f"{row.setting.examples:,}"),
    ("workers", lambda row: f"{row.setting.workers:,}"),
    ("each /s", lambda row: f"{row.setting.rate:,.0f}"),
    ("Gbit/s", lambda row: f"{row.setting.link / GBIT:.0f}"),
    ("fanout", lambda row: f"{row.setting.fanout}"),
    ("owners", lambda row: f"{row.setting.owners}"),
    ("blocks", lambda row: "striped" if row.setting.striped else "by id"),
    ("slow workers", lambda row: f"{100 * row.setting.slow:.0f} %"),
    ("spread", lambda row: f"{row.setting.spread:g}"),
    ("published every", lambda row: f"{row.setting.every * row.stride} steps"),
    ("sweep", lambda row: f"{row.sweep:,.1f} s"),
    ("age 10, 50, 90 %", lambda row: ", ".join(f"{age:,.0f}" for age in row.ages)),
    ("passes", lambda row: f"{row.passes:.3g}"),
    ("recovered", lambda row: f"{row.recovered:.2f}" + (" ≤" if row.beyond > 0.5 else "")),
    ("trainer", lambda row: f"{100 * row.trainer:.1f} %"),
    ("throttle", lambda row: f"{row.throttle:.1f}"),
    ("MB/step", lambda row: " + ".join(f"{size:.3g}" for size in row.megabytes.values())),
)


def table(rows: Sequence[Row]) -> str:
    """In Markdown; columns that say the same everywhere are told above it."""
    cells = {name: [show(row) for row in rows] for name, show in COLUMNS}
    same = [name for name in cells if len(set(cells[name])) == 1 and len(rows) > 1]
    varied = [name for name in cells if name not in same]
    lines = [", ".join(f"{name} {cells[name][0]}" for name in same), ""] if same else []
    lines += [f"| {' | '.join(varied)} |", "|---" * len(varied) + "|"]
    for place in range(len(rows)):
        lines.append(f"| {' | '.join(cells[name][place] for name in varied)} |")
    return "\n".join(lines)


def pictures(rows: Sequence[Row], folder: Path) -> None:
    """Ages and recovered shares of the fleet against N, a line for each number of workers."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for workers in sorted({row.setting.workers for row in rows}):
        mine = [row for row in rows if row.setting.workers == workers]
        sizes = [row.setting.examples for row in mine]
        label = f"{workers:,} worker" + "s" * (workers > 1)
        left.plot(sizes, [row.ages[1] for row in mine], marker="o", label=label)
        left.fill_between(
            sizes, [row.ages[0] for row in mine], [row.ages[2] for row in mine], alpha=0.15
        )
        right.plot(sizes, [row.recovered for row in mine], marker="o", label=label)
    left.set(xscale="log", yscale="log", xlabel="examples", ylabel="age of scores, in steps")
    right.set(xscale="log", ylim=(0, 1), xlabel="examples", ylabel="recovered share of the gap")
    left.set_title("median and 10 to 90 % of ages")
    right.set_title("in variance, by the measured law")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "scaling.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description="How far an engine's search scales.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--law", type=Path, default=LAW, help="results of staleness.py")
    parser.add_argument("--repeats", type=int, default=30, help="of what is measured here")
    parser.add_argument("--table", type=int, default=10**7, help="examples of the measured table")
    parser.add_argument("--out", type=Path, help="write all rows to this JSON file")
    parser.add_argument("--pictures", type=Path, help="draw the fleet into this folder")
    options = parser.parse_args()
    if options.repeats < 1 or options.table < 2048:
        parser.error("--repeats must be at least 1, and --table at least 2048")
    if options.pictures is not None and "fleet" not in options.parts:
        parser.error("--pictures shows the fleet: add fleet to --parts")
    torch.set_num_threads(1)
    law = read_law(options.law)
    measured = measure(options.repeats, options.table)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"measured here ({machine}):\n{json.dumps(asdict(measured), indent=2)}")
    print(f"law: {law.source}; ages {law.ages.tolist()}, shares {law.shares.round(3).tolist()}")
    content: dict[str, Any] = {"machine": machine, "measured": asdict(measured)}
    for part in options.parts:
        rows = [run(setting, measured.costs, law) for setting in settings(part, measured)]
        print(f"\n## {part}\n\n{table(rows)}", flush=True)
        content[part] = [asdict(row) for row in rows]
        if part == "fleet" and options.pictures is not None:
            pictures(rows, options.pictures)
    if options.out is not None:
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
