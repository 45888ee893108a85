"""What a run of parallel SGD is made of, checked before anything is written."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from gradsift.data.problem import Problem
from gradsift.errors import DataError, UsageError
from gradsift.models import norm_in_use
from gradsift.parallel import (
    AbstractGuide,
    Arrival,
    DrawnBatches,
    ModuleObjective,
    ParameterServer,
    TailAverage,
    longest_age,
)
from gradsift.parallel.actors import ray_actors
from gradsift.parallel.service import Service
from gradsift.schedule import find_schedule
from gradsift.trainer.backends import LONGEST, MEASURED, check_budget, recorded
from gradsift.trainer.crew import AbstractCrew, ActorsCrew, Rate, SimulatedCrew
from gradsift.trainer.evaluation import count_examples
from gradsift.trainer.run import make_model
from gradsift.trainer.settings import Settings
from gradsift.trainer.workers import COMPENSATIONS, Workers

Opening = Callable[[], Problem]


@dataclass(frozen=True, eq=False)
class Work:
    """Everything that a run needs, made and checked before anything is written.

    Attributes:
        problem: what is learnt.
        settings: how.
        workers: by whom.
        model: on the device; its parameters are the server's.
        device: where.
        server: holds the weights, or a copy of them that the crew brings up to date.
        guide: who replays, or None.
        drawn: what workers draw from their table, or None where batches are shuffled.
        crew: moves training on.
        total: batches until the budget is spent.
        per_epoch: batches of an epoch.
    """

    problem: Problem
    settings: Settings
    workers: Workers
    model: nn.Module
    device: torch.device
    server: ParameterServer
    guide: AbstractGuide | None
    drawn: DrawnBatches | None
    average: TailAverage | None
    crew: AbstractCrew
    total: int
    per_epoch: int

    def gate(self, replays: int) -> dict[str, Any]:
        """What a summary says about the draws of the workers, after so many replays."""
        workers, drawn = self.workers, self.drawn
        kind, draw = "real" if workers.backend == "ray" else "simulated", "draw uniformly"
        if drawn is not None:
            draw = (
                f"draw from one score table, by scores {drawn.mean_age:.1f} updates old, with "
                f"{drawn.gain:.2f} times less of a second moment than uniformly"
            )
        reason = (
            f"{workers.count} {kind} workers {draw}, delay {workers.delay_in_words()}, "
            f"compensation {workers.compensation}, {replays} replays"
        )
        if drawn is None:
            return {"state": "off", "reason": reason, "opened_at_step": None}
        return {"state": "on", "reason": reason, "opened_at_step": 1}


@dataclass(frozen=True, eq=False)
class Parts:
    """What a seed makes, wherever it is made: here, and in the process of a real server."""

    model: nn.Module
    server: ParameterServer
    guide: AbstractGuide | None
    drawn: DrawnBatches | None
    average: TailAverage | None
    service: Service
    objective: ModuleObjective


def prepare(
    problem: Problem,
    settings: Settings,
    workers: Workers,
    device: torch.device,
    opening: Opening | None = None,
) -> Work:
    """Puts a run together.

    Args:
        problem: what to learn.
        settings: how.
        workers: by whom.
        device: where.
        opening: how real workers open the data; None sends them the problem by value.

    Raises:
        UsageError: for a budget in seconds, or workers, delays, a device or a model that do not
            fit together.
        DataError: for a broken record of arrivals.
    """
    examples, size = count_examples(problem.train), settings.batch_size
    aside = workers.set_aside(size, examples)
    per_epoch = (examples - aside) // size
    total = _batches(settings, workers, per_epoch)
    seeds = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(examples, generator=seeds)
    arrivals = workers.arrivals(total, seeds)
    measured = workers.delay_in_words() == MEASURED
    memory = LONGEST * workers.count if measured else longest_age(arrivals)
    rounds = total // workers.batches_per_round
    parts = make_parts(problem, settings, workers, memory, rounds, device)
    batches = _in_order(workers, shuffled(order[aside:], size, seeds), total)
    rate = _rate(settings, rounds)
    if workers.backend == "ray":
        _check_real(settings)
        where = partial(_opened, opening or partial(_given, problem), examples)
        actors = ray_actors(
            partial(make_objective, where, settings, workers),
            partial(make_service, where, settings, workers, memory, rounds),
            workers.address,
        )
        tickets = workers.tickets(total, arrivals)
        crew: AbstractCrew = ActorsCrew(
            actors, tickets, batches, parts.service, workers.count, rate
        )
    else:
        going = partial(_rounds, workers, parts, arrivals, batches)
        crew = SimulatedCrew(
            parts.service, parts.server, parts.guide, parts.drawn, parts.model, going, rate
        )
    return Work(
        problem=problem,
        settings=settings,
        workers=workers,
        model=parts.model,
        device=device,
        server=parts.server,
        guide=parts.guide,
        drawn=parts.drawn,
        average=parts.average,
        crew=crew,
        total=total,
        per_epoch=per_epoch,
    )


def make_parts(
    problem: Problem,
    settings: Settings,
    workers: Workers,
    memory: int,
    rounds: int,
    device: torch.device,
) -> Parts:
    """The model, its server, the guide and what they look at, as they are before any step."""
    examples = count_examples(problem.train)
    aside = workers.set_aside(settings.batch_size, examples)
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(settings.seed))
    model = make_model(problem, settings).to(device)
    parameters = list(model.parameters())
    server = ParameterServer(
        parameters,
        settings.optimise(parameters),
        compensation=COMPENSATIONS[workers.compensation](),
        memory=memory,
    )
    guide = workers.guide(order[:aside], torch.Generator().manual_seed(settings.seed))

    def fetch(ids: Tensor) -> tuple[Any, Tensor]:
        inputs, targets = default_collate([problem.train[k] for k in ids.tolist()])
        return inputs, targets

    objective = ModuleObjective(model, problem.loss_fn, fetch, device)
    drawn = workers.drawn(examples, settings.batch_size, settings.seed)
    average = TailAverage() if workers.average else None
    service = Service(server, objective, guide, average, (1 - workers.average) * rounds)
    return Parts(model, server, guide, drawn, average, service, objective)


def _rounds(
    workers: Workers, parts: Parts, arrivals: list[Arrival], batches: Iterator[Tensor], done: int
) -> Iterator[int]:
    """The algorithm from so many rounds on."""
    left = islice(batches, done * workers.batches_per_round, None)
    server, objective, guide, drawn = parts.server, parts.objective, parts.guide, parts.drawn
    return workers.rounds(server, objective, arrivals[done:], left, guide, drawn)


def make_objective(where: Opening, settings: Settings, workers: Workers) -> ModuleObjective:
    """What a real worker computes."""
    return make_parts(where(), settings, workers, 0, 0, torch.device("cpu")).objective


def make_service(
    where: Opening, settings: Settings, workers: Workers, memory: int, rounds: int
) -> Service:
    """What a real server holds."""
    return make_parts(where(), settings, workers, memory, rounds, torch.device("cpu")).service


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


def _in_order(workers: Workers, stream: Iterator[Tensor], total: int) -> Iterator[Tensor]:
    """The batches as they are trained on: in their own order, or in that of a recorded run."""
    recording = recorded(workers.delay_in_words(), total)
    first = islice(stream, total)
    return first if recording is None else recording.reordered(first)


def _rate(settings: Settings, updates: int) -> Rate:
    """The learning rate of each update, corrections left out."""
    schedule = find_schedule(settings.schedule)
    return lambda received: settings.learning_rate * schedule(min(1.0, received / updates))


def _given(problem: Problem) -> Problem:
    return problem


def _opened(opening: Opening, examples: int) -> Problem:
    """The problem as a worker finds it, which must be that of the trainer."""
    problem = opening()
    found = count_examples(problem.train)
    if found != examples:
        raise DataError(
            f"a worker found {found} training examples of {problem.name!r}, the trainer has "
            f"{examples}: put the same data on every node"
        )
    return problem


def _check_real(settings: Settings) -> None:
    if torch.device(settings.device).type != "cpu":
        raise UsageError(
            f"device {settings.device!r} received, but workers on Ray compute on the CPU: leave "
            "it out"
        )
    if norm_in_use(settings.model, settings.norm) == "batch":
        raise UsageError(
            f"norm 'batch' received for {settings.model!r}, but each worker on Ray would have "
            "statistics of its own: use --norm group"
        )


def _batches(settings: Settings, workers: Workers, per_epoch: int) -> int:
    """The budget in batches, in whole rounds."""
    budget = settings.budget
    check_budget(budget, workers.backend)
    steps = budget.amount * (per_epoch if budget.kind == "epochs" else 1)
    rounds = math.ceil(steps) // workers.batches_per_round
    if rounds < 1:
        raise UsageError(
            f"budget {budget} received, but a round of {workers.count} workers takes "
            f"{workers.count} batches: lengthen it or use fewer workers"
        )
    return rounds * workers.batches_per_round
