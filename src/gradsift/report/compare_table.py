"""The table of a comparison: the same cells as plain text and as HTML."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from gradsift.report.compared import Compared, Estimate, Row
from gradsift.report.numbers import quantity, seconds, share

NONE = "-"
NOT_REACHED = "not reached"
WIDTH = 100

BIASED = " (biased)"
"""Behind the name of an arm whose recipe is biased on purpose."""

ESTIMATES = {
    "train_loss": "train loss",
    "test_error": "test error",
    "seconds_to_train_loss": "time to train loss",
    "seconds_to_test_error": "time to test error",
}
"""Measures, and what their columns are called."""


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number that it is sorted by; None goes last."""

    text: str
    key: float | None = None


HEAD = (
    "arm",
    "runs",
    "steps",
    "trained",
    "scored",
    "train loss",
    "test error",
    "to train loss",
    "to test error",
    "load",
    "score",
    "train",
)

RATIOS = ("against {reference}", *ESTIMATES.values())


def levels(found: Compared, row: Row) -> list[Cell]:
    """The medians of an arm, under `HEAD`."""
    at = row.levels
    counts = [_count(at[name]) for name in ("steps", "examples_trained", "examples_scored")]
    targets = [
        _target(at[name], row.reached[name], row.complete)
        for name in ("seconds_to_train_loss", "seconds_to_test_error")
    ]
    shares = [_share(at[f"share_{name}"]) for name in ("loading", "scoring", "training")]
    loss, error = at["train_loss"], at["test_error"]
    return [
        Cell(named(found, row.arm)),
        Cell(_runs(row, found.virtual), row.complete),
        *counts,
        Cell(NONE if loss is None else quantity(loss), loss),
        Cell(NONE if error is None else error_in_words(found, error), error),
        *targets,
        *shares,
    ]


def ratios(found: Compared, row: Row) -> list[Cell]:
    """An arm against the reference, under `RATIOS`."""
    cells = [Cell(named(found, row.arm))]
    for measure in ESTIMATES:
        estimate = row.estimates[measure]
        if row.arm == found.reference:
            cells.append(Cell("reference", 1.0))
        elif estimate is None:
            cells.append(Cell(NONE))
        else:
            cells.append(Cell(estimate_in_words(estimate), estimate.value))
    return cells


def estimate_in_words(estimate: Estimate) -> str:
    """A ratio or difference with its interval.

    Example:
        >>> estimate_in_words(Estimate("ratio", 0.9, 0.8, 1.01, (0.9,)))
        '0.900 [0.800, 1.010]'
        >>> estimate_in_words(Estimate("difference", -0.01, None, None, (-0.01,)))
        '-0.01 (difference)'
    """

    def write(value: float) -> str:
        if estimate.kind == "ratio" and 0.1 <= value < 10:
            return f"{value:.3f}"
        return f"{value:.3g}"

    text = write(estimate.value)
    if estimate.low is not None and estimate.high is not None:
        text += f" [{write(estimate.low)}, {write(estimate.high)}]"
    return text if estimate.kind == "ratio" else f"{text} (difference)"


def as_text(found: Compared) -> str:
    """The table in two parts, medians and ratios, and the notes below; plain text."""
    head = [HEAD, *([cell.text for cell in levels(found, row)] for row in found.rows)]
    below = [ratio_head(found), *([cell.text for cell in ratios(found, row)] for row in found.rows)]
    parts = [_aligned(head)]
    if len(found.rows) > 1:
        parts.append(_aligned(below))
    below_the_table = [textwrap.fill(text, WIDTH) for text in (legend(found), *found.notes)]
    return "\n\n".join([*parts, "\n".join(below_the_table)])


def named(found: Compared, arm: str) -> str:
    """The name of an arm, with a mark where it is biased."""
    return f"{arm}{BIASED}" if arm in found.biased else arm


def legend(found: Compared) -> str:
    """What the columns are."""
    clock = "counted cost" if found.virtual else "seconds"
    text = (
        f"Medians over seeds. to …: {clock} to what {found.reference} had at the end of its run "
        "with the same seed. load, score, train: shares of the budget. Ratios: geometric means "
        f"over paired seeds, arm / {found.reference}, with 95 % t intervals; below 1 is better."
    )
    if not found.biased:
        return text
    return (
        f"{text}{BIASED}: the recipe's weights do not undo its choice, so its gradient is not "
        "that of the mean over the data."
    )


def ratio_head(found: Compared) -> tuple[str, ...]:
    """The titles over the ratios."""
    return tuple(title.format(reference=found.reference) for title in RATIOS)


def error_in_words(found: Compared, value: float) -> str:
    """An error in its own unit: percent for classes, a number for a regression."""
    return quantity(value) if regression(found) else share(value)


def regression(found: Compared) -> bool:
    """Whether the error is a mean square."""
    runs = [measured.run for measured in found.runs if measured.run is not None]
    return any(run.event("settings").get("task") == "regression" for run in runs[:1])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _runs(row: Row, virtual: bool) -> str:
    marks = [
        f"{count} {word}"
        for count, word in (
            (row.failed, "failed"),
            (0 if virtual else row.contended, "contended"),
        )
        if count
    ]
    return str(row.complete) + (f" ({', '.join(marks)})" if marks else "")


def _count(value: float | None) -> Cell:
    return Cell(NONE if value is None else f"{value:,.0f}", value)


def _share(value: float | None) -> Cell:
    return Cell(NONE if value is None else f"{100 * value:.0f} %", value)


def _target(value: float | None, reached: int, complete: int) -> Cell:
    """The median of those that got there, and how many that is where it is not all."""
    if not complete:
        return Cell(NONE)
    if value is None:
        return Cell(NOT_REACHED)
    few = "" if reached == complete else f" ({reached} of {complete})"
    return Cell(seconds(value) + few, value)
