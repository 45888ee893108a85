"""``--resume``: the flags of a run are its own, and those that are typed again must agree."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradsift.errors import UsageError
from gradsift.trainer.keeping import saved_run


def typed(command: str) -> set[str]:
    """The flags that were typed in a command line, rather than left as they are.

    Example:
        >>> sorted(typed("gradsift train --resume --batch-size=8 --out 'my runs'"))
        ['batch_size', 'out', 'resume']
    """
    words = [word.partition("=")[0] for word in shlex.split(command)]
    return {word[2:].replace("-", "_") for word in words if word.startswith("--")}


def recalled(out: Path | None, given: Mapping[str, Any], named: set[str]) -> dict[str, Any]:
    """The flags that the run in a folder was begun with.

    Args:
        out: the folder.
        given: all flags as they would be for a new run.
        named: those of them that were typed.

    Raises:
        UsageError: without a folder or a run in it that can go on, and for a flag that was typed
            and differs.
        DataError: for a checkpoint that cannot be read.

    Example:
        >>> recalled(None, {}, set())
        Traceback (most recent call last):
        gradsift.errors.UsageError: --resume received no folder: name the run's own by --out
    """
    if out is None:
        raise UsageError("--resume received no folder: name the run's own by --out")
    saved = saved_run(out)
    if saved is None:  # killed before its first checkpoint: nothing is known but what is typed
        return dict(given)
    flags = saved["flags"]
    for name in sorted(named & flags.keys()):
        if given[name] != flags[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} {given[name]} received, but the run in {str(out)!r} was begun with "
                f"{flags[name] or 'none'}: leave {flag} out, or begin another run elsewhere"
            )
    return {**given, **flags}
