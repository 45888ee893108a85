"""One clock for everything that is measured: real seconds, or counted cost.

A virtual clock charges a fixed cost per trained and per scored example. It makes budgets,
schedules and comparisons repeat exactly, on machines that are busy with other work too.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


class AbstractClock(ABC):
    """Where all seconds come from."""

    @abstractmethod
    def now(self) -> float:
        """Seconds since some fixed moment."""

    @abstractmethod
    def charge(self, *, trained: int = 0, scored: int = 0) -> None:
        """Notes work that was done; only a virtual clock moves by it."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on: plain numbers."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from the moment at which another clock of its kind was saved."""

    @contextmanager
    def timing(self, into: "Seconds", name: str) -> Iterator[None]:
        """Adds the seconds of a block to ``into`` under ``name``, also when the block raises."""
        start = self.now()
        try:
            yield
        finally:
            into.add(name, self.now() - start)


@dataclass
class Seconds:
    """Seconds by what they were spent on.

    Example:
        >>> seconds = Seconds()
        >>> seconds.add("scoring", 1.5)
        >>> seconds["scoring"], seconds["loading"]
        (1.5, 0.0)
    """

    spent: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        """Adds to what was spent under a name."""
        self.spent[name] = self.spent.get(name, 0.0) + seconds

    def __getitem__(self, name: str) -> float:
        return self.spent.get(name, 0.0)


class WallClock(AbstractClock):
    """Real, monotonic seconds. Waits for a CUDA device only where ``synchronise`` asks for it.

    Args:
        synchronise: a device to wait for before each reading, so that work which is queued on it
            counts as done. None reads without waiting.
    """

    def __init__(self, synchronise: torch.device | None = None) -> None:
        self._cuda = synchronise if synchronise is not None and synchronise.type == "cuda" else None
        self._ahead = 0.0

    def now(self) -> float:
        """Seconds of `time.perf_counter`, and of the clock that this one goes on from."""
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return time.perf_counter() + self._ahead

    def charge(self, *, trained: int = 0, scored: int = 0) -> None:
        """Real time passes by itself."""
        del trained, scored

    def state_dict(self) -> dict[str, Any]:
        """The present moment."""
        return {"now": self.now()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The time between the saving and now does not count."""
        self._ahead = state["now"] - time.perf_counter()


class VirtualClock(AbstractClock):
    """Counted cost: it moves only by what is charged.

    Args:
        train: seconds to train one example.
        score: seconds to score one example; a third of training, as in the papers, by default.

    Example:
        >>> clock = VirtualClock(train=3.0)
        >>> clock.charge(trained=2, scored=6)
        >>> clock.now()
        12.0
    """

    def __init__(self, train: float = 3e-4, score: float | None = None) -> None:
        self._train = train
        self._score = train / 3 if score is None else score
        self._now = 0.0

    def now(self) -> float:
        """Everything charged so far."""
        return self._now

    def charge(self, *, trained: int = 0, scored: int = 0) -> None:
        """Moves the clock by the cost of the work."""
        self._now += trained * self._train + scored * self._score

    def state_dict(self) -> dict[str, Any]:
        """Everything charged so far."""
        return {"now": self._now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As if this clock had been charged it."""
        self._now = float(state["now"])


class PausableClock(AbstractClock):
    """Another clock that can be stopped: evaluation and warm-up then cost no budget.

    ``now()`` is the other clock minus all the time it moved while paused. Pauses may be nested;
    the outermost one counts.

    Args:
        inner: the clock that keeps running. Time a pause with it, if its length matters.

    Example:
        >>> inner = VirtualClock(train=1.0)
        >>> clock = PausableClock(inner)
        >>> with clock.paused():
        ...     clock.charge(trained=5)
        >>> clock.charge(trained=2)
        >>> clock.now(), inner.now()
        (2.0, 7.0)
    """

    def __init__(self, inner: AbstractClock) -> None:
        self._inner = inner
        self._stopped = 0.0
        self._paused_at: float | None = None

    def now(self) -> float:
        """Seconds of the inner clock, without the pauses."""
        at = self._inner.now() if self._paused_at is None else self._paused_at
        return at - self._stopped

    def charge(self, *, trained: int = 0, scored: int = 0) -> None:
        """Passed on; what is charged during a pause moves only the inner clock."""
        self._inner.charge(trained=trained, scored=scored)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for a block, also when the block raises."""
        if self._paused_at is not None:
            yield
            return
        self._paused_at = self._inner.now()
        try:
            yield
        finally:
            self._stopped += self._inner.now() - self._paused_at
            self._paused_at = None

    def state_dict(self) -> dict[str, Any]:
        """The inner clock, and how long it was not listened to."""
        pause = 0.0 if self._paused_at is None else self._inner.now() - self._paused_at
        return {"inner": self._inner.state_dict(), "stopped": self._stopped + pause}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the inner clock too. A pause goes on."""
        self._inner.load_state_dict(state["inner"])
        self._stopped = float(state["stopped"])
        if self._paused_at is not None:
            self._paused_at = self._inner.now()
