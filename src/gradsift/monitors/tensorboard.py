"""Measurements in TensorBoard: the only file that knows it, imported by nobody else.

``gradsift.sift(…, log=TensorBoard("runs/a"))`` shows what ``metrics.jsonl`` would hold; extra
``tensorboard``.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradsift.errors import UsageError
from gradsift.monitors.log import AbstractLog, Kind

_make: Callable[[str], Any] | None
try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    _make = None
else:
    _make = SummaryWriter


class TensorBoard(AbstractLog):
    """Writes numbers as scalars, and notices as text, into an event file.

    A number is called ``kind/key``, such as ``train/loss``, or ``name/key`` for an event that has a
    name, such as ``health/coverage``. Truth is 0 or 1; what is not finite is left out. Every
    measurement is flushed: they are few.

    Args:
        folder: of the event file.
        writer: anything with ``add_scalar``, ``add_text`` and ``flush``; None makes a
            `torch.utils.tensorboard.SummaryWriter`.

    Raises:
        UsageError: when the extra is not installed.

    Example:
        >>> class Printed:
        ...     def add_scalar(self, tag, value, step):
        ...         print(tag, value, step)
        ...     def flush(self):
        ...         pass
        >>> TensorBoard("runs/a", Printed()).write("eval", step=3, seconds=0.5, test_error=0.25)
        eval/test_error 0.25 3
    """

    def __init__(self, folder: str | Path, writer: Any = None) -> None:
        self._writer = _open(folder) if writer is None else writer

    def write(self, kind: Kind, *, step: int, seconds: float, **values: Any) -> None:
        """Keeps the numbers, and the text of a notice."""
        del seconds
        group = values.get("name", kind)
        for key, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f"{group}/{key}", float(value), step)
        if "text" in values:
            self._writer.add_text(f"{group}/text", values["text"], step)
        self._writer.flush()


def _open(folder: str | Path) -> Any:
    if _make is None:
        raise UsageError(
            "TensorBoard is not installed, expected the extra tensorboard: "
            "pip install 'gradsift[tensorboard]'"
        )
    return _make(str(folder))
