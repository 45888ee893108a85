"""Synchronous, asynchronous and local SGD in one process: what real workers do, in a fixed order.

Each is a generator that yields once per round, so that the caller may look at the weights, set a
learning rate, or stop. Batches are tensors of ids, ``[*runs, size]``.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsift.errors import UsageError
from gradsift.parallel.arrivals import Arrival
from gradsift.parallel.objective import AbstractObjective
from gradsift.parallel.replay import AbstractGuide
from gradsift.parallel.server import ParameterServer


def asgd(
    server: ParameterServer,
    objective: AbstractObjective,
    arrivals: Iterable[Arrival],
    batches: Iterable[Tensor],
    guide: AbstractGuide | None = None,
) -> Iterator[int]:
    """Asynchronous SGD: each arrival is one batch's gradient at the weights its worker had read.

    ``w ← OPT(w, ∇f_b(w_read))``. With `arrivals_by_race` and a bound this is stale synchronous
    parallel SGD. A guide is told after every update. Yields the gradients received so far.

    Reference:
        Recht et al. 2011 (Hogwild!), Dean et al. 2012 (Downpour SGD); here with a server that
        applies whole gradients.

    Example:
        >>> w = torch.zeros(1, requires_grad=True)
        >>> server = ParameterServer([w], torch.optim.SGD([w], lr=0.5), memory=1)
        >>> class Quadratic(AbstractObjective):
        ...     def gradient(self, weights, batch):
        ...         return [weights[0] - 1]
        ...     def loss(self, weights, batch):
        ...         return (weights[0] - 1).square().sum() / 2
        >>> late = [Arrival(0, 0), Arrival(1, 0), Arrival(0, 1)]
        >>> [(done, w.item()) for done in asgd(server, Quadratic(), late, [w] * 3)]
        [(1, 0.5), (2, 1.0), (3, 1.25)]
    """
    for arrival, batch in zip(arrivals, batches, strict=False):
        gradients = objective.gradient(server.read(arrival.read).weights, batch)
        server.push(gradients, arrival.read, arrival.worker)
        if guide is not None:
            guide.after_update(server, objective, [batch])
        yield server.received


def ssgd(
    server: ParameterServer,
    objective: AbstractObjective,
    workers: int,
    batches: Iterable[Tensor],
    guide: AbstractGuide | None = None,
    combine: str = "average",
) -> Iterator[int]:
    """Synchronous SGD: ``workers`` batches at the same weights make one update.

    ``w ← OPT(w, (1/c) Σ_m ∇f_{b_m}(w))``. What does not fill the last round is not trained on.
    ``combine="last"`` is what the published code of guided SGD does: its server has one slot for a
    gradient, which workers overwrite, so a round's update is its last gradient, and the others
    are lost. Yields the updates so far.

    Raises:
        UsageError: when there are more workers than batches.

    Example:
        >>> w = torch.zeros(1, requires_grad=True)
        >>> server = ParameterServer([w], torch.optim.SGD([w], lr=1.0))
        >>> class Values(AbstractObjective):
        ...     def gradient(self, weights, batch):
        ...         return [weights[0] - batch.double().mean()]
        ...     def loss(self, weights, batch):
        ...         return weights[0].sum()
        >>> rounds = ssgd(server, Values(), 2, [torch.tensor([2]), torch.tensor([4])])
        >>> list(rounds), w.tolist()
        ([1], [3.0])
    """
    if combine not in ("average", "last"):
        raise UsageError(f"combine {combine!r} is unknown: choose average or last")
    for group in rounds_of(batches, workers):
        now = server.received
        weights = server.read(now).weights
        if combine == "last":
            gradients = objective.gradient(weights, group[-1])
        else:
            parts = [objective.gradient(weights, batch) for batch in group]
            gradients = average(parts)
        server.push(gradients, now)
        if guide is not None:
            guide.after_update(server, objective, group)
        yield server.received


def local_sgd(
    parameters: Iterable[Tensor],
    optimise: Callable[[list[Tensor]], Optimizer],
    objective: AbstractObjective,
    workers: int,
    steps: int,
    batches: Iterable[Tensor],
    warmup: int = 0,
) -> Iterator[int]:
    """Local SGD: each worker takes ``steps`` steps of its own, then all take the mean weights.

    ``w_m ← OPT_m(w_m, ∇f_b(w_m))`` H times, then ``w_m ← (1/c) Σ w_m``; optimiser states stay with
    their worker. Batches are dealt in turn: the first c are everybody's first. Post-local SGD is
    ``warmup > 0``: before the first local phase, so many rounds apply the mean gradient on every
    worker, which then agree.

    Args:
        parameters: hold the mean after each round; changed in place.
        optimise: makes one worker's optimiser.
        objective: what is learnt.
        workers: c.
        steps: H, local steps between two averages.
        batches: ``c·H`` of them are a round, ``c`` a round of the warm-up.
        warmup: synchronous rounds before.

    Reference:
        Stich 2019, https://arxiv.org/abs/1805.09767; Lin et al. 2020 (post-local),
        https://arxiv.org/abs/1808.07217.

    Example:
        >>> w = torch.zeros(1)
        >>> class Values(AbstractObjective):
        ...     def gradient(self, weights, batch):
        ...         return [weights[0] - batch.double().mean()]
        ...     def loss(self, weights, batch):
        ...         return weights[0].sum()
        >>> def sgd(leaves):
        ...     return torch.optim.SGD(leaves, lr=0.5)
        >>> batches = [torch.tensor([v]) for v in (2, 4, 2, 4)]
        >>> list(local_sgd([w], sgd, Values(), 2, 2, batches)), w.tolist()
        ([4], [2.25])
    """
    if steps < 1 or warmup < 0:
        raise UsageError(
            f"{steps} local steps and a warm-up of {warmup} received, expected >= 1, 0"
        )
    held = list(parameters)
    replicas = [[p.detach().clone().requires_grad_() for p in held] for _ in range(workers)]
    optimizers = [optimise(replica) for replica in replicas]
    stream, taken = iter(batches), 0
    for _ in range(warmup):
        (group,) = rounds_of(islice(stream, workers), workers)
        parts = [objective.gradient(r, b) for r, b in zip(replicas, group, strict=True)]
        for replica, optimizer in zip(replicas, optimizers, strict=True):
            _step(replica, optimizer, average(parts))
        taken += len(group)
        yield _agree(held, replicas, taken)
    for group in rounds_of(stream, workers * steps, strict=not warmup):
        for place, batch in enumerate(group):
            replica = replicas[place % workers]
            _step(replica, optimizers[place % workers], objective.gradient(replica, batch))
        taken += len(group)
        yield _agree(held, replicas, taken)


def average(parts: list[list[Tensor]]) -> list[Tensor]:
    """The mean of several lists of tensors, tensor by tensor."""
    return [torch.stack(tensors).mean(dim=0) for tensors in zip(*parts, strict=True)]


def rounds_of(batches: Iterable[Tensor], size: int, strict: bool = True) -> Iterator[list[Tensor]]:
    """Groups of ``size`` batches; an incomplete last one is left out.

    Raises:
        UsageError: with ``strict``, when there is not even one.
    """
    if size < 1:
        raise UsageError(f"{size} workers received, expected at least 1")
    stream, found = iter(batches), False
    while len(group := list(islice(stream, size))) == size:
        found = True
        yield group
    if strict and not found:
        raise UsageError(
            f"a round needs {size} batches, but there are {len(group)}: use fewer workers or "
            "smaller batches"
        )


def _step(replica: list[Tensor], optimizer: Optimizer, gradients: list[Tensor]) -> None:
    for parameter, gradient in zip(replica, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()


def _agree(held: list[Tensor], replicas: list[list[Tensor]], taken: int) -> int:
    """Everybody gets the mean weights; returns the batches taken so far."""
    with torch.no_grad():
        for parameter, copies in zip(held, zip(*replicas, strict=True), strict=True):
            mean = torch.stack(copies).mean(dim=0)
            for tensor in (parameter, *copies):
                tensor.copy_(mean)
    return taken
