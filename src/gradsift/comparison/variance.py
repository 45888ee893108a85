"""Along one uniform run: how noisy is the gradient by every score and draw, and at what cost?

At each checkpoint the gradients of some examples that stand for the data are known, so the error of
any weighted batch is known too. Real draws are made from real scores, and the mean of their squared
errors is put beside the formula that belongs to the draw.
"""

from dataclasses import replace

import torch

from gradsift.clock import AbstractClock, WallClock
from gradsift.comparison.costs import EXACT, TRAINING, is_counted, seconds_per_example
from gradsift.comparison.machine import between, read_meters
from gradsift.comparison.noises import DRAWS
from gradsift.comparison.population import population
from gradsift.comparison.watched import AbstractSpectator, Asked, Watched
from gradsift.data.problem import Problem
from gradsift.errors import UsageError
from gradsift.monitors.recovered import RecoveredShare
from gradsift.report.summary import versions
from gradsift.report.variance import Checkpoint, Recovered, VarianceFound
from gradsift.trainer import Settings
from gradsift.trainer.interruption import Interruption
from gradsift.trainer.run import check_device, load_batches, make_model


def measure_variance(
    problem: Problem,
    settings: Settings,
    asked: Asked,
    *,
    spectator: AbstractSpectator,
    clock: AbstractClock | None = None,
    flags: str = "",
    command: str = "",
) -> VarianceFound:
    """Trains once with uniform batches, and measures variances on the way.

    PyTorch's global random state is seeded for the run and restored after it. The first Ctrl-C
    ends the run after its step, with what was measured until then.

    Args:
        problem: what to learn.
        settings: how; the recipe is not used. A budget in seconds is turned into steps by the
            seconds that a step is measured to take.
        asked: how much is measured.
        spectator: is told about every step and checkpoint.
        clock: where seconds come from; None reads real ones.
        flags: kept in the result.
        command: likewise.

    Raises:
        UsageError: when settings and problem do not fit.
        TrainingError: when the loss is not finite.
    """
    device = check_device(settings.device)
    cards = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    before = read_meters()
    with torch.random.fork_rng(devices=cards), Interruption() as interruption:
        torch.manual_seed(settings.seed)
        run = _prepare(problem, settings, asked, clock or WallClock(device), flags, command)
        found = run.found
        for checkpoint in run.checkpoints(spectator, lambda: interruption.requested):
            machine = between(before, read_meters())
            found = replace(
                found,
                checkpoints=(*found.checkpoints, checkpoint),
                foreign_cpu=None if found.virtual else machine.foreign_cpu,
            )
            found = replace(found, recovered=recovered(found.checkpoints))
            spectator.measured(checkpoint, found)
        return replace(found, interrupted=interruption.requested)


def recovered(checkpoints: tuple[Checkpoint, ...]) -> tuple[Recovered, ...]:
    """The recovered share of every proposal over all examples, but for uniform and ideal ones."""
    shares: dict[str, RecoveredShare] = {}
    for checkpoint in checkpoints:
        for noise in checkpoint.arms:
            if noise.trace is None or noise.draw != "multinomial" or noise.source == "uniform":
                continue
            if noise.source == "table" or noise.score != EXACT:
                share = shares.setdefault(noise.name, RecoveredShare())
                share.add(checkpoint.uniform, noise.trace, checkpoint.ideal)
    estimates = [(name, share.estimate, share.checkpoints) for name, share in shares.items()]
    return tuple(
        Recovered(name, found.value, found.standard_error, count)
        for name, found, count in estimates
    )


def _prepare(
    problem: Problem,
    settings: Settings,
    asked: Asked,
    clock: AbstractClock,
    flags: str,
    command: str,
) -> Watched:
    device = check_device(settings.device)
    loader = load_batches(problem, settings)
    model = make_model(problem, settings).to(device)
    people = population(problem, model, settings.batch_size, device, settings.seed)
    optimizer = settings.optimise(model.parameters())
    seconds = seconds_per_example(people, model, optimizer, settings.batch_size, clock)
    step_seconds = seconds[TRAINING] * settings.batch_size
    units = {"steps": 1.0, "epochs": len(loader), "seconds": 1 / max(step_seconds, 1e-9)}
    steps = max(1, round(settings.budget.amount * units[settings.budget.kind]))
    if steps < asked.checkpoints:
        raise UsageError(
            f"budget {settings.budget} received, which is {steps} steps, expected at least one for "
            f"each of {asked.checkpoints} checkpoints"
        )
    found = VarianceFound(
        title=f"{settings.model} on {problem.name}",
        flags=flags,
        batch_size=settings.batch_size,
        examples=people.count,
        repeats=asked.repeats,
        draws=DRAWS,
        pool_ratio=asked.pool_ratio,
        steps=steps,
        steps_per_epoch=len(loader),
        seconds=seconds,
        virtual=is_counted(clock),
        foreign_cpu=None,
        checkpoints=(),
        recovered=(),
        interrupted=False,
        versions=versions(),
        command=command,
    )
    return Watched(problem, settings, asked, model, people, found)
