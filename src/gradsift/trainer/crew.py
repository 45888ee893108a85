"""Who trains in a run of parallel SGD: simulated workers in this process, or real ones.

A crew moves on by one round at a time. The server of the run's own process is where its results
are: a simulation works on it, and a crew of other processes brings it up to date when asked to.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor, nn

from gradsift.parallel import AbstractGuide, DrawnBatches, ParameterServer
from gradsift.parallel.actors import AbstractActors
from gradsift.parallel.coordinator import Coordinator
from gradsift.parallel.recording import Recording
from gradsift.parallel.service import Progress, Service, progress_of
from gradsift.parallel.tickets import AbstractTickets, Ticket

RECORDED = "arrivals.csv"
"""In the folder of a run on real workers: the order in which gradients arrived."""

Rate = Callable[[int], float]
"""From the gradients that the server has received to the learning rate of its next update."""


class AbstractCrew(ABC):
    """Moves the run on.

    Attributes:
        kind: as in ``summary.json``.
        workers_lost: likewise.
        restarts: likewise.
    """

    kind: ClassVar[str]
    workers_lost: int = 0
    restarts: int = 0

    @abstractmethod
    def advance(self) -> Progress:
        """One more round; where the server is after it."""

    @abstractmethod
    def refresh(self) -> None:
        """Brings the run's own server, model and guide to where training is."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that later rounds depend on: plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; before the first round.

        Raises:
            UsageError: for the state of another kind of optimiser, guide or model.
        """

    def news(self) -> list[str]:
        """What happened since it was last asked, in words."""
        return []

    def write(self, folder: Path) -> None:
        """What is worth keeping beside the results."""
        del folder

    @abstractmethod
    def close(self) -> None:
        """Ends processes, if there are any."""


@final
class SimulatedCrew(AbstractCrew):
    """The algorithms of `gradsift.parallel`, in this process.

    Args:
        service: its server, guide and what they look at.
        server: the same server.
        guide: the same guide.
        drawn: batches that workers draw from a table of theirs, or None.
        model: for the buffers, which gradients move as well.
        rounds: the algorithm, from so many rounds on.
        rate: the learning rate of each update.
    """

    kind: ClassVar[str] = "simulate"

    def __init__(
        self,
        service: Service,
        server: ParameterServer,
        guide: AbstractGuide | None,
        drawn: DrawnBatches | None,
        model: nn.Module,
        rounds: Callable[[int], Iterator[int]],
        rate: Rate,
    ) -> None:
        self._service = service
        self._server = server
        self._guide = guide
        self._drawn = drawn
        self._model = model
        self._make = rounds
        self._rate = rate
        self._rounds: Iterator[int] | None = None

    def advance(self) -> Progress:
        """One update, with the corrections after it."""
        if self._rounds is None:
            self._rounds = self._make(self._server.received)
        for group in self._server.optimizer.param_groups:
            group["lr"] = self._rate(self._server.received)
        next(self._rounds)
        self._service.note_weights()
        return progress_of(self._server, self._guide)

    def refresh(self) -> None:
        """Training is here."""

    def close(self) -> None:
        """Nobody is left."""

    def state_dict(self) -> dict[str, Any]:
        """Of server and guide, what workers have drawn, and the model's buffers."""
        return {
            "service": self._service.state_dict(),
            "drawn": None if self._drawn is None else self._drawn.state_dict(),
            "buffers": {name: value.clone() for name, value in self._model.named_buffers()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Batches and arrivals are made again by the seed, and skipped."""
        self._service.load_state_dict(state["service"])
        if self._drawn is not None:
            self._drawn.load_state_dict(state["drawn"])
        for name, value in self._model.named_buffers():
            value.copy_(state["buffers"][name])


@final
class ActorsCrew(AbstractCrew):
    """Real workers and a real server.

    Args:
        actors: the processes.
        tickets: in which order gradients are applied.
        stream: batches.
        service: of the run's own server, guide and what they look at.
        workers: how many.
        rate: the learning rate of each update.
    """

    kind: ClassVar[str] = "ray"

    def __init__(
        self,
        actors: AbstractActors,
        tickets: AbstractTickets,
        stream: Iterator[Tensor],
        service: Service,
        workers: int,
        rate: Rate,
    ) -> None:
        self._actors = actors
        self._tickets = tickets
        self._stream = stream
        self._service = service
        self._workers = workers
        self._rate = rate
        self._coordinator: Coordinator | None = None
        self._rounds: Iterator[Progress] = iter(())
        self._told = 0

    @property
    def coordinator(self) -> Coordinator:
        """Made when it is first needed, from the state of the run's own server."""
        if self._coordinator is None:
            self._coordinator = Coordinator(
                self._actors,
                self._tickets,
                self._stream,
                self._service.state_dict(),
                self._workers,
                rate=self._rate,
            )
            self._rounds = self._coordinator.run()
        return self._coordinator

    def advance(self) -> Progress:
        """One gradient; what is received falls when the server was lost."""
        coordinator = self.coordinator
        progress = next(self._rounds)
        self.workers_lost, self.restarts = coordinator.workers_lost, coordinator.restarts
        return progress

    def refresh(self) -> None:
        """Fetches the state of the real server."""
        self._service.load_state_dict(self.coordinator.current())

    def state_dict(self) -> dict[str, Any]:
        """Of the server, and the tickets that it has."""
        state = self.coordinator.current()
        taken = self._tickets.taken[: self.coordinator.saved]
        rows = [[ticket.number, ticket.worker, ticket.read, ticket.batch] for ticket in taken]
        return {"service": state, "taken": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The run's own server first: the real one is opened with its state."""
        self._service.load_state_dict(state["service"])
        self._tickets.go_on([Ticket(*row) for row in state["taken"]])

    def news(self) -> list[str]:
        """Losses and what was done about them."""
        found = self.coordinator.news[self._told :]
        self._told += len(found)
        return found

    def write(self, folder: Path) -> None:
        """The order of arrivals, once every batch was trained on."""
        if self._tickets.received == self._tickets.total:
            Recording.of(self._tickets.taken).write(folder / RECORDED)

    def close(self) -> None:
        """Ends workers and server."""
        self._actors.close()
