"""The flags of parallel SGD: workers, their delays, and what is done about them."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gradsift.errors import UsageError
from gradsift.trainer.backends import BACKENDS
from gradsift.trainer.workers import (
    COMPENSATIONS,
    GUIDED,
    PARALLEL,
    REPLAYING,
    SAMPLERS,
    Workers,
)

WorkerCount = Annotated[
    int | None, typer.Option("--workers", help="Of parallel SGD.", show_default="4")
]
Delay = Annotated[
    str | None,
    typer.Option(
        help="How many updates late gradients are: constant:9, uniform:0:9, "
        "pareto:SHAPE:SCALE:CAP or trace:FILE; for ssp the seconds that each takes. Late as real "
        "workers are: measured; as a run on real workers recorded it: arrivals:FILE.",
        show_default="constant:WORKERS-1, measured on ray",
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        help=f"Who the workers are: {', '.join(BACKENDS)}.",
        show_default="simulate",
    ),
]
Compensation = Annotated[
    str | None,
    typer.Option(
        help=f"Of late gradients: one of {', '.join(COMPENSATIONS)}.", show_default="none"
    ),
]
Rho = Annotated[
    int | None,
    typer.Option(help="Batches in the window that is replayed from.", show_default="10"),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        help=f"Of asgd and ssp: {' or '.join(SAMPLERS)}. With the table every worker draws its "
        "batches by score, with weights, from one table that all share.",
        show_default="uniform",
    ),
]
Average = Annotated[
    float | None,
    typer.Option(
        help="Share of the run, at its end, whose weights are averaged.", show_default="0"
    ),
]
Bound = Annotated[
    int | None,
    typer.Option(help="Gradients that an ssp worker may be ahead.", show_default="3"),
]


def find_workers(recipe: str, sampling: Mapping[str, Any], **flags: Any) -> Workers | None:
    """The workers of a recipe of parallel SGD; None for a recipe that samples.

    Args:
        recipe: its name.
        sampling: flags that mean something to the other recipes only, None where not given.
        flags: the fields of `Workers`, None where not given.

    Raises:
        UsageError: for a flag that means nothing to the recipe.

    Example:
        >>> find_workers("auto", {}, count=None) is None
        True
        >>> find_workers("auto", {}, count=4)
        Traceback (most recent call last):
        gradsift.errors.UsageError: --workers received, but recipe 'auto' is no parallel SGD: ...
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if recipe not in PARALLEL:
        if given:
            name = next(iter(given)).replace("count", "workers")
            raise UsageError(
                f"--{name} received, but recipe {recipe!r} is no parallel SGD: choose one of "
                f"{', '.join(PARALLEL)}, or leave it out"
            )
        return None
    for name, value in sampling.items():
        if value is not None:
            raise UsageError(
                f"--{name} received, but it means nothing to workers of {recipe!r}: leave it out"
            )
    if "bound" in given and recipe != "ssp":
        raise UsageError(f"--bound received, but {recipe!r} has none: leave it out, or use ssp")
    if "rho" in given and recipe not in GUIDED and not _replays(given):
        raise UsageError(f"--rho received, but {recipe!r} replays nothing: leave it out")
    if recipe == "gsgd":
        given.setdefault("count", 1)
    return Workers(recipe, **given)


def _replays(given: Mapping[str, Any]) -> bool:
    return given.get("compensation") in REPLAYING
