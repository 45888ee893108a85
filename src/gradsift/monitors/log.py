"""Where measurements go: one JSON object per line, or nowhere.

Every line of ``metrics.jsonl`` has ``kind`` (train, eval, gate or event), ``step`` and
``seconds``; the other keys depend on the kind. Events that are read again have a ``name``:
``gradsift train`` writes ``settings`` at its start, ``health`` and ``cost`` at every evaluation,
``scores`` and ``correlation`` at its end. Lines are written whole and flushed, so a run that is
killed leaves a file that can be read.
"""

import json
import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

from gradsift.errors import DataError, UsageError

Kind = Literal["train", "eval", "gate", "event"]


class AbstractLog(ABC):
    """A place for measurements."""

    @abstractmethod
    def write(self, kind: Kind, *, step: int, seconds: float, **values: Any) -> None:
        """Keeps one measurement."""


class NullLog(AbstractLog):
    """Keeps nothing.

    Example:
        >>> NullLog().write("event", step=0, seconds=0.0, text="unheard")
    """

    def write(self, kind: Kind, *, step: int, seconds: float, **values: Any) -> None:
        """Does nothing."""
        del kind, step, seconds, values


class JsonLines(AbstractLog):
    """Appends to ``FOLDER/metrics.jsonl``; numbers that are not finite become null.

    Args:
        folder: made if it does not exist.

    Raises:
        UsageError: when the folder cannot be made or written to.

    Example:
        >>> import tempfile, pathlib
        >>> folder = tempfile.mkdtemp()
        >>> JsonLines(folder).write("event", step=3, seconds=0.5, text="hello")
        >>> print(pathlib.Path(folder, "metrics.jsonl").read_text().strip())
        {"kind": "event", "step": 3, "seconds": 0.5, "text": "hello"}
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as error:
            raise UsageError(
                f"cannot write measurements to {str(folder)!r} ({error.strerror}): "
                "name a folder that can be made and written to"
            ) from error

    def write(self, kind: Kind, *, step: int, seconds: float, **values: Any) -> None:
        """Appends one line."""
        record = {"kind": kind, "step": step, "seconds": round(seconds, 6), **values}
        line = json.dumps({key: _finite(value) for key, value in record.items()})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def keep(self) -> int:
        """Makes sure that all lines are on the disk, and returns how many bytes they are."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def cut(self, size: int) -> None:
        """Takes back every line after so many bytes.

        Raises:
            DataError: where there are fewer.
        """
        found = self.path.stat().st_size
        if found < size:
            raise DataError(
                f"{str(self.path)!r} has {found} bytes, expected at least {size}, as when the run "
                "was saved: put the file back, or run it anew in another folder"
            )
        os.truncate(self.path, size)


class SeveralLogs(AbstractLog):
    """Keeps every measurement in several places.

    Args:
        logs: the places; none keeps nothing.

    Example:
        >>> SeveralLogs(NullLog(), NullLog()).write("event", step=0, seconds=0.0, text="unheard")
    """

    def __init__(self, *logs: AbstractLog) -> None:
        self.logs = logs

    def write(self, kind: Kind, *, step: int, seconds: float, **values: Any) -> None:
        """Writes to each of them, in order."""
        for log in self.logs:
            log.write(kind, step=step, seconds=seconds, **values)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
