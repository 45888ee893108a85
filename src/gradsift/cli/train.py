"""``gradsift train``: one run, its measurements and its report."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradsift.budget import parse_budget
from gradsift.cli.flags import (
    BatchSize,
    ClockName,
    Device,
    EngineName,
    Lr,
    Model,
    Norm,
    OptimizerName,
    RayAddress,
    Scorers,
    Seed,
    SpendName,
    WeightDecay,
    find_clock,
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
from gradsift.trainer import Outcome, Settings, run
from gradsift.trainer.run import require_free

RUNS = Path("runs")

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
    recipe: Annotated[str, typer.Option(help=f"One of {', '.join(recipes)}.")] = "auto",
    batch_size: BatchSize = 64,
    pool_ratio: Annotated[
        float | None, typer.Option(help="Candidates per trained example.", show_default="recipe's")
    ] = None,
    lr: Lr = None,
    weight_decay: WeightDecay = None,
    schedule: Annotated[
        str, typer.Option(help=f"Of the learning rate, over the budget: {', '.join(SCHEDULES)}.")
    ] = "cosine",
    optimizer: OptimizerName = "sgd",
    norm: Norm = None,
    spend: SpendName = None,
    engine: EngineName = None,
    scorers: Scorers = 1,
    ray_address: RayAddress = None,
    budget: Annotated[str, typer.Option(help="Such as 60s, 10ep or 2000steps.")] = "10s",
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results.", show_default="runs/train-N")
    ] = None,
    clock: ClockName = "wall",
) -> int:
    """Train a model on a data set, and write a summary, measurements and a report."""
    settings = Settings(
        recipe=recipe,
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
        engine=engine,
        scorers=scorers,
        ray_address=ray_address,
        seed=seed,
        device=device,
    )
    reading = ReadOptions(label, tuple(drop or ()), missing, task, seed, unit, context)
    seconds = find_clock(clock)
    folder = _free_folder() if out is None else out
    require_free(folder)
    problem = load_problem(data, reading)
    outcome = _watched(problem, settings, folder, seconds, partial(load_problem, data, reading))
    finished = read_run(folder)
    typer.echo(table([finished]))
    typer.echo(f"\nreport: {write_page(folder / FILE, [finished])}")
    return 130 if outcome.interrupted else 0


def _watched(
    problem: Problem,
    settings: Settings,
    folder: Path,
    clock: AbstractClock | None,
    opening: Callable[[], Problem],
) -> Outcome:
    command = COMMAND_LINE.get()
    with ExitStack() as stack:
        on_terminal = sys.stdout.isatty()
        progress = stack.enter_context(Bar(Console())) if on_terminal else Lines()
        return run(
            problem,
            settings,
            out=folder,
            clock=clock,
            progress=progress,
            opening=opening,
            command=command,
        )


def _free_folder() -> Path:
    number = 1
    while (RUNS / f"train-{number}").exists():
        number += 1
    return RUNS / f"train-{number}"
