"""The verbs of the command line under one name."""

import shlex
from collections.abc import Sequence
from typing import Annotated

import typer

from gradsift.cli.compare import compare_command
from gradsift.cli.probe import probe_command
from gradsift.cli.status import status_command
from gradsift.cli.suspects import suspects_command
from gradsift.cli.train import COMMAND_LINE, train
from gradsift.errors import UsageError
from gradsift.report import versions

# The parser's own errors have no public name of their own; their common base class is that of
# the one error that has.
_ParserError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="gradsift",
    help="Train on the examples that matter, unbiased, and only while it pays.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train)
app.command("probe")(probe_command)
app.command("status")(status_command)
app.command("suspects")(suspects_command)
app.command("compare", context_settings={"ignore_unknown_options": True})(compare_command)


def _show_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"gradsift {versions()['gradsift']}")
        raise typer.Exit
    return asked


@app.callback()
def _every_verb(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Train on the examples that matter, unbiased, and only while it pays."""
    del version


def call(arguments: Sequence[str]) -> int:
    """Parses and runs a command line, and returns its exit status.

    Raises:
        UsageError: for what the parser refuses, in its words.
        KeyboardInterrupt: for Ctrl-C outside a run.

    Example:
        >>> call(["--version"])
        gradsift ...
        0
    """
    command = typer.main.get_command(app)
    noted = COMMAND_LINE.set(shlex.join(["gradsift", *arguments]))
    try:
        status = command.main(
            args=list(arguments),
            prog_name="gradsift",
            standalone_mode=False,
        )
    except _ParserError as error:
        message = getattr(error, "format_message", error.__str__)().rstrip(".")
        raise UsageError(f"{message}: see gradsift --help and gradsift train --help") from error
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    finally:
        COMMAND_LINE.reset(noted)
    return int(status or 0)
