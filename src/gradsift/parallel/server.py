"""The parameter server: weights with a version, any optimiser, and the weights of before.

Two counters: ``received`` counts gradients that arrived, ``version`` counts updates of the
weights, which corrections (replays) add to. A worker reads the weights by the number of gradients
received; the age of its gradient is counted in versions.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.optim import SGD, Adagrad, Optimizer, RMSprop

from gradsift.errors import UsageError
from gradsift.parallel.compensation import AbstractCompensation, Lateness, Uncompensated
from gradsift.parallel.objective import Weights

MASKABLE = (SGD, RMSprop, Adagrad)
"""Optimisers whose rule is elementwise and has no shared count of steps that matters."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The weights as they were.

    Attributes:
        weights: copies.
        version: updates that had been made.

    Example:
        >>> Snapshot([torch.zeros(1)], version=3).version
        3
    """

    weights: list[Tensor]
    version: int


@final
class ParameterServer:
    """Holds the weights, applies gradients to them, and remembers what workers may have read.

    Args:
        parameters: leaf tensors, changed in place.
        optimizer: any optimiser of exactly these; its state is shared by arrivals and corrections.
        compensation: what to do about late gradients.
        memory: how many updates late a gradient may be.

    Raises:
        UsageError: when the optimiser has other parameters.

    Example:
        >>> w = torch.zeros(1, requires_grad=True)
        >>> server = ParameterServer([w], torch.optim.SGD([w], lr=1.0), memory=1)
        >>> server.push([torch.tensor([1.0])], read=0)
        >>> server.push([torch.tensor([1.0])], read=0)
        >>> w.tolist(), server.version, server.read(1).weights
        ([-2.0], 2, [tensor([-1.])])
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        optimizer: Optimizer,
        *,
        compensation: AbstractCompensation | None = None,
        memory: int = 0,
    ) -> None:
        self._parameters = list(parameters)
        self._optimizer = optimizer
        self._compensation = Uncompensated() if compensation is None else compensation
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if held != {id(p) for p in self._parameters}:
            raise UsageError(
                f"the optimiser has {len(held)} parameters, which are not the "
                f"{len(self._parameters)} of the server: make it of the same ones"
            )
        if memory < 0:
            raise UsageError(f"a memory of {memory} updates received, expected at least 0")
        self._memory = memory
        self.version = 0
        self.received = 0
        self._snapshots: dict[int, Snapshot] = {}
        self._remember()

    @property
    def weights(self) -> list[Tensor]:
        """The weights now, without copying; they change with the next update."""
        return [parameter.detach() for parameter in self._parameters]

    @property
    def optimizer(self) -> Optimizer:
        """The optimiser, whose learning rate a schedule may set."""
        return self._optimizer

    def read(self, received: int) -> Snapshot:
        """The weights after so many gradients, corrections included.

        Raises:
            UsageError: when they are not remembered any more, or not there yet.
        """
        found = self._snapshots.get(received)
        if found is None:
            raise UsageError(
                f"weights after {received} gradients asked for, but the server has those of "
                f"{min(self._snapshots)} to {self.received}: give it a longer memory"
            )
        return found

    def push(self, gradients: Weights, read: int, worker: int = 0) -> None:
        """One gradient arrives, computed at ``read(read)``; it is compensated and applied."""
        stale = self.read(read)
        now = self._snapshots[self.received].weights
        age = self.version - stale.version
        lateness = Lateness(now=now, stale=stale.weights, age=age, worker=worker)
        corrected = self._compensation.correct(gradients, lateness)
        self._step(corrected, self._compensation.factor(age))
        self.version += 1
        self.received += 1
        self._remember()
        self._compensation.observe(now, self._snapshots[self.received].weights)

    def correct(self, gradients: Weights, where: Bool[Tensor, "*runs"] | None = None) -> None:
        """An extra update with a gradient at the present weights: a replay.

        Args:
            gradients: computed at `weights`.
            where: the runs of a population that take it; all by default. A population in which
                some do not needs an optimiser out of `MASKABLE`.
        """
        if where is not None and not bool(where.any()):
            return
        if where is None or bool(where.all()):
            self._step(gradients, 1.0)
        else:
            self._step_some(gradients, where)
        self.version += 1
        self._remember()

    def state_dict(self) -> dict[str, Any]:
        """Weights, counters, optimiser, compensation and remembered weights: plain values."""
        return {
            "weights": [weight.clone() for weight in self.weights],
            "version": self.version,
            "received": self.received,
            "optimizer": deepcopy(self._optimizer.state_dict()),
            "compensation": deepcopy(self._compensation.state_dict()),
            "snapshots": {
                place: {"weights": kept.weights, "version": kept.version}
                for place, kept in self._snapshots.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`, with the same kind of optimiser.

        Raises:
            UsageError: for weights of other shapes, or an optimiser's state that is not known.
        """
        shapes = [tuple(weight.shape) for weight in state["weights"]]
        expected = [tuple(weight.shape) for weight in self._parameters]
        if shapes != expected:
            raise UsageError(f"the state has weights of shapes {shapes}, expected {expected}")
        self._check_optimizer(state["optimizer"])
        self._optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self._compensation.load_state_dict(deepcopy(state["compensation"]))
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, state["weights"], strict=True):
                parameter.copy_(weight)
        self.version, self.received = state["version"], state["received"]
        self._snapshots = {
            place: Snapshot([weight.clone() for weight in kept["weights"]], kept["version"])
            for place, kept in state["snapshots"].items()
        }

    def _check_optimizer(self, state: dict[str, Any]) -> None:
        own = self._optimizer.state_dict()
        if set(state) != set(own):
            raise UsageError(
                f"the state of an optimiser has {sorted(state)}, expected that of "
                f"{type(self._optimizer).__name__}, with {sorted(own)}: resume with what was saved"
            )
        groups = own["param_groups"]
        found = [sorted(group) for group in state["param_groups"]]
        expected = [sorted(group) for group in groups]
        if found != expected:
            odd = sorted(set(chain(*found)) ^ set(chain(*expected)))
            raise UsageError(
                f"the state of another optimiser than {type(self._optimizer).__name__} received "
                f"(settings {', '.join(odd) or 'of other groups'} differ): resume with the one "
                "that was trained with"
            )

    def _step(self, gradients: Weights, factor: float) -> None:
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        try:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * factor
            self._optimizer.step()
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
            for parameter in self._parameters:
                parameter.grad = None

    def _step_some(self, gradients: Weights, where: Tensor) -> None:
        """A step whose effect on weights and state is undone where it was not meant."""
        if not isinstance(self._optimizer, MASKABLE):
            raise UsageError(
                f"{type(self._optimizer).__name__} counts its steps for all runs together: "
                f"simulate one run, or use {', '.join(kind.__name__ for kind in MASKABLE)}"
            )
        before = {id(tensor): tensor.clone() for tensor in self._elementwise()}
        self._step(gradients, 1.0)
        with torch.no_grad():
            for tensor in self._elementwise():
                kept = before.get(id(tensor), torch.zeros_like(tensor))
                mask = where.reshape(where.shape + (1,) * (tensor.dim() - where.dim()))
                tensor.copy_(torch.where(mask, tensor, kept))

    def _elementwise(self) -> list[Tensor]:
        """The weights, and those parts of the optimiser's state that have their shape."""
        found = list(self._parameters)
        for parameter in self._parameters:
            state = self._optimizer.state.get(parameter, {})
            found += [
                value
                for value in state.values()
                if isinstance(value, Tensor) and value.shape == parameter.shape
            ]
        return found

    def _remember(self) -> None:
        weights = [weight.clone() for weight in self.weights]
        self._snapshots[self.received] = Snapshot(weights, self.version)
        self._snapshots.pop(self.received - self._memory - 1, None)
