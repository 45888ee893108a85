"""``gradsift suspects``: the examples of a run whose labels are worth a second look."""

import importlib
import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from gradsift.errors import UsageError
from gradsift.monitors.history import read_history
from gradsift.report.summary import write_whole
from gradsift.report.suspects import as_csv, as_text, suspects
from gradsift.report.suspects_page import FILE, verdict, write_suspects_page

CONFIDENT = "gradsift.report.confident"
"""Imported when there is a history: cleanlab, where it is installed, takes seconds to import."""


def suspects_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run that came to its end.")],
    top: Annotated[int, typer.Option(help="How many examples are listed.")] = 25,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the list, as comma-separated values.", show_default="none"),
    ] = None,
) -> int:
    """List the examples with the most suspicious labels, and write RUN/suspects.html to look at."""
    if out is not None:
        _check_file(out)
    history = read_history(run)
    judged = importlib.import_module(CONFIDENT).judge(history)
    found = suspects(history, top, judged)
    typer.echo(f"{run}: {verdict(history, judged)}\n\n{as_text(found)}\n")
    if importlib.util.find_spec("cleanlab") is None and len(history.probabilities):
        typer.echo("pip install 'gradsift[suspects]' has cleanlab judge them too")
    if out is not None:
        typer.echo(f"list: {write_whole(out, as_csv(found))}")
    title = run.resolve().name
    typer.echo(f"gallery: {write_suspects_page(run / FILE, title, history, found, judged)}")
    return 0


def _check_file(out: Path) -> None:
    """Raises a `UsageError` for a place where no file can be, before anything is read."""
    if out.is_dir():
        raise UsageError(f"--out {str(out)!r} is a folder: name a file for the list")
    if not out.parent.is_dir():
        raise UsageError(f"--out {str(out)!r}: there is no folder {str(out.parent)!r}: make it")
