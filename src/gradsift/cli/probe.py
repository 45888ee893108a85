"""``gradsift probe``: would sampling by score pay on this model, these data and this machine?"""

from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
import typer
from torch import nn

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
    WeightDecay,
    find_clock,
)
from gradsift.cli.reading import Context, Data, Drop, Label, Missing, Task, Unit
from gradsift.clock import WallClock
from gradsift.data.named import ReadOptions, load_problem
from gradsift.errors import DataError, UsageError
from gradsift.prospect import Prospects, probe
from gradsift.report import figures
from gradsift.report.prospects import prospects
from gradsift.report.summary import plain_json, write_whole
from gradsift.trainer import Settings
from gradsift.trainer.keeping import require_free
from gradsift.trainer.run import check_device, load_batches, make_model


def probe_command(
    data: Data = "digits",
    label: Label = None,
    drop: Drop = None,
    missing: Missing = "error",
    task: Task = None,
    unit: Unit = "characters",
    context: Context = 20,
    model: Model = "mlp",
    checkpoint: Annotated[
        Path | None, typer.Option(help="state_dict to start from.", show_default="none")
    ] = None,
    batch_size: BatchSize = 64,
    lr: Lr = None,
    weight_decay: WeightDecay = None,
    optimizer: OptimizerName = "sgd",
    norm: Norm = None,
    budget: Annotated[str, typer.Option(help="Seconds of training, such as 30s.")] = "30s",
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures.", show_default="none")
    ] = None,
    clock: ClockName = "wall",
) -> int:
    """Train a copy for a short while and say whether sampling by score would pay."""
    seconds = _seconds(budget)
    counted = find_clock(clock)
    settings = Settings(
        model=model,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        optimizer=optimizer,
        norm=norm,
        seed=seed,
        device=device,
    )
    place = check_device(device)
    if out is not None:
        require_free(out)
    reading = ReadOptions(label, tuple(drop or ()), missing, task, seed, unit, context)
    problem = load_problem(data, reading)
    network = make_model(problem, settings).to(place)
    if checkpoint is not None:
        _load(network, checkpoint)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = probe(
            load_batches(problem, settings),
            network,
            problem.loss_fn,
            optimizer=settings.optimise(network.parameters()),
            seconds=seconds,
            device=place,
            seed=seed,
            clock=counted or WallClock(place),
        )
    typer.echo(str(found))
    if out is not None:
        typer.echo(_write(out, found))
    return 0


def _seconds(budget: str) -> float:
    spent = parse_budget(budget)
    if spent.kind != "seconds":
        raise UsageError(f"budget {budget!r} received, expected seconds, such as 30s")
    return spent.amount


def _load(network: nn.Module, checkpoint: Path) -> None:
    """Puts saved parameters in; only tensors and numbers are read, nothing is executed."""
    try:
        state: Any = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, UnpicklingError) as error:
        raise DataError(
            f"{checkpoint} cannot be read as a checkpoint ({type(error).__name__}): expected a "
            "state_dict, as torch.save writes it"
        ) from error
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(
            f"{checkpoint} does not fit the model ({' '.join(str(error).split())[:200]}): expected "
            "the state_dict of the model that --model names"
        ) from error


def _write(out: Path, found: Prospects) -> str:
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "probe.json", plain_json(asdict(found)))
    write_whole(out / "probe.svg", figures.svg(prospects, found))
    return f"\nfigures: {out / 'probe.svg'}, numbers: {out / 'probe.json'}"
