"""What faults cost a training run whose scores come from a worker process: nothing, if all is well.

    python benchmarks/faults.py [--runs 20] [--faults "worker killed" …] [--out FILE.json]

Every fault is injected into so many runs, one per seed, and the same seeds run undisturbed. Counted
are runs that end; compared is the mean final training loss, which may differ by at most three
standard errors of the difference, ``√(s²/n + s₀²/n₀)``. Beside it stands the same without the noise
that a seed has in both: paired, with its own standard error. The last row, for the scale, trains
without any scores (uniform, shuffled): what would be left if all workers were dead from the start.

The owner of the table is the trainer, whose death and resumption is one of the faults. Nodes that
leave and join need a cluster: `tests/test_engine_ray.py`.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from fault_run import BATCH, DATA, FAULTS, LR, MOMENTUM, Outcome, Schedule, inject
from gradsift.data.named import ReadOptions, load_problem
from gradsift.models import build_model

CONTROL = "none"
LIMIT = 3.0


@dataclass(frozen=True)
class Runs:
    """All runs with one fault.

    Attributes:
        fault: its name.
        outcomes: by seed; None for a run that did not end.
        errors: of those.
        happened: how many runs show that the fault took place.
        seconds: of all together.
    """

    fault: str
    outcomes: tuple[Outcome | None, ...]
    errors: tuple[str, ...]
    happened: int
    seconds: float

    @property
    def losses(self) -> list[float | None]:
        """By seed."""
        return [None if each is None else each.loss for each in self.outcomes]


def repeated(fault: str, count: int, schedule: Schedule) -> Runs:
    """So many runs; an error ends one of them, and no other."""
    outcomes: list[Outcome | None] = []
    errors = []
    start = time.monotonic()
    for seed in range(count):
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes.append(inject(fault, seed, schedule, Path(folder)))
            except Exception as error:  # noqa: BLE001 - a run that fails is a result
                outcomes.append(None)
                errors.append(f"seed {seed}: {type(error).__name__}: {error}")
                traceback.print_exc()
    ended = [each for each in outcomes if each is not None]
    happened = sum(FAULTS[fault].happened(each) for each in ended)
    return Runs(fault, tuple(outcomes), tuple(errors), happened, time.monotonic() - start)


def apart(losses: Sequence[float], controls: Sequence[float]) -> tuple[float, float]:
    """Difference of two means, and its standard error; nan with fewer than two of either."""
    difference = statistics.fmean(losses) - statistics.fmean(controls)
    if min(len(losses), len(controls)) < 2:
        return difference, math.nan
    groups = (losses, controls)
    error = math.sqrt(sum(statistics.variance(group) / len(group) for group in groups))
    return difference, error


def paired(losses: Sequence[float | None], controls: Sequence[float | None]) -> tuple[float, float]:
    """Mean difference over the seeds that ended in both, and its standard error."""
    pairs = zip(losses, controls, strict=True)
    each = [a - b for a, b in pairs if a is not None and b is not None]
    if len(each) < 2:
        return (each[0] if each else math.nan), math.nan
    return statistics.fmean(each), statistics.stdev(each) / math.sqrt(len(each))


def ended(losses: Sequence[float | None]) -> list[float]:
    return [loss for loss in losses if loss is not None]


def line(runs: Runs, control: Runs) -> str:
    """One row of the table."""
    losses, controls = ended(runs.losses), ended(control.losses)
    head = f"| {runs.fault} | {len(losses)} of {len(runs.outcomes)} | {runs.happened} |"
    if not losses or not controls:
        return f"{head} | | | | | |"
    known = [each for each in runs.outcomes if each is not None]
    lost, scored = (
        statistics.fmean(getattr(each, name) for each in known) for name in ("lost", "scored")
    )
    found = f"{head} {statistics.fmean(losses):.4f} |"
    if runs is control:
        return f"{found} | | | {lost:.1f} | {scored:,.0f} |"
    difference, error = apart(losses, controls)
    within = "?" if math.isnan(error) else "yes" if abs(difference) <= LIMIT * error else "**no**"
    own, spread = paired(runs.losses, control.losses)
    return (
        f"{found} {difference:+.4f} ± {error:.4f} | {within} | {own:+.4f} ± {spread:.4f} "
        f"| {lost:.1f} | {scored:,.0f} |"
    )


def uniform(seed: int, steps: int) -> float:
    """Final training loss without any scores."""
    problem = load_problem(DATA, ReadOptions())
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    model = build_model("mlp", problem.input_shape, problem.outputs, generator=generators[0])
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
    loader = DataLoader(problem.train, BATCH, shuffle=True, generator=generators[1])
    step = 0
    while step < steps:
        for inputs, targets in loader:
            optimizer.zero_grad()
            problem.loss_fn(model(inputs), targets).mean().backward()
            optimizer.step()
            step += 1
            if step == steps:
                break
    count = len(problem.train)  # pyright: ignore[reportArgumentType]
    inputs, targets = next(iter(DataLoader(problem.train, count)))
    with torch.no_grad():
        return float(problem.loss_fn(model(inputs), targets).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Faults injected into training runs.")
    others = [name for name in FAULTS if name != CONTROL]
    parser.add_argument("--runs", type=int, default=20, help="with each fault, and without")
    parser.add_argument("--faults", nargs="+", default=others, choices=others)
    parser.add_argument("--steps", type=int, default=Schedule.steps, help="of a run")
    parser.add_argument("--at", type=int, default=Schedule.at, help="step of the fault")
    parser.add_argument("--out", type=Path, help="write every outcome to this JSON file")
    options = parser.parse_args()
    if options.runs < 1 or not 0 < options.at < options.steps:
        parser.error("--runs must be at least 1, and 0 < --at < --steps")
    torch.set_num_threads(1)
    schedule = Schedule(steps=options.steps, at=options.at)
    print(f"{schedule}, torch {torch.__version__}, {os.cpu_count()} cores\n")
    print("| fault | ended | happened | loss | difference | within | paired | lost | scored |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    control = repeated(CONTROL, options.runs, schedule)
    found = [control]
    print(line(control, control), flush=True)
    for fault in options.faults:
        found.append(repeated(fault, options.runs, schedule))
        print(line(found[-1], control), flush=True)
    losses = [uniform(seed, options.steps) for seed in range(options.runs)]
    difference, error = apart(losses, ended(control.losses) or [math.nan])
    mean = statistics.fmean(losses)
    print(
        f"\nuniform, no scores at all: loss {mean:.4f}, difference {difference:+.4f} ± {error:.4f}"
    )
    for runs in found:
        said = next((each.said[-1] for each in runs.outcomes if each and each.said), "nothing")
        print(f"{runs.fault}: {runs.seconds:.0f} s; said {said!r}", *runs.errors, sep="\n  ")
    if options.out is not None:
        content = {"schedule": asdict(schedule), "runs": [asdict(runs) for runs in found]}
        options.out.write_text(json.dumps({**content, "uniform": losses}, indent=1) + "\n")


if __name__ == "__main__":
    main()
