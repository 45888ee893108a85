"""Asynchronous SGD on processes: who is asked for what, what is applied, and what a loss means.

The loop knows no engine. Its rules for faults: a worker that ends, or is silent for too long, is
replaced, and its batch goes to another; a server that ends is opened again from its last state,
and the updates since are made again. Either way every batch ends in exactly one update.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, final

from torch import Tensor

from gradsift.engine.ledger import back_off
from gradsift.errors import TrainingError, UsageError
from gradsift.parallel.actors import AbstractActors, Heard, ServerLostError
from gradsift.parallel.recording import Batches
from gradsift.parallel.service import Progress
from gradsift.parallel.tickets import AbstractTickets, Ticket

WAIT = 0.1
"""Seconds that the loop listens before it looks at its clocks again."""

TRIES = 5
"""Losses in a row, of every worker or of the server, after which training cannot go on."""


class _At(Enum):
    AWAY = auto()
    STARTING = auto()
    IDLE = auto()
    BUSY = auto()


@dataclass
class _Post:
    """One worker's place."""

    number: int
    at: _At = _At.AWAY
    since: float = 0.0
    losses: int = 0


@final
class Coordinator:
    """Runs a server and workers until every batch was trained on.

    Args:
        actors: the processes.
        tickets: how late gradients may be, or in which order they are applied.
        batches: the stream; ``tickets.total`` of them are used.
        state: of `Service.state_dict`, which the server is opened with.
        workers: how many are started.
        rate: the learning rate of update k, from 0; None leaves the optimiser's.
        every: updates between two states of the server that are kept.
        patience: seconds that one gradient may take before its worker is given up.
        starting: seconds that a worker may take until it is ready: it reads the data first.
        clock: monotonic seconds.

    Attributes:
        tickets: likewise.
        state: of the server, the last that was kept.
        saved: how many gradients it has.
        workers_lost: workers that ended, or were silent for too long.
        restarts: workers that were started again, and servers.
        news: what happened, in words.

    Raises:
        UsageError: when no worker can start.
        TrainingError: when everybody is lost again and again.

    Example:
        >>> actors = ray_actors(make_objective, make_service)  # doctest: +SKIP
        >>> tickets = MeasuredTickets(total=1000, longest=32)  # doctest: +SKIP
        >>> state = make_service().state_dict()  # doctest: +SKIP
        >>> for progress in Coordinator(actors, tickets, batches, state, 4).run():  # doctest: +SKIP
        ...     print(progress.received, progress.version)
    """

    def __init__(
        self,
        actors: AbstractActors,
        tickets: AbstractTickets,
        batches: Iterable[Tensor],
        state: Mapping[str, Any],
        workers: int,
        *,
        rate: Callable[[int], float] | None = None,
        every: int = 100,
        patience: float = 60.0,
        starting: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if workers < 1 or every < 1 or not patience > 0:
            raise UsageError(
                f"{workers} workers, a state every {every} updates and a patience of {patience} s "
                "received, expected at least 1, 1 and a positive number of seconds"
            )
        self.tickets = tickets
        self.state = state
        self.saved = tickets.received
        self.workers_lost = self.restarts = 0
        self.news: list[str] = []
        self._actors = actors
        self._batches = Batches(batches)
        self._batches.skip(ticket.batch for ticket in tickets.taken)
        self._rate = rate
        self._every = every
        self._patience = patience
        self._starting = starting
        self._clock = clock
        self._posts = [_Post(number) for number in range(workers)]
        self._held: dict[int, Any] = {}
        self._due: deque[Ticket] = deque()
        self._server_losses = 0
        self._once_ready = self._begun = False
        self._progress = Progress(self.saved, 0, 0, 0, finite=True)

    def run(self) -> Iterator[Progress]:
        """Trains; yields after every update. What is received can fall when a server was lost."""
        try:
            self._progress = self._open()
        except ServerLostError as error:
            self._progress = self._revive(error)
        for post in self._posts:
            self._hire(post)
        while self.saved < self.tickets.total:
            try:
                self._hand_out()
                for heard in self._actors.hear(WAIT):
                    self._note(heard)
                while self._due:
                    self._progress = self._apply(self._due.popleft(), self._progress)
                    yield self._progress
            except ServerLostError as error:
                self._progress = self._revive(error)
            self._look_after()

    def add(self) -> int:
        """One more worker, from now on; returns its number."""
        post = _Post(len(self._posts))
        self._posts.append(post)
        self._hire(post)
        return post.number

    def current(self) -> Mapping[str, Any]:
        """The state of the server now; the last that was kept, where it is lost just now."""
        if self._progress.received != self.saved:
            try:
                self._save(self._progress)
            except ServerLostError as error:
                self.news.append(f"the server {error} while its state was asked for")
        return self.state

    def _open(self) -> Progress:
        progress = self._actors.open(self.state)
        if progress.received != self.saved:
            raise UsageError(
                f"the server's state has {progress.received} gradients, the tickets {self.saved}: "
                "go on with what was saved together"
            )
        return progress

    def _hire(self, post: _Post) -> None:
        self._actors.hire(post.number)
        post.at, post.since = _At.STARTING, self._clock()

    def _hand_out(self) -> None:
        """Nothing until everybody is ready, or was given up: delays then begin as they go on."""
        if not self._begun:
            self._begun = all(post.at is not _At.STARTING for post in self._posts)
            if not self._begun:
                return
        for post in self._posts:
            if post.at is _At.IDLE and (ticket := self.tickets.issue(post.number)) is not None:
                self._actors.ask(post.number, ticket, self._batches[ticket.batch])
                post.at, post.since = _At.BUSY, self._clock()

    def _note(self, heard: Heard) -> None:
        post = self._posts[heard.worker]
        if post.at is _At.AWAY:
            return
        if heard.lost is not None:
            self._lose(post, heard.lost)
            return
        post.at = _At.IDLE
        if heard.ticket is None:
            self._once_ready = True
            self.tickets.join(post.number)
            return
        post.losses = 0
        if heard.ticket in self.tickets:
            self._held[heard.ticket] = heard.gradients
        self._due += self.tickets.deliver(heard.ticket)

    def _apply(self, ticket: Ticket, before: Progress) -> Progress:
        rate = None if self._rate is None else self._rate(before.received)
        gradients, batch = self._held.pop(ticket.number), self._batches[ticket.batch]
        progress = self._actors.apply(ticket, gradients, batch, rate)
        if progress.received != before.received + 1:
            raise TrainingError(
                f"the server has {progress.received} gradients after ticket {ticket.number}, "
                f"expected {before.received + 1}: an update was lost or made twice"
            )
        self._server_losses = 0
        due = progress.received - self.saved >= self._every
        if due or progress.received == self.tickets.total:
            self._save(progress)
        return progress

    def _save(self, progress: Progress) -> None:
        self.state = self._actors.save()
        done = self.tickets.taken[self.saved : progress.received]
        self._batches.drop(ticket.batch for ticket in done)
        self.saved = progress.received

    def _revive(self, error: ServerLostError) -> Progress:
        """Another server goes on from the last state; workers that compute are refused later."""
        self.tickets.roll_back(self.saved)
        self._held.clear()
        self._due.clear()
        while True:
            self._server_losses += 1
            if self._server_losses >= TRIES:
                raise TrainingError(
                    f"the parameter server was lost {TRIES} times without an update between "
                    f"({error}): look at the memory of its machine"
                ) from error
            self.restarts += 1
            self.news.append(f"the server {error}: goes on after {self.saved} gradients")
            try:
                return self._open()
            except ServerLostError as again:
                error = again

    def _lose(self, post: _Post, how: str) -> None:
        if not self._once_ready:
            raise UsageError(f"worker {post.number} cannot start: it {how}")
        self._actors.dismiss(post.number)
        self.tickets.leave(post.number)
        self.workers_lost += 1
        post.losses += 1
        post.at, post.since = _At.AWAY, self._clock() + back_off(post.losses)
        self.news.append(f"worker {post.number} {how}: another one takes its place")
        if all(post.at is _At.AWAY and post.losses >= TRIES for post in self._posts):
            raise TrainingError(
                f"every worker was lost {TRIES} times in a row, the last because it {how}: look "
                "at the memory of their machines"
            )

    def _look_after(self) -> None:
        """Starts again whom it is time for, and gives up whom nothing is heard of."""
        now = self._clock()
        for post in self._posts:
            if post.at is _At.AWAY and now >= post.since:
                self._hire(post)
                self.restarts += 1
            limit = {_At.STARTING: self._starting, _At.BUSY: self._patience}.get(post.at)
            if limit is not None and now - post.since > limit:
                self._lose(post, f"was silent for {now - post.since:.0f} s")
