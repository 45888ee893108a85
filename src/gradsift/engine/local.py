"""Workers as processes of this machine."""

import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait as wait_for
from typing import ClassVar, final

from torch import Tensor

from gradsift.engine.interface import AbstractEngine, Block, EngineState, Options, Scored
from gradsift.engine.ledger import Ledger, Sent
from gradsift.engine.outbox import Outbox, encoded
from gradsift.engine.packing import pack
from gradsift.engine.seat import FIRST_DEPTH, Seat
from gradsift.engine.snapshot import Board, Writer, make_board
from gradsift.engine.task import Task
from gradsift.engine.wire import BEGUN, DONE, FAILED, NOTICE, READY, REFUSED, Record, read_text
from gradsift.errors import UsageError


@final
class LocalEngine(AbstractEngine):
    """Processes of this machine; parameters and scores are in shared memory.

    Each worker opens the data by itself and holds several leases, so that it has work while the
    trainer is inside a step; how many grows while a worker is found without any. Workers run at
    low priority with one thread each, and end when the trainer does, however it does.

    A worker that ends, or that is silent for ``patience`` seconds over one block, is replaced: at
    once the first time, then after 1, 2, 4, … up to 60 seconds, counted anew after a result.

    Args:
        options: as for any engine.
        scorers: how many workers.
        patience: seconds that one block may take.
        starting: seconds that a worker may take to start.

    Attributes:
        seats: one for each worker.
    """

    kind: ClassVar[str] = "local"

    def __init__(
        self,
        options: Options,
        scorers: int = 1,
        patience: float = 60.0,
        starting: float = 60.0,
    ) -> None:
        if scorers < 1 or not (patience > 0 and starting > 0):
            raise UsageError(
                f"the local engine received {scorers} scorers, {patience} s of patience and "
                f"{starting} s to start, expected at least one worker and positive seconds"
            )
        self.options = options
        self.seats = [Seat(number, options.block) for number in range(scorers)]
        self._ledger = Ledger()
        self._outbox = Outbox(options.precision)
        self._sent = Sent()
        self._patience = patience
        self._starting = starting
        self._packed: bytes | None = None
        self._board: Board | None = None
        self._writer: Writer | None = None
        self._lost = 0
        self._restarts = 0

    def start(self, task: Task) -> None:
        """Starts all workers, and waits for the first that is ready."""
        self._packed = pack(task)
        precision, parameters = self.options.precision, task.model.state_dict()
        self._board = make_board(
            {name: encoded(value, precision) for name, value in parameters.items()}
        )
        self._writer = Writer(self._board)
        now = time.monotonic()
        for seat in self.seats:
            seat.start(self._packed, self._board, now)
        while not any(seat.ready for seat in self.seats):
            wait_for([pipe for seat in self.seats for pipe in seat.waitable], 0.1)
            for seat in self.seats:
                self._listen_at_start(seat)
            if time.monotonic() > now + self._starting:
                self.close()
                raise UsageError(
                    f"no worker of the local engine was ready after {self._starting:g} s: look "
                    "at what opening the data set takes, or give it longer by starting=..."
                )

    def publish(self, parameters: Mapping[str, Tensor], version: int) -> None:
        """Copies what has changed into shared memory."""
        if self._writer is not None:
            self._outbox.put(parameters, version)
            self._send()

    def request(self, blocks: Sequence[Block]) -> None:
        """Queues blocks, and hands them out as far as workers have room."""
        self._ledger.ask(blocks)
        self._send()
        self._hand_out()

    def collect(self, wait: float = 0.0) -> list[Scored]:
        """Listens to all workers, replaces the lost, hands out what waits."""
        found = self._look()
        if not found and wait > 0:
            pipes = [pipe for seat in self.seats for pipe in seat.waitable]
            if pipes:
                wait_for(pipes, wait)
            else:
                time.sleep(min(wait, 0.1))
            found = self._look()
        return found

    def close(self) -> None:
        """Kills the workers: they hold nothing that is worth waiting for."""
        self._packed = None
        now = time.monotonic()
        for seat in self.seats:
            if seat.alive:
                self._ledger.lost(seat.number, None, "closed")
                seat.end(kill=True, now=now)

    @property
    def room(self) -> int:
        """Free leases of all workers, without what waits already."""
        free = sum(seat.room for seat in self.seats)
        if not any(seat.ready for seat in self.seats):
            free = FIRST_DEPTH * len(self.seats)
        return max(0, free - self._ledger.waiting)

    @property
    def state(self) -> EngineState:
        """Workers that are ready, and what has happened to others."""
        ready = sum(seat.ready for seat in self.seats)
        return self._ledger.state(
            self.kind,
            workers=ready,
            lost=self._lost,
            restarts=self._restarts,
            published=self._sent,
        )

    def news(self) -> list[str]:
        """Losses, failures, remarks."""
        return self._ledger.told()

    def _send(self) -> None:
        if self._writer is not None and (found := self._outbox.take()) is not None:
            self._sent.add(self._writer.write(*found))

    def _look(self) -> list[Scored]:
        self._send()
        now = time.monotonic()
        found: list[Scored] = []
        for seat in self.seats:
            if seat.alive:
                found += self._listen(seat, now)
            elif self._packed is not None and self._board is not None and now >= seat.restart_at:
                seat.start(self._packed, self._board, now)
                self._restarts += 1
        self._hand_out()
        return found

    def _listen(self, seat: Seat, now: float) -> list[Scored]:
        said, ended = seat.hear()
        found = [scored for record in said if (scored := self._take(seat, record, now))]
        silent = now - seat.heard
        if ended:
            self._lose(seat, "ended", now)
        elif seat.holds and silent > self._patience:
            self._lose(seat, f"was silent for {silent:.0f} s", now)
        elif not seat.ready and silent > self._starting:
            self._lose(seat, f"was not ready after {silent:.0f} s", now)
        return found

    def _take(self, seat: Seat, record: Record, now: float) -> Scored | None:
        seat.heard = now
        if record.kind == READY:
            seat.ready = True
        elif record.kind == BEGUN:
            seat.busy_with = record.ticket
        elif record.kind in (NOTICE, REFUSED):
            self._ledger.news.append(read_text(seat.lanes, 0, record.start))
        elif record.kind == FAILED:
            text = read_text(seat.lanes, record.lane, record.start)
            seat.take_back(record.ticket)
            self._ledger.failed(record.ticket, text)
        elif record.kind == DONE:
            return self._deliver(seat, record)
        return None

    def _deliver(self, seat: Seat, record: Record) -> Scored | None:
        seat.take_back(record.ticket)
        block = self._ledger.done(record.ticket)
        if block is None:
            return None
        seat.losses = 0
        scores = seat.lanes[record.lane, : block.numbers].clone()
        return Scored(block, scores, record.version, record.seconds)

    def _lose(self, seat: Seat, how: str, now: float) -> None:
        busy_with = seat.busy_with
        code = seat.end(kill=True, now=now)
        wait = seat.restart_at - now
        self._lost += 1
        reason = f"worker {seat.number} {how} (exit code {code})"
        self._ledger.news.append(f"{reason}: started again {f'in {wait:g} s' if wait else 'now'}")
        self._ledger.lost(seat.number, busy_with, reason)

    def _hand_out(self) -> None:
        if not self._sent.sets:
            return
        now = time.monotonic()
        for seat in self.seats:
            if seat.ready and not seat.holds and self._ledger.delivered:
                seat.deepen()
            while seat.room and (lease := self._ledger.lease(seat.number)) is not None:
                if not seat.give(lease, now):
                    break

    def _listen_at_start(self, seat: Seat) -> None:
        """A worker that refuses or ends before any was ready will do so again."""
        said, ended = seat.hear()
        for record in said:
            if record.kind == REFUSED:
                text = read_text(seat.lanes, 0, record.start)
                self.close()
                raise UsageError(f"a worker of the local engine cannot start: {text}")
            self._take(seat, record, time.monotonic())
        if ended and not seat.ready:
            code = seat.end(kill=False, now=time.monotonic())
            self.close()
            raise UsageError(
                f"a worker of the local engine ended while it started (exit code {code}): a "
                "script that uses it needs the guard if __name__ == '__main__':"
            )
