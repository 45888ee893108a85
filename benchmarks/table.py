"""What a draw and an update of a score table cost, and against what.

    python benchmarks/table.py [--parts step large multinomial growth] [--calls N] [--repeats N]
                               [--largest] [--out FILE.json] [--picture FILE.svg]

``step``        N = 60,000, batches of 64: microseconds of a draw and an update.
``large``       N = 10^8, batches of 1,024: the same; the target is 2 ms for both together.
``multinomial`` N = 10^7, 1,024 examples: against torch.multinomial and numpy's choice, both with
                replacement, on the same probabilities in the same run; the target is 30 times.
``growth``      N from 10^4 to 10^8, and with --largest 10^9 in ten shards (8.6 GB).

One thread; tables are built and filled with lognormal scores before anything is timed. Every call
draws, then updates the examples drawn, so no call finds the last one's memory warm by design.
Beside each mean stand median and quartiles of single calls, and the ratio of the even to the odd
calls (A/A). A row is "contended" where other processes took more than 5 % of the cores.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from gradsift.comparison.machine import between, read_meters
from gradsift.sampling.shards import ShardedTable
from gradsift.sampling.table import ScoreTable

PARTS = ("step", "large", "multinomial", "growth")
CHUNK = 2**20
WARM = 20

Table = ScoreTable | ShardedTable


@dataclass(frozen=True)
class Row:
    """Seconds of one operation.

    Attributes:
        what: which operation.
        examples: N.
        batch: examples drawn at once.
        calls: how many were timed.
        mean: of single calls.
        low: first quartile.
        median: of single calls.
        high: third quartile.
        identical: sum of the even calls over that of the odd ones.
        foreign: share of the cores that other processes took meanwhile; None where unknown.
        bytes_per_example: of the table; None for other operations.
    """

    what: str
    examples: int
    batch: int
    calls: int
    mean: float
    low: float
    median: float
    high: float
    identical: float
    foreign: float | None
    bytes_per_example: float | None = None

    @property
    def mark(self) -> str:
        """Whether the row supports a claim."""
        if self.foreign is None:
            return "load unknown"
        return "contended" if self.foreign > 0.05 else "quiet"


def row(
    what: str, examples: int, batch: int, times: list[float], foreign: float | None, memory: int = 0
) -> Row:
    low, median, high = statistics.quantiles(times, n=4)
    return Row(
        what=what,
        examples=examples,
        batch=batch,
        calls=len(times),
        mean=statistics.fmean(times),
        low=low,
        median=median,
        high=high,
        identical=sum(times[0::2]) / sum(times[1::2]),
        foreign=foreign,
        bytes_per_example=memory / examples if memory else None,
    )


def lognormal(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, generator=generator).mul_(1.5).exp_()


def filled(table: Table) -> Table:
    """Every example gets a score."""
    generator = torch.Generator().manual_seed(1)
    for start in range(0, table.size, CHUNK):
        ids = torch.arange(start, min(start + CHUNK, table.size))
        table.update(ids, lognormal(len(ids), generator), version=0)
    return table


def table_rows(table: Table, batch: int, calls: int) -> list[Row]:
    """Draw, update, and both, call by call."""
    fresh = lognormal(batch, torch.Generator().manual_seed(2)) * table.level
    draws, updates = [], []
    before = read_meters()
    for version in range(-WARM, calls):
        start = time.perf_counter()
        drawn = table.draw(batch)
        middle = time.perf_counter()
        table.update(drawn.positions, fresh, version + WARM, drawn.weights)
        end = time.perf_counter()
        if version >= 0:
            draws.append(middle - start)
            updates.append(end - middle)
    foreign = between(before, read_meters()).foreign_cpu
    both = [one + other for one, other in zip(draws, updates, strict=True)]
    return [
        row(what, table.size, batch, times, foreign, table.nbytes)
        for what, times in (("draw", draws), ("update", updates), ("both", both))
    ]


def multinomial_rows(size: int, batch: int, repeats: int) -> list[Row]:
    """The table's draw against draws from the same probabilities, in turn."""
    table = filled(ScoreTable(size))
    assert isinstance(table, ScoreTable)
    p64 = table.probabilities(torch.arange(size))
    p32, array = p64.float(), p64.numpy() / p64.numpy().sum()
    generator, random = torch.Generator().manual_seed(3), np.random.default_rng(3)
    works: dict[str, Callable[[], object]] = {
        "table draw": lambda: table.draw(batch),
        "torch, float32": lambda: torch.multinomial(p32, batch, True, generator=generator),
        "torch, float64": lambda: torch.multinomial(p64, batch, True, generator=generator),
        "numpy choice": lambda: random.choice(size, batch, p=array),
    }
    times: dict[str, list[float]] = {what: [] for what in works}
    before = read_meters()
    for repeat in range(repeats + 1):
        for what, work in works.items():
            # The others sweep through all memory: a table in use is not that cold every time.
            for _ in range(WARM if what == "table draw" else 1):
                start = time.perf_counter()
                work()
                if repeat:
                    times[what].append(time.perf_counter() - start)
    foreign = between(before, read_meters()).foreign_cpu
    return [row(what, size, batch, taken, foreign) for what, taken in times.items()]


