"""What a run of parallel SGD is made of, checked before anything is written."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from gradsift.data.problem import Problem
from gradsift.errors import UsageError
from gradsift.parallel import (
    AbstractGuide,
    DrawnBatches,
    ModuleObjective,
    ParameterServer,
    longest_age,
)
from gradsift.trainer.evaluation import count_examples
from gradsift.trainer.run import make_model
from gradsift.trainer.settings import Settings
from gradsift.trainer.workers import COMPENSATIONS, Workers


@dataclass(frozen=True, eq=False)
class Work:
    """Everything that a run needs, made and checked before anything is written.

    Attributes:
        problem: what is learnt.
        settings: how.
        workers: by whom.
        model: on the device; its parameters are the server's.
        device: where.
        server: holds the weights.
        guide: who replays, or None.
        drawn: what workers draw from their table, or None where batches are shuffled.
        rounds: the algorithm, a round at a time.
        total: batches until the budget is spent.
    """

    problem: Problem
    settings: Settings
    workers: Workers
    model: nn.Module
    device: torch.device
    server: ParameterServer
    guide: AbstractGuide | None
    drawn: DrawnBatches | None
    rounds: Iterator[int]
    total: int


def prepare(problem: Problem, settings: Settings, workers: Workers, device: torch.device) -> Work:
    """Puts a run together.

    Raises:
        UsageError: for a budget in seconds, or workers and delays that do not fit the data.
    """
    examples, size = count_examples(problem.train), settings.batch_size
    aside = workers.set_aside(size, examples)
    per_epoch = (examples - aside) // size
    total = _batches(settings, workers, per_epoch)
    seeds = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(examples, generator=seeds)
    model = make_model(problem, settings).to(device)
    parameters = list(model.parameters())

    def fetch(ids: Tensor) -> tuple[Any, Tensor]:
        inputs, targets = default_collate([problem.train[k] for k in ids.tolist()])
        return inputs, targets

    arrivals = workers.arrivals(total, seeds)
    server = ParameterServer(
        parameters,
        settings.optimise(parameters),
        compensation=COMPENSATIONS[workers.compensation](),
        memory=longest_age(arrivals),
    )
    guide = workers.guide(order[:aside], torch.Generator().manual_seed(settings.seed))
    objective = ModuleObjective(model, problem.loss_fn, fetch, device)
    stream = islice(shuffled(order[aside:], size, seeds), total)
    drawn = workers.drawn(examples, size, settings.seed)
    rounds = workers.rounds(server, objective, arrivals, stream, guide, drawn)
    return Work(
        problem=problem,
        settings=settings,
        workers=workers,
        model=model,
        device=device,
        server=server,
        guide=guide,
        drawn=drawn,
        rounds=rounds,
        total=total,
    )


def shuffled(ids: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of whole epochs for ever, each epoch in a new order; a short last one is left out.

    Example:
        >>> batches = shuffled(torch.arange(7), 3, torch.Generator())
        >>> [len(next(batches)) for _ in range(3)]
        [3, 3, 3]
    """
    while True:
        mixed = ids[torch.randperm(len(ids), generator=generator)]
        yield from mixed[: len(ids) // size * size].split(size)


def _batches(settings: Settings, workers: Workers, per_epoch: int) -> int:
    """The budget in batches, in whole rounds."""
    budget = settings.budget
    if budget.kind == "seconds":
        raise UsageError(
            f"budget {budget} received, but simulated workers have no seconds: give epochs or "
            "steps, such as 10ep or 2000steps"
        )
    steps = budget.amount * (per_epoch if budget.kind == "epochs" else 1)
    rounds = math.ceil(steps) // workers.batches_per_round
    if rounds < 1:
        raise UsageError(
            f"budget {budget} received, but a round of {workers.count} workers takes "
            f"{workers.count} batches: lengthen it or use fewer workers"
        )
    return rounds * workers.batches_per_round
