"""Synchronous SGD on the processes of `torch.distributed`: DDP, and guided replay among ranks.

Every rank has a replica of the weights and of the optimiser, and makes every update itself. What a
guide looks at and what it replays is chosen on rank 0 and broadcast, so ranks whose generators
differ stay together; the work of both is shared, a part of the examples for each rank.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from gradsift.errors import UsageError
from gradsift.nested import move
from gradsift.parallel.objective import AbstractObjective, Fetch, Weights
from gradsift.parallel.replay import AbstractGuide
from gradsift.parallel.server import ParameterServer
from gradsift.scores.untouched import untouched


@final
class RanksObjective(AbstractObjective):
    """The mean loss of a module on batches that all ranks of the default group compute together.

    `step_gradient` is DDP's own: this rank's batch, averaged over ranks during the backward pass.
    `gradient` and `loss` are those of one batch, rank 0's, of which every rank computes a part;
    all ranks call them together, and get the same numbers to the bit.

    Args:
        model: a module in DDP, on a device that the group's backend can send from.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example.
        fetch: from ids to inputs and targets.
        device: where the model is.

    Raises:
        UsageError: without a process group.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(1, 1)
        >>> RanksObjective(model, nn.MSELoss(reduction="none"), lambda ids: (ids, ids))
        Traceback (most recent call last):
        gradsift.errors.UsageError: no process group: start with torchrun, and call ...
    """

    def __init__(
        self,
        model: Any,
        loss_fn: Callable[[Any, Any], Tensor],
        fetch: Fetch,
        device: torch.device | str = "cpu",
    ) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise UsageError(
                "no process group: start with torchrun, and call "
                "torch.distributed.init_process_group('gloo') before the model is wrapped"
            )
        if not isinstance(model, DistributedDataParallel):
            raise UsageError(
                f"{type(model).__name__} received, expected DistributedDataParallel(model)"
            )
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._model = model
        self._loss_fn = loss_fn
        self._fetch = fetch
        self._device = device
        self._names = [name for name, _ in model.module.named_parameters()]

    def step_gradient(self, batch: Int64[Tensor, " size"]) -> list[Tensor]:
        """``(1/c) Σ_m ∇f_{b_m}(w)`` at the weights of the model, by DDP's backward pass."""
        parameters = list(self._model.module.parameters())
        for parameter in parameters:
            parameter.grad = None
        inputs, targets = move(self._fetch(batch), self._device)
        self._loss_fn(self._model(inputs), targets).mean().backward()
        found = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return [
            torch.zeros_like(parameter) if grad is None else grad.clone()
            for parameter, grad in zip(parameters, found, strict=True)
        ]

    def gradient(self, weights: Weights, batch: Int64[Tensor, " size"]) -> list[Tensor]:
        """The gradient of rank 0's batch at the given weights, its examples shared among ranks."""
        (ids,) = self.agree(batch)
        leaves = [weight.detach().requires_grad_() for weight in weights]
        share = self._share(ids)
        parts: list[Tensor | None] = [None] * len(leaves)
        if len(share):
            with torch.enable_grad():
                total = self._losses(leaves, share).sum() / len(ids)
                parts = list(torch.autograd.grad(total, leaves, allow_unused=True))
        return [
            self._summed(torch.zeros_like(leaf) if part is None else part)
            for leaf, part in zip(leaves, parts, strict=True)
        ]

    def loss(self, weights: Weights, batch: Int64[Tensor, " size"]) -> Float[Tensor, ""]:
        """The loss of rank 0's batch at the given weights, in eval mode."""
        (ids,) = self.agree(batch)
        share = self._share(ids)
        total = torch.zeros((), dtype=weights[0].dtype, device=weights[0].device)
        if len(share):
            with untouched(self._model.module), torch.no_grad():
                total = self._losses(weights, share).sum()
        return self._summed(total) / len(ids)

    def agree(self, *choices: Tensor) -> tuple[Tensor, ...]:
        """The choices of rank 0."""
        told: list[Any] = list(choices)
        dist.broadcast_object_list(told, src=0)
        return tuple(told)

    def gather(self, batch: Tensor | None) -> list[Tensor] | None:
        """The batches of all ranks, by rank; None where one of them has none."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, batch)
        return None if any(part is None for part in found) else found

    def _share(self, ids: Tensor) -> Tensor:
        return ids.tensor_split(self.size)[self.rank]

    def _losses(self, weights: Weights, batch: Tensor) -> Tensor:
        inputs, targets = move(self._fetch(batch), self._device)
        named = dict(zip(self._names, weights, strict=True))
        return self._loss_fn(functional_call(self._model.module, named, (inputs,)), targets)

    def _summed(self, part: Tensor) -> Tensor:
        total = part.detach().clone().contiguous()
        dist.all_reduce(total)
        return total


def ssgd_on_ranks(
    server: ParameterServer,
    objective: RanksObjective,
    batches: Iterable[Tensor],
    guide: AbstractGuide | None = None,
) -> Iterator[int]:
    """Synchronous SGD where every rank is a worker: `gradsift.parallel.ssgd` with real processes.

    ``w ← OPT(w, (1/c) Σ_m ∇f_{b_m}(w))``, the mean taken by DDP. With a guide it is ``gssgd``: it
    is told the batches of all ranks, rank 0 chooses, and every rank makes the same corrections.
    The last rounds in which a rank has no batch are left out. Yields the updates so far.

    Args:
        server: of this rank: the parameters of the module, and an optimiser of them.
        objective: the same on all ranks.
        batches: this rank's own, all of one size.
        guide: with the same settings on all ranks; generators may differ.

    Raises:
        UsageError: when there is not even one round.

    Example:
        >>> for done in ssgd_on_ranks(server, objective, batches, guide):  # doctest: +SKIP
        ...     print(done, objective.loss(server.weights, verification))
    """
    stream, found = iter(batches), False
    while (group := objective.gather(next(stream, None))) is not None:
        found = True
        now = server.received
        server.push(objective.step_gradient(group[objective.rank]), now)
        if guide is not None:
            guide.after_update(server, objective, group)
        yield server.received
    if not found:
        raise UsageError(
            f"a round needs a batch of each of {objective.size} ranks, and one has none: use "
            "fewer ranks or smaller batches"
        )
