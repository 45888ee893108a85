"""The engine that is no other: the same calls, in the trainer's own process. The reference."""

from collections import deque
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import ClassVar, final

import torch
from torch import Tensor

from gradsift.engine.interface import AbstractEngine, Block, EngineState, Options, Scored
from gradsift.engine.ledger import Ledger, Sent
from gradsift.engine.outbox import bytes_of, encoded
from gradsift.engine.task import Examiner, Task
from gradsift.errors import UsageError

WORKER = 0


@final
class InlineEngine(AbstractEngine):
    """Scores in `collect`, in this process, in the order of the requests.

    It is what the others are compared with, and how staleness is studied without processes:
    ``rate`` and ``delay`` set, exactly and repeatably, how old scores are.

    Args:
        options: as for any engine.
        rate: blocks scored in each call of ``collect()``; a call that waits scores all.
        delay: calls of ``collect()`` between measuring a block and handing its scores out; a call
            that waits hands out all.
    """

    kind: ClassVar[str] = "inline"
    pays: ClassVar[bool] = True

    def __init__(self, options: Options, rate: int = 1, delay: int = 0) -> None:
        if rate < 1 or delay < 0:
            raise UsageError(
                f"the inline engine received rate {rate} and delay {delay}, expected a rate of at "
                "least one block per step and a delay of at least 0 steps"
            )
        self.options = options
        self._rate = rate
        self._delay = delay
        self._ledger = Ledger()
        self._sent = Sent()
        self._examiner: Examiner | None = None
        self._pending: tuple[Mapping[str, Tensor], int] | None = None
        self._ready: deque[tuple[int, Scored]] = deque()
        self._calls = 0
        self._notices: list[str] = []

    def start(self, task: Task) -> None:
        """Opens the data."""
        self._examiner = Examiner(task)
        if self._examiner.notice:
            self._notices.append(self._examiner.notice)

    def publish(self, parameters: Mapping[str, Tensor], version: int) -> None:
        """Copies them at once."""
        precision = self.options.precision
        copies = {name: encoded(value, precision).clone() for name, value in parameters.items()}
        self._pending = (copies, version)
        self._sent.add(bytes_of(copies))

    def request(self, blocks: Sequence[Block]) -> None:
        """Queues them for `collect`."""
        self._ledger.ask(blocks)

    def collect(self, wait: float = 0.0) -> list[Scored]:
        """Scores ``rate`` blocks, and returns those that are ``delay`` calls old."""
        self._calls += 1
        todo = self._ledger.waiting if wait > 0 else self._rate
        while todo > 0 and self._score_next():
            todo -= 1
        due = self._calls if wait > 0 else self._calls - self._delay
        found: list[Scored] = []
        while self._ready and self._ready[0][0] <= due:
            found.append(self._ready.popleft()[1])
        return found

    def close(self) -> None:
        """Forgets the data and the copies."""
        self._examiner = None
        self._pending = None

    @property
    def room(self) -> int:
        """As many as the next call scores."""
        return max(0, self._rate - self._ledger.waiting)

    @property
    def state(self) -> EngineState:
        """One worker, which cannot be lost, while it is started."""
        workers = int(self._examiner is not None)
        return self._ledger.state(self.kind, workers=workers, published=self._sent)

    def news(self) -> list[str]:
        """Blocks that failed."""
        told, self._notices = [*self._notices, *self._ledger.told()], []
        return told

    def _score_next(self) -> bool:
        examiner = self._examiner
        if examiner is None or (self._pending is None and examiner.version < 0):
            return False
        lease = self._ledger.lease(WORKER)
        if lease is None:
            return False
        if self._pending is not None:
            examiner.load(*self._pending)
            self._pending = None
        start = perf_counter()
        try:
            block = lease.block
            scores = examiner.answer(block.start, block.stop, block.part)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - one bad block stops no training
            self._ledger.failed(lease.ticket, f"{type(error).__name__}: {error}")
            return True
        seconds = perf_counter() - start
        scored = Scored(lease.block, scores, examiner.version, seconds)
        self._ready.append((self._calls, scored))
        self._ledger.done(lease.ticket)
        return True
