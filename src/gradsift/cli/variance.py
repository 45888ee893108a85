"""``gradsift compare --variance``: the noise of every score and draw along one uniform run."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from gradsift.budget import parse_budget
from gradsift.clock import VirtualClock
from gradsift.comparison.variance import measure_variance
from gradsift.comparison.watched import AbstractSpectator, Asked
from gradsift.data.named import ReadOptions, load_problem
from gradsift.errors import UsageError
from gradsift.report.variance import Checkpoint, VarianceFound, write_variance
from gradsift.report.variance_page import FILE, in_words, write_variance_page
from gradsift.trainer import Settings
from gradsift.trainer.keeping import require_free


class VarianceLines(AbstractSpectator):
    """Prints a line per checkpoint."""

    def moved(self, share: float, text: str) -> None:
        """Prints nothing."""
        del share, text

    def measured(self, checkpoint: Checkpoint, found: VarianceFound) -> None:
        """Prints the checkpoint."""
        print(in_words(checkpoint, found), flush=True)


class VarianceBar(AbstractSpectator):
    """A bar that fills with the run, above it a line per checkpoint."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("preparing", total=1.0)

    def __enter__(self) -> "VarianceBar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def moved(self, share: float, text: str) -> None:
        """Fills the bar."""
        self._bar.update(self._task, completed=share, description=text)

    def measured(self, checkpoint: Checkpoint, found: VarianceFound) -> None:
        """Leaves a line above the bar."""
        self._console.print(in_words(checkpoint, found), markup=False, highlight=False)


class Keeper(AbstractSpectator):
    """Writes ``variance.json`` anew after every checkpoint, and passes everything on.

    Args:
        out: folder, which is made at the first checkpoint.
        other: who watches.
    """

    def __init__(self, out: Path, other: AbstractSpectator) -> None:
        self._out, self._other = out, other

    def moved(self, share: float, text: str) -> None:
        """Passes it on."""
        self._other.moved(share, text)

    def measured(self, checkpoint: Checkpoint, found: VarianceFound) -> None:
        """Writes, and passes it on."""
        try:
            self._out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make the folder {str(self._out)!r} ({error.strerror}): name another --out"
            ) from error
        write_variance(self._out, found)
        self._other.measured(checkpoint, found)


def variance(
    found: Mapping[str, Any], flags: Sequence[str], out: Path, asked: Asked, command: str
) -> int:
    """Measures, writes ``variance.json`` and ``variance.html``, and returns the exit status.

    Args:
        found: what the parser of ``gradsift train`` made of the flags.
        flags: as typed.
        out: an empty folder, or one that is not there yet.
        asked: how much is measured.
        command: the command line.

    Raises:
        UsageError: before anything is written, for what cannot work.
    """
    names = Settings.__dataclass_fields__
    settings = Settings(
        **{
            **{name: value for name, value in found.items() if name in names},
            "budget": parse_budget(found["budget"]),
            "recipe": "uniform",
            "pool_ratio": None,
            "spend": "noise",
            "cap": None,
        }
    )
    if found["clock"] not in ("wall", "virtual"):
        raise UsageError(f"clock {found['clock']!r} is unknown: choose wall or virtual")
    require_free(out)
    reading = ReadOptions(
        found["label"],
        tuple(found["drop"] or ()),
        found["missing"],
        found["task"],
        found["seed"],
        found["unit"],
        found["context"],
    )
    problem = load_problem(found["data"], reading)
    with ExitStack() as stack:
        on_terminal = sys.stdout.isatty()
        watching = stack.enter_context(VarianceBar(Console())) if on_terminal else VarianceLines()
        result = measure_variance(
            problem,
            settings,
            asked,
            spectator=Keeper(out, watching),
            clock=VirtualClock() if found["clock"] == "virtual" else None,
            flags=shlex.join(flags),
            command=command,
        )
    if not result.checkpoints:
        typer.echo("interrupted before the first checkpoint: nothing was written")
        return 130
    write_variance(out, result)
    page = write_variance_page(out / FILE, result)
    typer.echo(f"\nreport: {page}")
    return 130 if result.interrupted else 0
