"""One run as a process of its own, measured, and ended politely by Ctrl-C."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from gradsift.comparison.machine import between, read_meters
from gradsift.report.compared import Machine

PREFIX = "gradsift: error: "


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: its exit status; negative for the number of a signal.
        message: the last line of its standard error, without the name of the program.
        machine: what it cost.
    """

    status: int
    message: str
    machine: Machine


class Children:
    """Runs processes one after the other, and passes Ctrl-C on to the one that runs.

    While entered, the first Ctrl-C is noted and passed on: a run then finishes its step and
    writes everything. The second is passed on too and stops it at once. Children are in a
    process group of their own, so that a terminal's Ctrl-C reaches them once, from here. SIGTERM
    takes them along.

    Attributes:
        interrupted: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._process: subprocess.Popen[str] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Children":
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGINT: self._pass_on, signal.SIGTERM: self._stop}
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def run(self, arguments: Sequence[str], heard: Callable[[str], None]) -> Ended:
        """Runs ``gradsift ARGUMENTS`` to its end.

        Args:
            arguments: of the command line.
            heard: is given every line of its standard output.
        """
        before = read_meters()
        with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "gradsift.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**KEEPING_MEMORY, **os.environ},
                text=True,
                process_group=0,
            )
            self._process = process
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    heard(line.rstrip("\n"))
                status = process.wait()
            finally:
                self._process = None
                if process.poll() is None:
                    process.kill()
                    process.wait()
                if process.stdout is not None:
                    process.stdout.close()
            errors.seek(0)
            message = _last_line(errors.read(), status)
        return Ended(status, message, between(before, read_meters()))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.interrupted = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Ends at once, with the exit status of the signal; the process that runs is killed."""
        del frame
        raise SystemExit(128 + number)


KEEPING_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Settings of glibc's allocator for every run: memory that was freed is kept.

By default a large activation may be given back to the system and faulted in again in every step,
or not, as the layout of the heap happens to be: the same step then takes 9 or 14 ms for minutes.
Another allocator ignores them.
"""


def command_of(arguments: Sequence[str]) -> str:
    """A command line as it is written into the summary of its run.

    Example:
        >>> command_of(["train", "--data", "my file.csv"])
        "gradsift train --data 'my file.csv'"
    """
    return shlex.join(["gradsift", *arguments])


def _last_line(errors: str, status: int) -> str:
    lines = errors.strip().splitlines()
    if lines:
        return lines[-1].removeprefix(PREFIX)
    if status < 0:
        return f"it was ended by signal {-status} ({signal.Signals(-status).name})"
    return f"it ended with status {status}"
