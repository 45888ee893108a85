"""Who scores what: each request ends in at most one result, whoever dies on the way.

Pure bookkeeping, without processes or clocks: faults are calls. The engines that have workers share
it, so what happens when one is lost is decided, and tested, in one place.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from gradsift.engine.interface import Block, EngineState

TRIES = 3
"""Failures after which a block is set aside."""

LONGEST = 60.0
"""Seconds between restarts, at most."""


@dataclass
class Sent:
    """What was published.

    Attributes:
        sets: of parameters.
        size: bytes of all of them together, without what had not changed.
    """

    sets: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        """One more set."""
        self.sets += 1
        self.size += size


@dataclass(frozen=True)
class Lease:
    """One try at one block.

    Attributes:
        ticket: its number, never used again.
        block: what is scored.
        worker: by whom.
    """

    ticket: int
    block: Block
    worker: int


@dataclass
class Ledger:
    """Requests, leases and failures.

    A block is in one place only: waiting, leased, or set aside. When a worker is lost, the block
    that it was busy with is charged with a failure, and all others go back unharmed, to the front.

    Attributes:
        delivered: results that counted.
        set_aside: numbers of blocks that failed `TRIES` times without a success between.
        news: what happened, in words.

    Example:
        >>> from gradsift.engine.interface import blocks_of
        >>> ledger = Ledger()
        >>> ledger.ask(blocks_of(4, 2))
        >>> first = ledger.lease(worker=0)
        >>> ledger.lost(worker=0, busy_with=first.ticket, reason="killed")
        >>> ledger.done(first.ticket) is None, ledger.waiting
        (True, 2)
        >>> str(ledger.lease(worker=1).block), ledger.news
        ('block 1 (examples 2 to 3)', ['block 0 (examples 0 to 1) failed and is tried ...: killed'])
    """

    delivered: int = 0
    set_aside: set[int] = field(default_factory=set)
    news: list[str] = field(default_factory=list)
    _queue: deque[Block] = field(default_factory=deque)
    _under_way: set[int] = field(default_factory=set)
    _leases: dict[int, Lease] = field(default_factory=dict)
    _failures: dict[int, int] = field(default_factory=dict)
    _tickets: int = 0

    def told(self) -> list[str]:
        """The news, which are told once."""
        told, self.news = self.news, []
        return told

    def state(
        self, kind: str, *, workers: int, lost: int = 0, restarts: int = 0, published: Sent
    ) -> EngineState:
        """What an engine of a kind says of itself.

        Args:
            kind: of the engine.
            workers: that are ready.
            lost: workers so far.
            restarts: so far.
            published: what was sent so far.
        """
        return EngineState(
            kind=kind,
            workers=workers,
            workers_lost=lost,
            restarts=restarts,
            delivered=self.delivered,
            set_aside=tuple(sorted(self.set_aside)),
            published=published.sets,
            sent=published.size,
        )

    @property
    def waiting(self) -> int:
        """Blocks that nobody has yet."""
        return len(self._queue)

    @property
    def under_way(self) -> frozenset[int]:
        """Numbers of the blocks that wait or are leased."""
        return frozenset(self._under_way)

    def held_by(self, worker: int) -> list[Lease]:
        """What a worker has, oldest first."""
        return [lease for lease in self._leases.values() if lease.worker == worker]

    def ask(self, blocks: Iterable[Block]) -> None:
        """Queues blocks; those under way or set aside are passed over."""
        for block in blocks:
            if block.number not in self._under_way and block.number not in self.set_aside:
                self._under_way.add(block.number)
                self._queue.append(block)

    def lease(self, worker: int) -> Lease | None:
        """Hands the oldest waiting block to a worker; None where there is none."""
        if not self._queue:
            return None
        self._tickets += 1
        lease = Lease(self._tickets, self._queue.popleft(), worker)
        self._leases[lease.ticket] = lease
        return lease

    def done(self, ticket: int) -> Block | None:
        """Takes a result in; None for one that came too late to count."""
        lease = self._leases.pop(ticket, None)
        if lease is None:
            return None
        self._under_way.discard(lease.block.number)
        self._failures.pop(lease.block.number, None)
        self.delivered += 1
        return lease.block

    def failed(self, ticket: int, reason: str) -> None:
        """Notes that a block could not be scored: it is tried again, or set aside and named."""
        lease = self._leases.pop(ticket, None)
        if lease is None:
            return
        block = lease.block
        failures = self._failures.get(block.number, 0) + 1
        self._failures[block.number] = failures
        if failures < TRIES:
            # At the end: nothing else waits for a block that may fail again.
            self._queue.append(block)
            self.news.append(f"{block} failed and is tried again: {reason}")
            return
        self.set_aside.add(block.number)
        self._under_way.discard(block.number)
        left = "its curve goes on without it" if block.part else "its examples count as unseen"
        self.news.append(
            f"{block} failed {failures} times and is not scored any more; {left}: {reason}"
        )

    def lost(self, worker: int, busy_with: int | None, reason: str) -> None:
        """Gives back what a worker had; the block that it was busy with is charged."""
        for lease in reversed(self.held_by(worker)):
            if lease.ticket == busy_with:
                self.failed(lease.ticket, reason)
                continue
            del self._leases[lease.ticket]
            self._queue.appendleft(lease.block)


def back_off(failures: int) -> float:
    """Seconds before the next restart, after so many losses without a result between.

    Example:
        >>> [back_off(failures) for failures in (1, 2, 3, 4, 9)]
        [0.0, 1.0, 2.0, 4.0, 60.0]
    """
    return 0.0 if failures <= 1 else min(LONGEST, 2.0 ** min(failures - 2, 10))