def growth_rows(batch: int, calls: int, largest: bool) -> list[Row]:
    rows = []
    for power in range(4, 9):
        rows += table_rows(filled(ScoreTable(10**power)), batch, calls)
    if largest:
        rows += table_rows(filled(ShardedTable([10**8] * 10)), batch, calls)
    return rows


def measured(part: str, options: argparse.Namespace) -> list[Row]:
    if part == "step":
        return table_rows(filled(ScoreTable(60_000)), 64, options.calls)
    if part == "large":
        return table_rows(filled(ScoreTable(10**8)), 1024, options.calls)
    if part == "multinomial":
        return multinomial_rows(10**7, 1024, options.repeats)
    return growth_rows(1024, options.calls, options.largest)


def printed(part: str, rows: list[Row]) -> str:
    lines = [
        "",
        f"{part:15} {'N':>13} {'batch':>5} {'mean':>10} {'median [quartiles]':>32} {'A/A':>6}  "
        "foreign",
    ]
    for each in rows:
        foreign = "?" if each.foreign is None else f"{each.foreign:.1%}"
        middle = f"{each.median * 1e6:.1f} [{each.low * 1e6:.1f}, {each.high * 1e6:.1f}]"
        memory = each.bytes_per_example
        lines.append(
            f"{each.what:15} {each.examples:13,} {each.batch:5} {each.mean * 1e6:8.1f}us "
            f"{middle:>32} {each.identical:6.3f}  {foreign} {each.mark}"
            + (f", {memory:.2f} bytes per example" if memory else "")
        )
    if part == "multinomial":
        own = rows[0].median
        ratios = ", ".join(f"{each.what} {each.median / own:.1f}" for each in rows[1:])
        lines.append(f"times slower than the table, by medians: {ratios}")
    return "\n".join(lines)


def picture(rows: list[Row], path: Path) -> None:
    """Growth of both operations with N, with quartiles, on two logarithmic axes."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for what in ("both", "draw", "update"):
        mine = [each for each in rows if each.what == what]
        sizes = [each.examples for each in mine]
        axes.plot(sizes, [each.median * 1e6 for each in mine], marker="o", label=what)
        axes.fill_between(
            sizes, [each.low * 1e6 for each in mine], [each.high * 1e6 for each in mine], alpha=0.2
        )
    axes.set(xscale="log", yscale="log", xlabel="examples in the table", ylabel="microseconds")
    axes.set_title(f"{rows[0].batch:,} examples drawn and updated: medians and quartiles")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a score table costs.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--calls", type=int, default=1000, help="draws and updates per row")
    parser.add_argument("--repeats", type=int, default=20, help="of torch.multinomial and choice")
    parser.add_argument("--largest", action="store_true", help="10^9 examples too, in ten shards")
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--picture", type=Path, help="write the growth to this SVG file")
    options = parser.parse_args()
    if options.calls < 2 or options.repeats < 2:
        parser.error("--calls and --repeats must be at least 2")
    if options.picture is not None and "growth" not in options.parts:
        parser.error("--picture shows the growth: add growth to --parts")
    torch.set_num_threads(1)
    setting = {
        "calls": options.calls,
        "repeats": options.repeats,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    result: dict[str, object] = {"setting": setting}
    for part in options.parts:
        rows = measured(part, options)
        print(printed(part, rows), flush=True)
        result[part] = [{**asdict(each), "mark": each.mark} for each in rows]
        if part == "growth" and options.picture is not None:
            picture(rows, options.picture)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
