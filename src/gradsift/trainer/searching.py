"""The engine of a run, from its settings."""

from collections.abc import Mapping
from typing import Any

from gradsift.engine import engines
from gradsift.engine.evaluate import ErrorFunction
from gradsift.engine.interface import AbstractEngine
from gradsift.errors import UsageError

ENGINES = ("inline", "local", "ray")

SMALLEST, LARGEST, PARTS = 32, 512, 16
"""Examples per block: a sixteenth of the data, within these bounds."""


def check_engine(name: str | None, scorers: int, address: str | None) -> None:
    """Refuses what no engine can do.

    Raises:
        UsageError: for an unknown engine, no workers, or an option of another engine.

    Example:
        >>> check_engine("cloud", 1, None)
        Traceback (most recent call last):
        gradsift.errors.UsageError: engine 'cloud' is unknown: choose one of inline, local, ray
    """
    if name is not None and name not in ENGINES:
        raise UsageError(f"engine {name!r} is unknown: choose one of {', '.join(ENGINES)}")
    if scorers < 1:
        raise UsageError(f"{scorers} scorers received, expected at least 1")
    if scorers != 1 and name not in ("local", "ray"):
        raise UsageError(
            f"{scorers} scorers received, but the engine is {name or 'none'}: use --engine local "
            "or --engine ray, or leave the scorers out"
        )
    if address is not None and name != "ray":
        raise UsageError(
            f"Ray address {address!r} received, but the engine is {name or 'none'}: use "
            "--engine ray, or leave the address out"
        )


def make_engine(
    name: str | None,
    scorers: int = 1,
    *,
    examples: int,
    opening: Any = None,
    address: str | None = None,
    evaluate: Mapping[str, Any] | None = None,
    error: ErrorFunction | None = None,
) -> AbstractEngine | None:
    """The engine of a name, not started yet; None for no name.

    Args:
        name: inline, local or ray.
        scorers: its workers.
        examples: of the training set, by which its blocks are sized.
        opening: how workers open the data; None sends them the data set by value.
        address: of a Ray cluster.
        evaluate: data sets whose curves workers measure; not in the training process itself,
            whose time is the budget.
        error: one per example of those.

    Example:
        >>> engine = make_engine("local", 2, examples=1442)
        >>> engine.kind, engine.options.block
        ('local', 90)
    """
    if name is None:
        return None
    block = min(max(examples // PARTS, SMALLEST), LARGEST)
    if name == "inline":
        return engines.inline(block=block)
    curves: dict[str, Any] = {"evaluate": evaluate, "error": error}
    if name == "local":
        return engines.local(opening, scorers, block=block, **curves)
    return engines.ray(opening, scorers, block=block, address=address, **curves)
