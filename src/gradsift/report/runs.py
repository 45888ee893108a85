"""A run as it lies in its folder: the summary, and the lines of measurements by kind."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsift.errors import DataError
from gradsift.report.summary import Summary, read_summary

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Everything the page shows of one run.

    Attributes:
        summary: of the finished run.
        lines: of ``metrics.jsonl``, in their order.
    """

    summary: Summary
    lines: Sequence[Line]

    def of_kind(self, kind: str) -> list[Line]:
        """The lines of a kind: train, eval, gate or event."""
        return [line for line in self.lines if line["kind"] == kind]

    def events(self, name: str) -> list[Line]:
        """All events of a name."""
        return [line for line in self.of_kind("event") if line.get("name") == name]

    def event(self, name: str) -> Line:
        """The last event of a name, without the keys that every line has; empty if none."""
        found = next(reversed(self.events(name)), {})
        return {
            key: value
            for key, value in found.items()
            if key not in ("kind", "step", "seconds", "name")
        }


def read_run(folder: Path) -> Run:
    """Reads the folder of a finished run.

    Raises:
        DataError: when the summary or the measurements are missing or broken.
    """
    summary = read_summary(folder)
    path = folder / "metrics.jsonl"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({type(error).__name__})") from error
    return Run(summary, [_parse(path, *numbered) for numbered in enumerate(text.splitlines(), 1)])


def pairs(lines: Sequence[Line], across: str, up: str) -> tuple[list[float], list[float]]:
    """The values of two keys, over the lines that have numbers for both.

    Example:
        >>> pairs([{"step": 1, "tau": 1.5}, {"step": 2, "tau": None}, {"step": 3}], "step", "tau")
        ([1], [1.5])
    """
    both = [
        (line[across], line[up])
        for line in lines
        if line.get(across) is not None and line.get(up) is not None
    ]
    return [x for x, _ in both], [y for _, y in both]


def _parse(path: Path, number: int, text: str) -> Line:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise DataError(f"line {number} of {str(path)!r} is no JSON object") from error
    if not isinstance(line, dict) or not {"kind", "step", "seconds"} <= line.keys():
        raise DataError(
            f"line {number} of {str(path)!r} has no kind, step and seconds: is it a "
            "metrics.jsonl of gradsift?"
        )
    return line
