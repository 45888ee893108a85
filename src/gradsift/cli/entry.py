"""Where the command line starts, and where every error becomes one plain line.

Exit status: 0 done, 1 failed while running, 2 wrong use or bad input, 130 on Ctrl-C.
"""

import sys
from collections.abc import Sequence

from gradsift.errors import DataError, TrainingError, UsageError

EXTRAS = {"matplotlib", "rich", "scipy", "sklearn", "typer"}
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        arguments: without the program's name; None takes those of the process.

    Example:
        >>> main(["train", "--budget", "10 parsecs"])
        2
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Imported here, because it needs optional packages, whose absence is said in one line.
        from gradsift.cli.app import call
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _fail(f"the command line needs {package}: run pip install 'gradsift[cli]'", status=2)
    try:
        return call(given)
    except (UsageError, DataError) as error:
        return _fail(error, status=2)
    except TrainingError as error:
        return _fail(error, status=1)
    except (OSError, RuntimeError) as error:
        return _fail(f"{type(error).__name__}: {error}", status=1)
    except KeyboardInterrupt:
        return INTERRUPTED


def _fail(error: object, status: int) -> int:
    print("gradsift: error:", " ".join(str(error).split()), file=sys.stderr)
    return status
