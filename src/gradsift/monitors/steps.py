"""A thinned record of the steps: every one at first, then ever fewer, about 70 per tenfold."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gradsift.monitors.log import AbstractLog
from gradsift.records import StepRecord

GROWTH = 1.03
"""Factor between the numbers of two recorded steps."""


class StepLog:
    """Chooses which steps are recorded, and writes them as lines of kind ``train``.

    A recorded step is looked at, which waits for the device; the others are not. Reading is all
    that happens here: without it no number of a run changes.

    Example:
        >>> from gradsift.monitors.log import NullLog
        >>> steps = StepLog(NullLog())
        >>> [step for step in range(300) if steps.due(step)][-3:]
        [279, 287, 295]
    """

    def __init__(self, log: AbstractLog) -> None:
        self._log = log
        self._next = 0

    def due(self, step: int) -> bool:
        """Whether this step is to be recorded; asked once for every step, in order."""
        if step < self._next:
            return False
        self._next = max(step + 1, int(step * GROWTH))
        return True

    def state_dict(self) -> dict[str, Any]:
        """The next step that is recorded."""
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Records the steps that another log would have recorded."""
        self._next = int(state["next"])

    def write(self, step: int, seconds: float, record: StepRecord) -> None:
        """Records one step."""
        self._log.write("train", step=step, seconds=seconds, **asdict(record))
