"""What a score costs: against a bare forward pass, and against a training step.

    python benchmarks/scoring.py [--out FILE.json] [--repeats N] [--threads N] [--pool N]

The first table is the time of the output-gradient score over that of a forward pass without a
graph, in eval mode and in the same precision. Beside it stands the same ratio of the forward pass
to itself (A/A): a difference within its quartiles is noise. Repeats are interleaved and every
ratio is paired. The second table is seconds per example, scored and trained (forward, backward
and one SGD step).

A row is marked "contended" where other processes took more than 5 % of the cores meanwhile: such
a row supports no claim.
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

import torch
from torch import Tensor, nn

from gradsift.models import build_model
from gradsift.scores import OutputGradient, score_examples
from gradsift.scores.precision import Precision, autocast, computes_in_bfloat16

LOSS = nn.CrossEntropyLoss(reduction="none")
CLASSES = 10
FOREIGN_LIMIT = 0.05
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def mlp(generator: torch.Generator) -> nn.Module:
    """784-2048-2048-10."""
    del generator
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 2048),
        nn.ReLU(),
        nn.Linear(2048, 2048),
        nn.ReLU(),
        nn.Linear(2048, CLASSES),
    )


def built(name: str, shape: tuple[int, ...]) -> Callable[[torch.Generator], nn.Module]:
    """One of the package's own models."""
    return lambda generator: build_model(name, shape, CLASSES, generator=generator)


MODELS: dict[str, tuple[Callable[[torch.Generator], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (1, 28, 28)),
    "cnn": (built("cnn", (1, 28, 28)), (1, 28, 28)),
    "wrn-10-2": (built("wrn-10-2", (3, 32, 32)), (3, 32, 32)),
}


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Row:
    """One model in one precision.

    Attributes:
        model: its name.
        precision: of the forward passes.
        score_ratio: the score over the forward pass, paired.
        identical_ratio: the forward pass over itself, paired.
        score_seconds: median, per example.
        train_seconds: median, per example.
        foreign: share of the cores that other processes took meanwhile; None where unknown.
        processor_seconds: of this process, per second of wall-clock.
    """

    model: str
    precision: str
    score_ratio: Spread
    identical_ratio: Spread
    score_seconds: float
    train_seconds: float
    foreign: float | None
    processor_seconds: float

    @property
    def mark(self) -> str:
        """Whether the row supports a claim."""
        if self.foreign is None:
            return "load unknown"
        return "contended" if self.foreign > FOREIGN_LIMIT else "quiet"


def spread(values: list[float]) -> Spread:
    low, _, high = statistics.quantiles(values, n=4)
    return Spread(statistics.median(values), low, high)


def busy_seconds() -> float | None:
    """Processor seconds that all processes of the machine have used, or None where not told."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except (OSError, IndexError):
        return None
    ticks = [int(field) for field in fields]
    used = sum(ticks) - ticks[3] - ticks[4]  # without idle and waiting for input
    return used / os.sysconf("SC_CLK_TCK") if used else None


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def training_step(
    model: nn.Module, inputs: Tensor, targets: Tensor, precision: Precision
) -> Callable[[], None]:
    """Forward, backward and one SGD step, in the precision of the scoring pass."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(inputs, precision):
            loss = LOSS(model(inputs), targets).mean()
        loss.backward()
        optimizer.step()

    return step


def measure(name: str, precision: Precision, pool: int, repeats: int) -> Row:
    """Interleaved repeats of a pass, the same pass, the score, and a training step."""
    build, shape = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    model = build(generator)
    inputs = torch.randn(pool, *shape, generator=generator)
    targets = torch.randint(CLASSES, (pool,), generator=generator)
    score = OutputGradient(precision=precision)

    def forward() -> None:
        with torch.no_grad(), autocast(inputs, precision):
            model(inputs)

    def scored() -> None:
        score_examples(score, model, LOSS, inputs, targets, count=pool)

    works: dict[str, Callable[[], object]] = {
        "forward": forward,
        "again": forward,
        "score": scored,
        "train": training_step(model, inputs, targets, precision),
    }
    for label, work in works.items():
        model.train(label not in ("forward", "again"))
        work()
    times: dict[str, list[float]] = {label: [] for label in works}
    wall, own, everyone = time.perf_counter(), time.process_time(), busy_seconds()
    for repeat in range(repeats):
        # Every place in the round falls to every kind of work equally often.
        order = list(works)[repeat % len(works) :] + list(works)[: repeat % len(works)]
        for label in order:
            model.train(label not in ("forward", "again"))
            times[label].append(seconds_of(works[label]))
    wall, own = time.perf_counter() - wall, time.process_time() - own
    now = busy_seconds()
    foreign = None
    if everyone is not None and now is not None:
        foreign = max(0.0, now - everyone - own) / (wall * (os.cpu_count() or 1))
    return Row(
        model=name,
        precision=precision,
        score_ratio=spread(ratios(times["score"], times["forward"])),
        identical_ratio=spread(ratios(times["again"], times["forward"])),
        score_seconds=statistics.median(times["score"]) / pool,
        train_seconds=statistics.median(times["train"]) / pool,
        foreign=foreign,
        processor_seconds=own / wall,
    )


def ratios(upper: list[float], lower: list[float]) -> list[float]:
    return [one / other for one, other in zip(upper, lower, strict=True)]


def tables(rows: list[Row]) -> str:
    lines = [f"{'model':9} {'precision':9} {'score / forward':22} {'A/A':22} {'foreign':8}"]
    for row in rows:
        foreign = "?" if row.foreign is None else f"{row.foreign:.1%}"
        lines.append(
            f"{row.model:9} {row.precision:9} {row.score_ratio!s:22} {row.identical_ratio!s:22} "
            f"{foreign:8} {row.mark}"
        )
    lines += ["", f"{'model':9} {'precision':9} {'scored':>10} {'trained':>10} {'ratio':>6}"]
    for row in rows:
        lines.append(
            f"{row.model:9} {row.precision:9} {row.score_seconds * 1e6:8.1f}us "
            f"{row.train_seconds * 1e6:8.1f}us {row.score_seconds / row.train_seconds:6.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a score costs.")
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--pool", type=int, default=384, help="examples per pass")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.repeats < 2 or options.pool < 1 or options.threads < 1:
        parser.error("--repeats must be at least 2, --pool and --threads at least 1")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    setting = {
        "pool": options.pool,
        "repeats": options.repeats,
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "bfloat16_instructions": computes_in_bfloat16("cpu"),
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    rows = [
        measure(name, precision, options.pool, options.repeats)
        for name in options.models
        for precision in options.precisions
    ]
    print(tables(rows))
    if options.out is not None:
        result = {"setting": setting, "rows": [{**asdict(row), "mark": row.mark} for row in rows]}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
