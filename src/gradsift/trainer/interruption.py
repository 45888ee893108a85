"""Ctrl-C as a wish, not a crash: the step is finished and everything is written.

The second Ctrl-C stops at once.
"""

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """Notes the first SIGINT while it is entered; leaves the handlers as it found them.

    Outside the main thread, where Python allows no handlers, it notes nothing.

    Example:
        >>> with Interruption() as interruption:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interruption.requested
        True
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)
            self._installed = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
