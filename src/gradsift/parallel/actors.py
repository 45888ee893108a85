"""What the coordinator asks of processes: one holds the parameter server, the others compute.

A worker is known by a number, a gradient by its ticket. What a worker delivers is opaque to the
coordinator, which hands it on to the server, so that it need not pass through the coordinator's
own process.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradsift.parallel.objective import AbstractObjective
from gradsift.parallel.service import Progress, Service
from gradsift.parallel.tickets import Ticket

RAY = "gradsift.parallel.ray"
"""Imported when it is asked for: Ray takes a second to import, and is an extra."""


class ServerLostError(Exception):
    """The server's process is gone; another one can go on from the last state that was saved."""


@dataclass(frozen=True, eq=False)
class Heard:
    """What a worker says, or what is said of it: it is ready, it delivers, or it is lost.

    Attributes:
        worker: its number.
        ticket: the number of the ticket that it delivers for; None otherwise.
        gradients: what it delivers, for `AbstractActors.apply`.
        lost: how it ended; None while it lives.

    Example:
        >>> Heard(worker=1, lost="was killed").ticket is None
        True
    """

    worker: int
    ticket: int | None = None
    gradients: Any = None
    lost: str | None = None


class AbstractActors(ABC):
    """One server and any number of workers."""

    @abstractmethod
    def open(self, state: Mapping[str, Any]) -> Progress:
        """Starts a server that goes on from a state; the one before, if any, is given up.

        Raises:
            ServerLostError: when it dies at once.
            UsageError: when no server can be made, or the state is not for it.
        """

    @abstractmethod
    def apply(self, ticket: Ticket, gradients: Any, batch: Tensor, rate: float | None) -> Progress:
        """Applies what was heard; see `Service.apply`.

        Raises:
            ServerLostError: when it is not known whether the server did.
            TrainingError: for an update or a correction that fails.
        """

    @abstractmethod
    def save(self) -> dict[str, Any]:
        """The state of the server, in this process.

        Raises:
            ServerLostError: when the server is gone.
        """

    @abstractmethod
    def hire(self, worker: int) -> None:
        """Starts a worker, which is heard of when it is ready."""

    @abstractmethod
    def ask(self, worker: int, ticket: Ticket, batch: Tensor) -> None:
        """Gives a worker the weights after ``ticket.read`` gradients, and a batch.

        Raises:
            ServerLostError: when the weights are gone with the server.
        """

    @abstractmethod
    def hear(self, wait: float) -> list[Heard]:
        """What has been said, each thing once; waits at most so many seconds for the first.

        Raises:
            TrainingError: for a gradient that cannot be computed.
        """

    @abstractmethod
    def dismiss(self, worker: int) -> None:
        """Ends a worker; nothing is heard of it any more."""

    @abstractmethod
    def close(self) -> None:
        """Ends everybody; may be called twice."""


def ray_actors(
    make_objective: Callable[[], AbstractObjective],
    make_service: Callable[[], Service],
    address: str | None = None,
) -> AbstractActors:
    """A parameter server and workers as actors of a Ray cluster; needs ``gradsift[ray]``.

    Without an address, Ray is started on this machine and stopped by ``close()``. A cluster that
    this process is connected to, or that the address names, is joined and left as it was. Modules
    and data must be found under the same names on every node. Every actor computes with one
    thread, so that the same gradient is the same to the bit wherever it is computed.

    Bytes over the wire, per gradient: the weights to the worker, the gradient to the server.

    Args:
        make_objective: makes what a worker computes.
        make_service: makes the server's side; its weights come with the state it is opened with.
        address: of the cluster, as for ``ray.init``.

    Raises:
        UsageError: when Ray is missing, or cannot be reached or started.

    Example:
        >>> actors = ray_actors(make_objective, make_service)  # doctest: +SKIP
    """
    return importlib.import_module(RAY).RayActors(make_objective, make_service, address)
