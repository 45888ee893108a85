"""``summary.json``: one run in one object, whose fields are frozen.

A summary is written last and at once, so a folder that has one holds a run that came to its end.
"""

import json
import math
import os
import platform
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gradsift.errors import DataError

FILE = "summary.json"


@dataclass(frozen=True)
class Summary:
    """A finished run.

    Attributes:
        recipe: its name.
        data: name of the problem.
        model: name of the model.
        seed: of everything random in the run.
        steps: updates of the parameters.
        examples_trained: examples that a gradient was taken of, with repetitions.
        examples_scored: examples that an extra forward pass was spent on.
        seconds_total: what the budget counts: loading, drawing, scoring and training, without
            the first batch and without evaluation.
        seconds_loading: of these, fetching and moving data.
        seconds_scoring: of these, scoring and drawing.
        seconds_training: of these, forward, backward and update.
        seconds_evaluating: outside the budget.
        train_loss: unweighted mean over the whole training set, in eval mode, after the run.
        train_error: likewise: share of wrong classes, or mean squared error.
        test_loss: likewise, over the test set.
        test_error: likewise, over the test set.
        gate: ``state``, ``reason`` and ``opened_at_step``; None for a recipe without a gate.
        engine: ``kind``, ``workers_lost`` and ``restarts``; None where scoring has no engine.
        versions: of gradsift, torch and python.
        command: the command line.
    """

    recipe: str
    data: str
    model: str
    seed: int
    steps: int
    examples_trained: int
    examples_scored: int
    seconds_total: float
    seconds_loading: float
    seconds_scoring: float
    seconds_training: float
    seconds_evaluating: float
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    gate: dict[str, Any] | None
    engine: dict[str, Any] | None
    versions: dict[str, str]
    command: str


def versions() -> dict[str, str]:
    """What the numbers were computed with.

    Example:
        >>> sorted(versions())
        ['gradsift', 'python', 'torch']
    """
    try:
        own = metadata.version("gradsift")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {"gradsift": own, "torch": str(torch.__version__), "python": platform.python_version()}


def write_summary(folder: Path, summary: Summary) -> Path:
    """Writes ``FOLDER/summary.json`` whole or not at all, and returns its path.

    The text reaches the disk under another name before it takes the name that readers know.
    """
    return write_whole(folder / FILE, json.dumps(asdict(summary), indent=2, allow_nan=False))


def write_whole(path: Path, text: str) -> Path:
    """Writes a file whole or not at all, with a newline at its end, and returns its path."""
    waiting = path.with_name(f"{path.name}.partial")
    with waiting.open("w", encoding="utf-8") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    waiting.replace(path)
    return path


def plain_json(value: Any) -> str:
    """Indented JSON, in which numbers that are not finite are null.

    Example:
        >>> plain_json({"known": (1.5,), "unknown": float("nan")}).split()
        ['{', '"known":', '[', '1.5', '],', '"unknown":', 'null', '}']
    """
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_summary(folder: Path) -> Summary:
    """Reads what `write_summary` wrote.

    Raises:
        DataError: when there is no summary, or its fields are not those of a `Summary`.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read ({type(error).__name__}): "
            "name the folder of a run that came to its end"
        ) from error
    expected = [field.name for field in fields(Summary)]
    found = list(content) if isinstance(content, dict) else [type(content).__name__]
    if sorted(found) != sorted(expected):
        odd = sorted(set(found) ^ set(expected))
        raise DataError(
            f"{str(path)!r} is not the summary of a run: fields missing or unknown: "
            f"{', '.join(odd)}"
        )
    return Summary(**content)
