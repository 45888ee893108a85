"""One worker's place on this machine: its process, its pipes, the leases that it holds."""

import contextlib
import multiprocessing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradsift.engine.ledger import Lease, back_off
from gradsift.engine.local_worker import serve
from gradsift.engine.snapshot import Board
from gradsift.engine.wire import Record, receive, send

LANES = 16
"""Leases that one worker may hold, at most."""

TEXT = 256
"""float32 numbers of a lane at least, so that it can hold the text of an error."""

FIRST_DEPTH = 2

FAREWELL = 2.0
"""Seconds that a process is waited for after its pipe was closed, or it was killed."""


@dataclass(eq=False)
class Seat:
    """Starts a process, talks to it, ends it. What that means for blocks is decided elsewhere.

    Attributes:
        number: of the worker.
        width: float32 numbers of a lane.
        ready: whether the process has opened its data.
        depth: how many leases it should hold, so that it has work until it is looked at again.
        busy_with: the ticket that it has begun; None where it has nothing to do.
        heard: when it last said something, was given work after a rest, or was started.
        losses: of its processes since the last result.
        restart_at: when the next process may start.
    """

    number: int
    width: int
    ready: bool = False
    depth: int = FIRST_DEPTH
    busy_with: int | None = None
    heard: float = 0.0
    losses: int = 0
    restart_at: float = 0.0
    lanes: Tensor = field(default_factory=lambda: torch.zeros(0))
    _process: Any = None
    _leases: Any = None
    _results: Any = None
    _free: list[int] = field(default_factory=list)
    _taken: dict[int, int] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether there is a process, running or only just ended."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return None if self._process is None else self._process.pid

    @property
    def waitable(self) -> list[Any]:
        """What becomes readable when the process says something, or ends."""
        return [] if self._results is None else [self._results]

    @property
    def holds(self) -> int:
        """How many leases it has."""
        return len(self._taken)

    @property
    def room(self) -> int:
        """How many more leases it should get."""
        return max(0, min(self.depth, LANES) - len(self._taken)) if self.ready else 0

    def start(self, packed: bytes, board: Board, now: float) -> None:
        """Starts a process. It says `READY` when it is."""
        context = multiprocessing.get_context("spawn")
        self.lanes = torch.zeros(LANES, max(self.width, TEXT)).share_memory_()
        theirs_in, self._leases = context.Pipe(duplex=False)
        self._results, theirs_out = context.Pipe(duplex=False)
        self._process = context.Process(
            target=serve,
            args=(packed, board, self.lanes, theirs_in, theirs_out),
            name=f"gradsift-scorer-{self.number}",
            daemon=True,
        )
        self._process.start()
        # With no copy of its ends here, its death is the end of the pipe.
        theirs_in.close()
        theirs_out.close()
        self.ready, self.busy_with, self.heard, self.depth = False, None, now, FIRST_DEPTH
        self._free, self._taken = list(range(LANES)), {}

    def hear(self) -> tuple[list[Record], bool]:
        """What it has said, and whether it has ended. Never waits."""
        said: list[Record] = []
        try:
            while self._results.poll():
                said.append(receive(self._results))
        except (EOFError, OSError):
            return said, True
        return said, False

    def give(self, lease: Lease, now: float) -> bool:
        """Hands a lease over; False where nobody listens any more."""
        if not self._taken:
            self.heard = now
        lane = self._free.pop()
        self._taken[lease.ticket] = lane
        block = lease.block
        record = Record(block.part, lease.ticket, lane, start=block.start, stop=block.stop)
        try:
            send(self._leases, record)
        except OSError:
            return False
        return True

    def take_back(self, ticket: int) -> None:
        """A lease has come to its end, and its lane is free again."""
        lane = self._taken.pop(ticket, None)
        if lane is not None:
            self._free.append(lane)
        if self.busy_with == ticket:
            self.busy_with = None

    def deepen(self) -> None:
        """It was found without work: it should hold twice as many leases."""
        self.depth = min(2 * self.depth, LANES)

    def end(self, *, kill: bool, now: float) -> int | None:
        """Ends the process, and returns its exit code where it has one."""
        for pipe in (self._leases, self._results):
            with contextlib.suppress(OSError):
                pipe.close()
        process, self._process, self._leases, self._results = self._process, None, None, None
        self.ready = False
        if kill:
            process.kill()
        process.join(FAREWELL)
        if process.exitcode is None:
            process.kill()
            process.join(FAREWELL)
        self.losses += 1
        self.restart_at = now + back_off(self.losses)
        return process.exitcode

    def __del__(self) -> None:
        if self._process is not None:
            self._process.kill()
