"""A parameter server as a process of its own holds it: updates by ticket, a guide, whole states.

The arithmetic is that of `gradsift.parallel.asgd`; what is new is that a ticket is applied once,
whatever is sent twice, and that one state has everything, so that another process can go on.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from gradsift.errors import UsageError
from gradsift.parallel.average import TailAverage
from gradsift.parallel.objective import AbstractObjective, Weights
from gradsift.parallel.replay import AbstractGuide
from gradsift.parallel.saved import check_keys
from gradsift.parallel.server import ParameterServer
from gradsift.parallel.tickets import Ticket


@final
class Once:
    """Numbers that have been seen, each counted the first time only.

    Numbers may come in any order. Runs of them are kept by their ends: as many as there are gaps,
    which lost workers leave.

    Example:
        >>> once = Once()
        >>> [once.first(number) for number in (0, 2, 0, 1, 2, 5)]
        [True, True, False, True, False, True]
        >>> once.state_dict()
        {'starts': [0, 5], 'stops': [3, 6]}
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def first(self, number: int) -> bool:
        """Notes a number; whether it is new."""
        place = bisect_right(self._starts, number)
        before = self._stops[place - 1] if place else None
        if before is not None and number < before:
            return False
        touches = before == number, number + 1 in self._starts[place : place + 1]
        if touches == (True, True):
            self._stops[place - 1] = self._stops.pop(place)
            self._starts.pop(place)
        elif touches == (True, False):
            self._stops[place - 1] = number + 1
        elif touches == (False, True):
            self._starts[place] = number
        else:
            self._starts.insert(place, number)
            self._stops.insert(place, number + 1)
        return True

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return {"starts": list(self._starts), "stops": list(self._stops)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Knows what the other knew."""
        check_keys(self, state, {"starts", "stops"})
        self._starts, self._stops = list(state["starts"]), list(state["stops"])


@dataclass(frozen=True)
class Progress:
    """Where a server is.

    Attributes:
        received: gradients that arrived.
        version: updates of the weights, corrections included.
        replays: corrections, counted by the guide.
        evaluations: batches whose loss was computed to choose.
        finite: whether all weights are.

    Example:
        >>> Progress(received=40, version=48, replays=8, evaluations=100, finite=True).version
        48
    """

    received: int
    version: int
    replays: int
    evaluations: int
    finite: bool


def progress_of(server: ParameterServer, guide: AbstractGuide | None) -> Progress:
    """Where a server is, and what its guide has counted."""
    return Progress(
        received=server.received,
        version=server.version,
        replays=0 if guide is None else guide.replays,
        evaluations=0 if guide is None else guide.evaluations,
        finite=all(bool(weight.isfinite().all()) for weight in server.weights),
    )


@final
class Service:
    """A server, its guide, and the tickets that it has applied.

    Args:
        server: holds the weights; its memory must cover the oldest ticket.
        objective: what the guide looks at.
        guide: who replays, or None.
        average: of the weights, or None.
        after: so many gradients are not averaged.

    Example:
        >>> import torch
        >>> from gradsift.parallel.selectors import example_window
        >>> w = torch.zeros(1, 1, requires_grad=True)
        >>> server = ParameterServer([w], torch.optim.SGD([w], lr=1.0))
        >>> service = Service(server, example_window().objective)
        >>> for _ in range(2):
        ...     done = service.apply(Ticket(0, 0, 0, 0), [torch.ones(1, 1)], torch.arange(1), 0.5)
        >>> done.received, w.item()
        (1, -0.5)
    """

    def __init__(
        self,
        server: ParameterServer,
        objective: AbstractObjective,
        guide: AbstractGuide | None = None,
        average: TailAverage | None = None,
        after: float = 0,
    ) -> None:
        self._server = server
        self._objective = objective
        self._guide = guide
        self._average = average
        self._after = after
        self._applied = Once()

    def apply(
        self, ticket: Ticket, gradients: Weights, batch: Tensor, rate: float | None = None
    ) -> Progress:
        """One update, and the corrections after it; nothing, if the ticket was applied already.

        Args:
            ticket: of the gradient.
            gradients: computed on ``batch`` at ``weights(ticket.read)``.
            batch: the ids.
            rate: the learning rate of all groups; None leaves it as it is.
        """
        if self._applied.first(ticket.number):
            if rate is not None:
                for group in self._server.optimizer.param_groups:
                    group["lr"] = rate
            # Gradients from other processes may lie in memory that nobody may write to.
            own = [gradient.clone() for gradient in gradients]
            self._server.push(own, ticket.read, ticket.worker)
            if self._guide is not None:
                self._guide.after_update(self._server, self._objective, [batch])
            self.note_weights()
        return self.progress

    def note_weights(self) -> None:
        """Averages the weights as they are now, once it is time to; `apply` does it by itself."""
        if self._average is not None and self._server.received > self._after:
            self._average.add(self._server.weights)

    @property
    def progress(self) -> Progress:
        """Where the server is now."""
        return progress_of(self._server, self._guide)

    def weights(self, received: int) -> list[Tensor]:
        """The weights after so many gradients, corrections included."""
        return self._server.read(received).weights

    def state_dict(self) -> dict[str, Any]:
        """Everything: server, guide, average and tickets, as plain values."""
        return {
            "server": self._server.state_dict(),
            "guide": None if self._guide is None else self._guide.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "applied": self._applied.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on to the bit where another one was.

        Raises:
            UsageError: for the state of another kind of optimiser, guide, average or model.
        """
        check_keys(self, state, {"server", "guide", "average", "applied"})
        own = {"guide": self._guide, "average": self._average}
        for name, part in own.items():
            if (part is None) != (state[name] is None):
                has, expected = ("with", "without") if part is None else ("without", "with")
                raise UsageError(
                    f"a state {has} {name} received, expected one {expected}: go on with the "
                    "recipe that it was saved with"
                )
        self._server.load_state_dict(state["server"])
        for name, part in own.items():
            if part is not None:
                part.load_state_dict(state[name])
        self._applied.load_state_dict(state["applied"])
