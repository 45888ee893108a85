"""The flags that say what is trained, shared by the verbs that train."""

from typing import Annotated

import typer

from gradsift.clock import AbstractClock, VirtualClock
from gradsift.errors import UsageError
from gradsift.models import FAMILIES
from gradsift.trainer.searching import ENGINES
from gradsift.trainer.settings import OPTIMIZERS

Model = Annotated[str, typer.Option(help=f"One of {', '.join(FAMILIES)}.")]
BatchSize = Annotated[int, typer.Option(help="Examples per step.")]
Lr = Annotated[
    float | None, typer.Option(help="Learning rate.", show_default="0.05 (sgd), 0.001 (adam)")
]
WeightDecay = Annotated[
    float | None,
    typer.Option(help="Of the optimizer.", show_default="0 (sgd, adam), 0.01 (adamw)"),
]
OptimizerName = Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.")]
Norm = Annotated[str | None, typer.Option(help="group or batch, for wrn.", show_default="group")]
SpendName = Annotated[
    str | None,
    typer.Option(
        help="What lower variance is spent on: noise, batch or lr.",
        show_default="for auto lr (sgd) or batch (adam, adamw)",
    ),
]
Cap = Annotated[
    float | None,
    typer.Option(
        help="Quantile at which scores of a table are capped, such as 0.9: against wrong labels.",
        show_default="none",
    ),
]
Finish = Annotated[
    float | None,
    typer.Option(
        help="Last share of the run in the data's own order, with recipe auto.",
        show_default="recipe's",
    ),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help=f"Where scores are searched for: {', '.join(ENGINES)}.",
        show_default="nowhere",
    ),
]
Scorers = Annotated[int, typer.Option(help="Workers of the engine.")]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Of the Ray cluster to join.", show_default="Ray on this machine"),
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda:0.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in --out, whose own flags it takes."),
]
CheckpointEvery = Annotated[
    str, typer.Option(help="What a crash costs at most: such as 300s, 1ep or 500steps.")
]
ClockName = Annotated[str, typer.Option(help="wall, or virtual: a fixed cost per example.")]


def find_clock(name: str) -> AbstractClock | None:
    """The clock of a name; None for real seconds, whose clock depends on the device.

    Raises:
        UsageError: for an unknown name.

    Example:
        >>> find_clock("virtual").now(), find_clock("wall")
        (0.0, None)
    """
    if name not in ("wall", "virtual"):
        raise UsageError(f"clock {name!r} is unknown: choose wall or virtual")
    return VirtualClock() if name == "virtual" else None
