"""Who computes which gradient: each batch ends in one update, whoever dies on the way.

Pure bookkeeping, without processes, clocks or tensors: faults are calls. Every gradient that is
asked for has a ticket with a number that is never used again. A ticket is taken once; that of a
worker that was lost is void, its batch is handed out anew, and a gradient that comes for it later
is refused and counted.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from gradsift.errors import UsageError
from gradsift.parallel.arrivals import Arrival


@dataclass(frozen=True)
class Ticket:
    """One gradient that a worker was asked for.

    Attributes:
        number: never used again.
        worker: who computes it, for rules that remember workers.
        read: how many gradients the server had received when its weights were read.
        batch: the place of its batch in the stream of batches, from 0.

    Example:
        >>> Ticket(number=7, worker=2, read=5, batch=6).read
        5
    """

    number: int
    worker: int
    read: int
    batch: int


class AbstractTickets(ABC):
    """Hands out tickets and takes them back.

    Args:
        total: batches, each of which is trained on once.

    Attributes:
        total: likewise.
        taken: tickets in the order of their updates; as many as the server has received.
        lost: tickets that became void because their worker was lost, or the server.
        refused: gradients that came for a void ticket, or twice, and were not applied.
        undone: updates that were lost with the server, and made again.
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise UsageError(f"{total} batches received, expected at least 1")
        self.total = total
        self.taken: list[Ticket] = []
        self.lost = self.refused = self.undone = 0
        self._number = self._issued = 0
        self._open: dict[int, tuple[int, Ticket]] = {}
        self._again: list[int] = []
        self._fresh = 0

    @property
    def received(self) -> int:
        """Gradients that the server has."""
        return len(self.taken)

    @property
    def issued(self) -> int:
        """Tickets so far; each was taken, undone or lost, or is open."""
        return self._issued

    @property
    def open(self) -> int:
        """Tickets that gradients may still come for."""
        return len(self._open)

    def __contains__(self, number: object) -> bool:
        """Whether a gradient for this ticket still counts."""
        return number in self._open

    def join(self, worker: int) -> None:
        """A worker that can compute, new or back again."""
        del worker

    @abstractmethod
    def issue(self, worker: int) -> Ticket | None:
        """The next gradient for a worker that is idle; None while it has to wait."""

    @abstractmethod
    def deliver(self, number: int) -> list[Ticket]:
        """A gradient is there: what is applied now, in this order."""

    def leave(self, worker: int) -> list[int]:
        """A worker is lost; returns the numbers of its tickets, which are void."""
        void = [number for number, (holder, _) in self._open.items() if holder == worker]
        for number in void:
            self._again.append(self._open.pop(number)[1].batch)
        self._again.sort()
        self.lost += len(void)
        return void

    def roll_back(self, received: int) -> None:
        """The server is lost and goes on from its state after so many gradients."""
        self.undone += self.received - received
        self._again += [ticket.batch for ticket in self.taken[received:]]
        self._again += [ticket.batch for _, ticket in self._open.values()]
        self._again.sort()
        self.lost += len(self._open)
        self._open.clear()
        del self.taken[received:]

    def go_on(self, taken: Sequence[Ticket]) -> None:
        """Before the first ticket: the server has received these already, in another process."""
        self.taken = list(taken)
        done = {ticket.batch for ticket in taken}
        self._fresh = max(done, default=-1) + 1
        self._again = sorted(set(range(self._fresh)) - done)
        self._number = max((ticket.number for ticket in taken), default=-1) + 1
        self._issued = len(taken)

    def _hand_out(self, holder: int, worker: int, read: int) -> Ticket:
        """The first batch that nobody has."""
        batch = self._next()
        if self._again:
            self._again.pop(0)
        else:
            self._fresh += 1
        ticket = Ticket(self._number, worker, read, batch)
        self._open[ticket.number] = holder, ticket
        self._number += 1
        self._issued += 1
        return ticket

    def _next(self) -> int:
        return self._again[0] if self._again else self._fresh

    def _close(self, number: int) -> Ticket | None:
        """The ticket of a gradient that counts; None for one that does not."""
        found = self._open.pop(number, None)
        if found is None:
            self.refused += 1
            return None
        return found[1]


