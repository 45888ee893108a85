"""The table that a command ends with."""

from collections.abc import Sequence

from gradsift.report.numbers import quantity, seconds
from gradsift.report.runs import Run
from gradsift.report.verdict import error, gate_in_words

_HEAD = ("recipe", "test error", "test loss", "train loss", "steps", "scored", "time")


def table(runs: Sequence[Run]) -> str:
    """One line per run under a line of titles, and one on each gate; plain text."""
    rows = [_HEAD, *(_row(run) for run in runs)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    gates = [f"{run.summary.recipe}: sampling is {gate_in_words(run)}" for run in runs]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *gates])


def _row(run: Run) -> tuple[str, ...]:
    summary = run.summary
    return (
        summary.recipe,
        error(run, summary.test_error),
        quantity(summary.test_loss),
        quantity(summary.train_loss),
        f"{summary.steps:,}",
        f"{summary.examples_scored:,}",
        seconds(summary.seconds_total),
    )
