"""``gradsift train``: one run, its measurements and its report."""

import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gradsift.budget import parse_budget
from gradsift.cli.again import recalled, typed
from gradsift.cli.flags import (
    BatchSize,
    Cap,
    CheckpointEvery,
    ClockName,
    Device,
    EngineName,
    Finish,
    Lr,
    Model,
    Norm,
    OptimizerName,
    RayAddress,
    Resume,
    Scorers,
    Seed,
    SpendName,
    WeightDecay,
    find_clock,
)
from gradsift.cli.parallel import (
    Average,
    Backend,
    Bound,
    Compensation,
    Delay,
    Rho,
    Sampler,
    WorkerCount,
    find_workers,
)
from gradsift.cli.reading import Context, Data, Drop, Label, Missing, Task, Unit
from gradsift.cli.table import table
from gradsift.cli.watch import Bar, Lines
from gradsift.data.named import ReadOptions, load_problem
from gradsift.recipes import recipes
from gradsift.report.page import FILE, write_page
from gradsift.report.runs import read_run
from gradsift.schedule import SCHEDULES
from gradsift.trainer import Outcome, Settings, Workers, run, run_parallel
from gradsift.trainer.backends import check_budget
from gradsift.trainer.keeping import EVERY, Keeping, require_free
from gradsift.trainer.workers import PARALLEL

RUNS = Path("runs")

READING = ("data", "label", "drop", "missing", "task", "unit", "context")
"""Flags that say what the data are."""

SETTINGS = (
    *("model", "recipe", "batch_size", "pool_ratio", "lr", "weight_decay", "schedule"),
    *("optimizer", "norm", "spend", "cap", "finish", "engine", "scorers", "ray_address"),
    *("seed", "device"),
)
"""Flags that are settings of the same name; the budget is one too, and is parsed."""

TEAM = ("workers", "delay", "backend", "compensation", "rho", "bound", "sampler", "average")
"""Flags of parallel SGD."""

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
    cap: Cap = None,
    finish: Finish = None,
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
    resume: Resume = False,
    checkpoint_every: CheckpointEvery = str(EVERY),
    workers: WorkerCount = None,
    delay: Delay = None,
    backend: Backend = None,
    compensation: Compensation = None,
    rho: Rho = None,
    bound: Bound = None,
    sampler: Sampler = None,
    average: Average = None,
) -> int:
    """Train a model on a data set, and write a summary, measurements and a report."""
    values = (
        *(data, label, list(drop or ()), missing, task, unit, context, model),
        *(recipe, batch_size, pool_ratio, lr, weight_decay, schedule),
        *(optimizer, norm, spend, cap, finish, engine, scorers, ray_address, seed, device),
        *(workers, delay, backend, compensation, rho, bound, sampler, average, budget, clock),
    )
    flags = dict(zip((*READING, *SETTINGS, *TEAM, "budget", "clock"), values, strict=True))
    every = parse_budget(checkpoint_every)
    if resume:
        flags = recalled(out, flags, typed(COMMAND_LINE.get()))
    settings, team = settled(flags)
    folder = _free_folder() if out is None else out
    outcome = _watched(folder, flags, Keeping(every, resume, flags), settings, team)
    return _finish(folder, outcome)


def settled(flags: Mapping[str, Any]) -> tuple[Settings, Workers | None]:
    """What is trained, and the workers of parallel SGD, if the recipe has any.

    Raises:
        UsageError: for flags that do not go together.
    """
    sampling = ("pool_ratio", "spend", "cap", "finish", "engine")
    others = {name.replace("_", "-"): flags[name] for name in sampling}
    found = {name: flags[name] for name in TEAM if name != "workers"}
    if flags["recipe"] in PARALLEL:
        found["address"] = flags["ray_address"]
    team = find_workers(flags["recipe"], others, count=flags["workers"], **found)
    chosen = {name: flags[name] for name in SETTINGS}
    if team is not None:
        chosen |= {"recipe": "uniform", "ray_address": None}
    budget = parse_budget(flags["budget"])
    if team is not None:
        check_budget(budget, team.backend)
    return Settings(**chosen, budget=budget), team


def _finish(folder: Path, outcome: Outcome) -> int:
    """Writes the page, prints the table and says how it ended."""
    finished = read_run(folder)
    page = write_page(folder / FILE, [finished])
    typer.echo(table([finished]))
    if outcome.interrupted:
        typer.echo(f"\nto go on: gradsift train --resume --out {shlex.quote(str(folder))}")
    typer.echo(f"\nreport: {page}")
    return 130 if outcome.interrupted else 0


def _watched(
    folder: Path,
    flags: Mapping[str, Any],
    keeping: Keeping,
    settings: Settings,
    team: Workers | None,
) -> Outcome:
    reading = ReadOptions(
        flags["label"],
        tuple(flags["drop"]),
        flags["missing"],
        flags["task"],
        flags["seed"],
        flags["unit"],
        flags["context"],
    )
    clock = find_clock(flags["clock"])
    if not keeping.resume:
        require_free(folder)
    opening = partial(load_problem, flags["data"], reading)
    problem = opening()
    with ExitStack() as stack:
        on_terminal = sys.stdout.isatty()
        progress = stack.enter_context(Bar(Console())) if on_terminal else Lines()
        watched = {
            "out": folder,
            "clock": clock,
            "progress": progress,
            "command": COMMAND_LINE.get(),
            "keeping": keeping,
            "opening": opening,
        }
        if team is not None:
            return run_parallel(problem, settings, team, **watched)
        return run(problem, settings, **watched)


def _free_folder() -> Path:
    number = 1
    while (RUNS / f"train-{number}").exists():
        number += 1
    return RUNS / f"train-{number}"
