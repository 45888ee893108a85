"""A process that scores: it opens the data, takes leases from a pipe, and ends with the trainer."""

import os
import pickle
import signal
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from gradsift.engine.snapshot import Board, Reader
from gradsift.engine.task import Examiner
from gradsift.engine.wire import (
    BEGUN,
    DONE,
    FAILED,
    NOTICE,
    READY,
    REFUSED,
    Record,
    receive,
    send,
    write_text,
)

POLITE = 10
"""How much a worker steps back for others on its core, the trainer among them."""


def serve(packed: bytes, board: Board, lanes: Tensor, leases: Any, results: Any) -> None:
    """The life of a worker process.

    Args:
        packed: a pickled `Task`, which the trainer sent to this process alone.
        board: where published parameters are.
        lanes: float32, shared; one row per lease.
        leases: end of a pipe, from the trainer; it ends when the trainer does.
        results: end of a pipe, to the trainer.
    """
    # Ctrl-C reaches the whole group; the trainer decides, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(POLITE)
    torch.set_num_threads(1)
    try:
        examiner = Examiner(pickle.loads(packed))
    except Exception as error:  # noqa: BLE001 - whatever is wrong, the trainer says it
        _say(results, lanes, REFUSED, f"{type(error).__name__}: {error}")
        return
    try:
        if examiner.notice:
            _say(results, lanes, NOTICE, examiner.notice)
        send(results, Record(READY))
        _serve(_Desk(examiner, Reader(board), lanes, results), leases)
    except (EOFError, OSError):
        return


@dataclass(eq=False)
class _Desk:
    """What a ready worker works with."""

    examiner: Examiner
    reader: Reader
    lanes: Tensor
    results: Any
    loaded: int = 0

    def score(self, lease: Record) -> Record:
        """Scores one lease with the newest parameters; what fails is said, and ends nothing."""
        start = perf_counter()
        lane, examiner = lease.lane, self.examiner
        try:
            newest = self.reader.newest
            if newest != self.loaded and (published := self.reader.read()):
                examiner.load(*published)
                self.loaded = newest
            found = examiner.answer(lease.start, lease.stop, part=lease.kind)
            self.lanes[lane, : len(found)] = found
        except Exception as error:  # noqa: BLE001 - one bad block ends no worker
            length = write_text(self.lanes, lane, f"{type(error).__name__}: {error}")
            return Record(FAILED, lease.ticket, lane, start=length)
        seconds = perf_counter() - start
        return Record(DONE, lease.ticket, lane, version=examiner.version, seconds=seconds)


def _serve(desk: _Desk, leases: Any) -> None:
    while True:
        lease = receive(leases)
        send(desk.results, Record(BEGUN, lease.ticket))
        send(desk.results, desk.score(lease))


def _say(results: Any, lanes: Tensor, kind: int, text: str) -> None:
    """The first lane is free: nothing is leased before `READY`."""
    try:
        send(results, Record(kind, start=write_text(lanes, 0, text)))
    except OSError:
        return
