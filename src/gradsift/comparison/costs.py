"""Seconds to train an example, and to score one: what a variance has to be paid with."""

import copy
import statistics
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from gradsift.clock import AbstractClock, VirtualClock
from gradsift.comparison.population import Population
from gradsift.nested import take
from gradsift.scores.base import ScoreFunction
from gradsift.scores.gradient_norm import GradientNorm
from gradsift.scores.loss import Loss
from gradsift.scores.output_gradient import OutputGradient

TRIALS = 11
"""Timings of which the median counts."""

TRAINING = "training"


EXACT = "exact norm"

SCORES: dict[str, ScoreFunction] = {
    "loss": Loss(),
    "output gradient": OutputGradient(),
    EXACT: GradientNorm(),
}
"""By the names that they have in tables."""


def seconds_per_example(
    people: Population,
    model: nn.Module,
    optimizer: Optimizer,
    batch_size: int,
    clock: AbstractClock,
) -> dict[str, float]:
    """Medians over a few timings of a whole batch, on a copy of the model.

    By a virtual clock an exact norm costs what training does; loading is counted nowhere.

    Args:
        people: some of whom are trained on and scored.
        model: copied.
        optimizer: of its parameters, copied along.
        batch_size: examples that are trained on together; a pool is scored twice as many at a time.
        clock: where seconds come from.
    """
    twin, stepper = copy.deepcopy((model, optimizer))
    batch, pool = (_part(people, size) for size in (batch_size, 2 * batch_size))

    def train() -> None:
        loss = people.loss_fn(twin(batch.inputs), batch.targets).mean()
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        clock.charge(trained=batch.count)

    found = {TRAINING: _median(train, clock) / batch.count}
    for name, score in SCORES.items():
        exact = name == EXACT

        def scoring(score: ScoreFunction = score, exact: bool = exact) -> None:
            pool.scores(score, twin)
            trained = pool.count if exact else 0
            clock.charge(trained=trained, scored=pool.count - trained)

        found[name] = _median(scoring, clock) / pool.count
    return found


def is_counted(clock: AbstractClock) -> bool:
    """Whether seconds are counted cost."""
    return isinstance(clock, VirtualClock)


def _median(work: Callable[[], None], clock: AbstractClock) -> float:
    """Without the first time, which warms up."""
    work()
    found = []
    for _ in range(TRIALS):
        before = clock.now()
        work()
        found.append(clock.now() - before)
    return statistics.median(found)


def _part(people: Population, count: int) -> Population:
    count = min(count, people.count)
    inputs, targets = (
        take(side, slice(0, count), people.count) for side in (people.inputs, people.targets)
    )
    return Population(inputs, targets, count, people.loss_fn)
