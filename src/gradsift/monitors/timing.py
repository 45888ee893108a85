"""Seconds per step of each source of examples, as medians of blocks of successive steps."""

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any


class StepTimes:
    """Keeps the latest seconds per step of every source apart.

    Steps are averaged over blocks of successive steps of the same source, because a queue of
    asynchronous work makes single steps meaningless; the median over the latest blocks forgets
    evaluations, checkpoints and hiccups. The first block after a change of source is warm-up.

    Args:
        block: steps per block.
        kept: blocks that a median is taken of.

    Example:
        >>> times = StepTimes(block=2)
        >>> for seconds in (9.0, 9.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0):
        ...     times.add("off", seconds)
        >>> times.median("off"), times.median("table")
        (2.0, None)
    """

    def __init__(self, block: int = 8, kept: int = 15) -> None:
        self._block = block
        self._kept = kept
        self._blocks: dict[str, deque[float]] = {}
        self._source: str | None = None
        self._warm = False
        self._sum = 0.0
        self._steps = 0

    def add(self, source: str, seconds: float) -> None:
        """Takes the seconds of one whole step."""
        if source != self._source:
            self._source, self._warm, self._sum, self._steps = source, False, 0.0, 0
        self._sum += seconds
        self._steps += 1
        if self._steps < self._block:
            return
        if self._warm:
            blocks = self._blocks.setdefault(source, deque(maxlen=self._kept))
            blocks.append(self._sum / self._steps)
        self._warm, self._sum, self._steps = True, 0.0, 0

    def median(self, source: str) -> float | None:
        """Seconds per step, or None before two blocks of that source."""
        blocks = self._blocks.get(source)
        return median(blocks) if blocks else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, from which `load_state_dict` goes on to the bit."""
        return {
            "blocks": {source: list(blocks) for source, blocks in self._blocks.items()},
            "source": self._source,
            "warm": self._warm,
            "sum": self._sum,
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another object's state; the latest blocks that this one keeps count."""
        blocks = state["blocks"].items()
        self._blocks = {source: deque(kept, maxlen=self._kept) for source, kept in blocks}
        self._source, self._warm = state["source"], state["warm"]
        self._sum, self._steps = state["sum"], state["steps"]


class Allowance:
    """Says whether finding out may cost more now, so that it stays below a share of all time.

    Args:
        share: of the seconds that have passed.

    Example:
        >>> allowance = Allowance(0.01)
        >>> allowance.allows(now=100.0), allowance.allows(now=100.0, cost=2.0)
        (True, False)
        >>> allowance.spend(1.5)
        >>> allowance.allows(now=100.0), allowance.allows(now=151.0)
        (False, True)
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self.spent = 0.0

    def spend(self, seconds: float) -> None:
        """Notes what finding out has cost."""
        self.spent += seconds

    def state_dict(self) -> dict[str, Any]:
        """What was spent."""
        return {"spent": self.spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another allowance."""
        self.spent = float(state["spent"])

    def allows(self, now: float, cost: float = 0.0) -> bool:
        """Whether ``cost`` more seconds stay within the share of ``now``, seconds since the start.

        Where no time passes, as at the start of a clock that counts, nothing is refused.
        """
        return self.spent + cost <= self._share * now or self.spent + cost == 0.0
