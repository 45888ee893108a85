"""The parameter server and the workers as actors of a Ray cluster.

Extra ``ray``. Ray rebuilds an actor by its constructor at most, so nothing is left to it: what the
server knows is fetched from time to time, and a new one is opened with it.
"""

import pickle
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from gradsift.engine.ray_cluster import connect, ray, reason_of, start_actor
from gradsift.errors import DataError, TrainingError, UsageError
from gradsift.parallel.actors import AbstractActors, Heard, ServerLostError
from gradsift.parallel.objective import AbstractObjective
from gradsift.parallel.service import Progress, Service
from gradsift.parallel.tickets import Ticket

PAUSE = 0.05
"""Seconds to sleep while nobody is at work."""


class ServerActor:
    """Holds a `Service`.

    Args:
        packed: the function that makes it, pickled.
    """

    def __init__(self, packed: bytes) -> None:
        torch.set_num_threads(1)
        self._packed = packed
        self._service: Service | None = None

    def open(self, state: Mapping[str, Any]) -> tuple[Progress, list[Tensor]]:
        """Makes the service and goes on from a state."""
        self._service = pickle.loads(self._packed)()
        self._open_service.load_state_dict(state)
        return self._told()

    def apply(
        self, ticket: Ticket, gradients: list[Tensor], batch: Tensor, rate: float | None
    ) -> tuple[Progress, list[Tensor]]:
        """One update; the weights after it come back with the progress."""
        self._open_service.apply(ticket, gradients, batch, rate)
        return self._told()

    def weights(self, received: int) -> list[Tensor]:
        """Older weights, as far as the server remembers them."""
        return self._open_service.weights(received)

    def save(self) -> dict[str, Any]:
        """The whole state."""
        return self._open_service.state_dict()

    @property
    def _open_service(self) -> Service:
        if self._service is None:
            raise TrainingError("the parameter server was not opened")
        return self._service

    def _told(self) -> tuple[Progress, list[Tensor]]:
        progress = self._open_service.progress
        return progress, self._open_service.weights(progress.received)


class WorkerActor:
    """Computes gradients.

    Args:
        packed: the function that makes the objective, pickled.
    """

    def __init__(self, packed: bytes) -> None:
        torch.set_num_threads(1)
        self._packed = packed
        self._objective: AbstractObjective | None = None

    def open(self) -> None:
        """Makes the objective: reads the data, builds the model."""
        self._objective = pickle.loads(self._packed)()

    def gradient(self, weights: list[Tensor], batch: Tensor) -> tuple[None, list[Tensor]]:
        """A small answer, which says that there is the large one."""
        if self._objective is None:
            raise TrainingError("the worker was not opened")
        # Ray's store is read-only memory.
        return None, self._objective.gradient([weight.clone() for weight in weights], batch)


@final
class RayActors(AbstractActors):
    """See `gradsift.parallel.ray_actors`."""

    def __init__(
        self,
        make_objective: Callable[[], AbstractObjective],
        make_service: Callable[[], Service],
        address: str | None = None,
    ) -> None:
        if ray is None:
            raise UsageError("workers on Ray need ray: run pip install 'gradsift[ray]'")
        self._make_objective = _pack(make_objective)
        self._make_service = _pack(make_service)
        self._ours = connect(address)
        self._server: Any = None
        self._workers: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, int | None, Any]] = {}
        self._latest: tuple[int, Any] = (-1, None)

    def open(self, state: Mapping[str, Any]) -> Progress:
        """Starts an actor and waits for it."""
        if self._server is not None:
            ray.kill(self._server)
        self._server = start_actor(ServerActor, self._make_service, ours=self._ours)
        return self._answered(self._server.open.options(num_returns=2).remote(dict(state)))

    def apply(self, ticket: Ticket, gradients: Any, batch: Tensor, rate: float | None) -> Progress:
        """Waits until it is done."""
        call = self._server.apply.options(num_returns=2)
        return self._answered(call.remote(ticket, gradients, batch, rate))

    def save(self) -> dict[str, Any]:
        """Fetches the state, so that it outlives the server's node."""
        return self._get(self._server.save.remote())

    def hire(self, worker: int) -> None:
        """Starts an actor; it is ready once its objective is made."""
        actor = start_actor(WorkerActor, self._make_objective, ours=self._ours)
        self._workers[worker] = actor
        self._calls[actor.open.remote()] = worker, None, None

    def ask(self, worker: int, ticket: Ticket, batch: Tensor) -> None:
        """The weights go from the object store to the worker."""
        received, weights = self._latest
        if ticket.read != received:
            weights = self._server.weights.remote(ticket.read)
            self._get(weights)
        call = self._workers[worker].gradient.options(num_returns=2)
        done, gradients = call.remote(weights, batch)
        self._calls[done] = worker, ticket.number, gradients

    def hear(self, wait: float) -> list[Heard]:
        """The oldest call that has ended, if any."""
        if not self._calls:
            time.sleep(min(wait, PAUSE))
            return []
        ended, _ = ray.wait(list(self._calls), num_returns=1, timeout=wait)
        found = []
        for done in ended:
            worker, ticket, gradients = self._calls.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise _as_ours(error, f"worker {worker} failed") from error
            except ray.exceptions.RayError as error:
                lost = f"ended ({type(error).__name__})"
                found.append(Heard(worker, lost=lost))
            else:
                found.append(Heard(worker, ticket, gradients))
        return found

    def dismiss(self, worker: int) -> None:
        """Kills the actor and forgets its calls."""
        if (actor := self._workers.pop(worker, None)) is not None:
            ray.kill(actor)
        mine = [done for done, (whose, _, _) in self._calls.items() if whose == worker]
        for done in mine:
            del self._calls[done]

    def close(self) -> None:
        """Kills all actors; stops the cluster only if it is ours."""
        if ray.is_initialized():
            for worker in list(self._workers):
                self.dismiss(worker)
            if self._server is not None:
                ray.kill(self._server)
            if self._ours:
                ray.shutdown()
        self._server, self._ours = None, False
        self._latest = (-1, None)

    def _answered(self, call: list[Any]) -> Progress:
        told, weights = call
        progress: Progress = self._get(told)
        self._latest = progress.received, weights
        return progress

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise _as_ours(error, "the parameter server failed") from error
        except ray.exceptions.RayError as error:
            raise ServerLostError(f"ended ({type(error).__name__})") from error


def _pack(make: Callable[[], Any]) -> bytes:
    """By value where it is no name in a module, as Ray itself does it."""
    try:
        return ray.cloudpickle.dumps(make)
    except Exception as error:
        raise UsageError(
            f"the model, the loss or the data cannot be sent to a worker ({reason_of(error)}): "
            "define them in a module"
        ) from error


def _as_ours(error: Any, what: str) -> Exception:
    """The exception of an actor in this process, on one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UsageError | DataError | TrainingError):
        return type(cause)(str(cause))
    return TrainingError(f"{what}: {reason_of(error)}")