@final
class MeasuredTickets(AbstractTickets):
    """Gradients are applied as they come; staleness is bounded by waiting.

    A ticket is handed out only while no gradient can get older than ``longest``: even if the
    oldest open ticket comes last, it is at most so many gradients late. With a bound s the workers
    are *stale synchronous parallel* too: one that has delivered c gradients gets the next ticket
    only while ``c − min over workers <= s``. A worker that joins starts at that minimum.

    Args:
        total: batches.
        longest: the most gradients that may arrive while one is computed.
        bound: s, or None.

    Reference:
        Ho et al. 2013, "More effective distributed ML via a stale synchronous parallel parameter
        server"; reads are current here.

    Example:
        >>> tickets = MeasuredTickets(total=3, longest=4)
        >>> first, second = tickets.issue(0), tickets.issue(1)
        >>> tickets.deliver(second.number), tickets.leave(0)
        ([Ticket(number=1, worker=1, read=0, batch=1)], [0])
        >>> tickets.deliver(first.number), tickets.refused
        ([], 1)
        >>> tickets.issue(1), tickets.received
        (Ticket(number=2, worker=1, read=1, batch=0), 1)
    """

    def __init__(self, total: int, longest: int, bound: int | None = None) -> None:
        super().__init__(total)
        if longest < 0 or (bound is not None and bound < 0):
            raise UsageError(
                f"a staleness of at most {longest} and a bound of {bound} received, expected "
                "numbers of at least 0"
            )
        self._longest = longest
        self._bound = bound
        self._clocks: dict[int, int] = {}

    def join(self, worker: int) -> None:
        """It starts with the worker that has delivered least."""
        self._clocks.setdefault(worker, min(self._clocks.values(), default=0))

    def leave(self, worker: int) -> list[int]:
        """Nobody waits for it any more."""
        self._clocks.pop(worker, None)
        return super().leave(worker)

    def roll_back(self, received: int) -> None:
        """All workers are even again."""
        super().roll_back(received)
        self._clocks = dict.fromkeys(self._clocks, 0)

    def issue(self, worker: int) -> Ticket | None:
        """None when all is handed out, or the worker has to wait for slower ones."""
        self.join(worker)
        if self._next() >= self.total:
            return None
        oldest = min((ticket.read for _, ticket in self._open.values()), default=self.received)
        if self.received + len(self._open) - oldest > self._longest:
            return None
        ahead = self._clocks[worker] - min(self._clocks.values())
        if self._bound is not None and ahead > self._bound:
            return None
        return self._hand_out(worker, worker, self.received)

    def deliver(self, number: int) -> list[Ticket]:
        """The ticket itself, at once."""
        holder = self._open[number][0] if number in self._open else None
        ticket = self._close(number)
        if ticket is None:
            return []
        if holder in self._clocks:
            self._clocks[holder] += 1
        self.taken.append(ticket)
        return [ticket]


@final
class PlannedTickets(AbstractTickets):
    """Gradients are applied in an order that was made before, at the weights that it names.

    Whoever computes arrival t, it is computed at the weights after ``arrivals[t].read`` gradients,
    and applied as number t: the result is that of the simulation, to the bit.

    Args:
        arrivals: the order; batch t of the stream belongs to arrival t.

    Example:
        >>> tickets = PlannedTickets([Arrival(0, 0), Arrival(1, 0)])
        >>> first, second = tickets.issue(5), tickets.issue(6)
        >>> tickets.deliver(second.number)
        []
        >>> [(ticket.worker, ticket.batch) for ticket in tickets.deliver(first.number)]
        [(0, 0), (1, 1)]
    """

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        super().__init__(len(arrivals))
        self._arrivals = arrivals
        self._waiting: dict[int, Ticket] = {}

    @property
    def open(self) -> int:
        """With gradients that wait for their turn."""
        return super().open + len(self._waiting)

    def issue(self, worker: int) -> Ticket | None:
        """None while the weights of the next arrival are not there yet."""
        place = self._next()
        if place >= self.total or self._arrivals[place].read > self.received:
            return None
        arrival = self._arrivals[place]
        return self._hand_out(worker, arrival.worker, arrival.read)

    def deliver(self, number: int) -> list[Ticket]:
        """Everything whose turn it is."""
        ticket = self._close(number)
        if ticket is not None:
            self._waiting[ticket.batch] = ticket
        ready = []
        while (due := self._waiting.pop(self.received, None)) is not None:
            self.taken.append(due)
            ready.append(due)
        return ready

    def roll_back(self, received: int) -> None:
        """What waits for its turn is computed again: its weights are gone."""
        self.lost += len(self._waiting)
        self._again += self._waiting
        self._waiting.clear()
        super().roll_back(received)
