"""``gradsift train``: one run, its measurements and its report."""

import sys
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradsift.budget import parse_budget
from gradsift.cli.flags import (
    BatchSize,
    ClockName,
    Device,
    Lr,
    Model,
    Norm,
    OptimizerName,
    Seed,
    SpendName,
    WeightDecay,
    find_clock,
)
from gradsift.cli.parallel import (
    Backend,
    Bound,
    Compensation,
    Delay,
    Rho,
    WorkerCount,
    find_workers,
)
from gradsift.cli.reading import Context, Data, Drop, Label, Missing, Task, Unit
from gradsift.cli.table import table
from gradsift.cli.watch import Bar, Lines
from gradsift.clock import AbstractClock
from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.problem import Problem
from gradsift.recipes import recipes
from gradsift.report.page import FILE, write_page
from gradsift.report.runs import read_run
from gradsift.schedule import SCHEDULES
from gradsift.trainer import Outcome, Settings, Workers, run, run_parallel
from gradsift.trainer.run import require_free
from gradsift.trainer.workers import PARALLEL

RUNS = Path("runs")

RecipeName = Annotated[
    str, typer.Option(help=f"One of {', '.join(recipes)}; or of {', '.join(PARALLEL)}.")
]
PoolRatio = Annotated[
    float | None, typer.Option(help="Candidates per trained example.", show_default="recipe's")
]
ScheduleName = Annotated[
    str, typer.Option(help=f"Of the learning rate, over the budget: {', '.join(SCHEDULES)}.")
]

COMMAND_LINE: ContextVar[str] = ContextVar("command_line", default="gradsift train")
"""What was typed, for the summary."""


def train(
    data: Data = "digits",
    label: Label = None,
    drop: Drop = None,
    missing: Missing = "error",
    task: Task = None,
    unit: Unit = "characters",
    context: Context = 20,
    model: Model = "mlp",
    recipe: RecipeName = "auto",
    batch_size: BatchSize = 64,
    pool_ratio: PoolRatio = None,
    lr: Lr = None,
    weight_decay: WeightDecay = None,
    schedule: ScheduleName = "cosine",
    optimizer: OptimizerName = "sgd",
    norm: Norm = None,
    spend: SpendName = None,
    budget: Annotated[str, typer.Option(help="Such as 60s, 10ep or 2000steps.")] = "10s",
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results.", show_default="runs/train-N")
    ] = None,
    clock: ClockName = "wall",
    workers: WorkerCount = None,
    delay: Delay = None,
    backend: Backend = None,
    compensation: Compensation = None,
    rho: Rho = None,
    bound: Bound = None,
) -> int:
    """Train a model on a data set, and write a summary, measurements and a report."""
    found = {"count": workers, "delay": delay, "backend": backend, "rho": rho, "bound": bound}
    others = {"pool-ratio": pool_ratio, "spend": spend}
    team = find_workers(recipe, others, **found, compensation=compensation)
    settings = Settings(
        recipe=recipe if team is None else "uniform",
        model=model,
        budget=parse_budget(budget),
        batch_size=batch_size,
        pool_ratio=pool_ratio,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        optimizer=optimizer,
        norm=norm,
        spend=spend,
        seed=seed,
        device=device,
    )
    reading = ReadOptions(label, tuple(drop or ()), missing, task, seed, unit, context)
    seconds = find_clock(clock)
    folder = _free_folder() if out is None else out
    require_free(folder)
    outcome = _watched(load_problem(data, reading), settings, team, folder, seconds)
    return _finish(folder, outcome)


def _finish(folder: Path, outcome: Outcome) -> int:
    """Writes the page, prints the table and says how it ended."""
    finished = read_run(folder)
    page = write_page(folder / FILE, [finished])
    typer.echo(table([finished]))
    typer.echo(f"\nreport: {page}")
    return 130 if outcome.interrupted else 0


def _watched(
    problem: Problem,
    settings: Settings,
    team: Workers | None,
    folder: Path,
    clock: AbstractClock | None,
) -> Outcome:
    with ExitStack() as stack:
        on_terminal = sys.stdout.isatty()
        progress = stack.enter_context(Bar(Console())) if on_terminal else Lines()
        watched = {
            "out": folder,
            "clock": clock,
            "progress": progress,
            "command": COMMAND_LINE.get(),
        }
        if team is not None:
            return run_parallel(problem, settings, team, **watched)
        return run(problem, settings, **watched)


def _free_folder() -> Path:
    number = 1
    while (RUNS / f"train-{number}").exists():
        number += 1
    return RUNS / f"train-{number}"
