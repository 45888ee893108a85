"""The arms of the delay studies, and one batched simulation of an arm.

All runs of an arm train side by side in float64. A run ends after the same number of updates,
replays included, so an arm that replays sees fewer new batches. Delays are constant.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import SGD

from gradsift.parallel import (
    AbstractCompensation,
    AbstractGuide,
    AbstractSelector,
    AbstractVerification,
    AdaptiveDelayCompensated,
    Alignment,
    ConstantDelay,
    DelayCompensated,
    DrawnBatches,
    Easiest,
    GapAware,
    Hardest,
    LearningRateByAge,
    MovementAlignment,
    OwnLossChange,
    ParameterServer,
    PopulationTable,
    Random,
    Replay,
    TailAverage,
    Uncompensated,
    WindowGuide,
    arrivals_by_age,
    asgd,
    sampled_asgd,
)
from guided_problem import Runs

RHO = 10
SETS = 4
"""A fresh draw for verification is as large as four batches, as in the author's CNN code."""

GuideMaker = Callable[[AbstractVerification, int], AbstractGuide | None]
"""From what tells whether training goes well, and a seed."""


def unguided(verification: AbstractVerification, seed: int) -> None:
    """Nobody replays."""
    del verification, seed


def always(selector: AbstractSelector | None) -> Callable[[torch.Generator], Any]:
    """A selector that needs no random numbers."""

    def make(generator: torch.Generator) -> AbstractSelector | None:
        del generator
        return selector

    return make


@dataclass(frozen=True)
class Arm:
    """What is done about delay; everything is made anew for each simulation.

    Attributes:
        compensation: of late gradients.
        guide: who replays.
        average: whether the weights of the second half of the updates are averaged at the end.
        uniform: share of uniform draws where workers draw from a shared table, 1 for draws that
            are all uniform; None for shuffled batches.
    """

    compensation: Callable[[], AbstractCompensation] = Uncompensated
    guide: GuideMaker = unguided
    average: bool = False
    uniform: float | None = None


def guided(make: Callable[[torch.Generator], AbstractSelector | None]) -> GuideMaker:
    """GSGD by windows of ρ updates and some selector."""

    def guide(verification: AbstractVerification, seed: int) -> AbstractGuide:
        selector = make(torch.Generator().manual_seed(seed + 1))
        return WindowGuide(verification, rho=RHO, selector=selector)

    return guide


def replay(count: int, uniform: float = 1.0) -> GuideMaker:
    """Replays at random, without verification."""

    def guide(verification: AbstractVerification, seed: int) -> AbstractGuide:
        del verification
        return Replay(torch.Generator().manual_seed(seed), RHO, count, uniform)

    return guide


ARMS: dict[str, Arm] = {
    "none": Arm(),
    "rate/age": Arm(LearningRateByAge),
    "DC-ASGD-c": Arm(lambda: DelayCompensated(0.04)),
    "DC-ASGD-a": Arm(lambda: AdaptiveDelayCompensated(0.1)),
    "gap-aware": Arm(GapAware),
    "gSGD (consistent)": Arm(guide=guided(always(None))),
    "gSGD, random": Arm(guide=guided(Random)),
    "gSGD, hardest": Arm(guide=guided(always(Hardest()))),
    "gSGD, easiest": Arm(guide=guided(always(Easiest()))),
    "gSGD, alignment": Arm(guide=guided(always(Alignment()))),
    "gSGD, movement": Arm(guide=guided(always(MovementAlignment()))),
    "gSGD, own loss": Arm(guide=guided(always(OwnLossChange()))),
    "replay 5 of 10": Arm(guide=replay(5)),
    "replay by loss": Arm(guide=replay(5, uniform=0.5)),
    "gap-aware, replay": Arm(GapAware, replay(5)),
    "rate/age, replay": Arm(LearningRateByAge, replay(5)),
}
"""DC-ASGD's strengths are small: 0.1 and more diverged on some tables, in trials on other seeds."""

AVERAGED: dict[str, Arm] = {
    f"{name}, averaged": Arm(ARMS[name].compensation, ARMS[name].guide, average=True)
    for name in (
        *("none", "rate/age", "gap-aware", "gSGD (consistent)", "replay 5 of 10"),
        *("gap-aware, replay", "rate/age, replay"),
    )
}

DRAWN: dict[str, Arm] = {
    "uniform draws": Arm(uniform=1.0),
    "table": Arm(uniform=0.2),
    "rate/age, uniform draws": Arm(LearningRateByAge, uniform=1.0),
    "rate/age, table": Arm(LearningRateByAge, uniform=0.2),
}
"""Workers that draw from a shared table, and the control that differs by the scores alone."""

ALL = ARMS | AVERAGED | DRAWN

FIRST_DEFAULT = "rate/age, replay"
"""Chosen on ten splits (seeds 5000 to 5009), before the table ran for the first time."""

DEFAULT = "rate/age, replay, averaged"
"""The recommended default; ``guided_default.py`` says how it was chosen."""


@final
class FreshByRun(AbstractVerification):
    """A new draw for every update, with replacement, where runs differ in their examples.

    Args:
        counts: training examples of every run.
        size: how many are drawn.
        generator: of the draws.
    """

    def __init__(self, counts: Tensor, size: int, generator: torch.Generator) -> None:
        self._counts = counts
        self._size = size
        self._generator = generator

    def ids(self) -> Tensor:
        """``⌊u·N⌋``, run by run."""
        shape = (len(self._counts), self._size)
        uniforms = torch.rand(shape, dtype=torch.float64, generator=self._generator)
        return (uniforms * self._counts.unsqueeze(1)).long()


@final
class SGDByRun(SGD):
    """Plain SGD whose learning rate differs from run to run, times the group's own, one."""

    def __init__(self, weights: Tensor, rates: Tensor) -> None:
        super().__init__([weights], lr=1.0)
        self._rates = rates.unsqueeze(1)

    @torch.no_grad()
    def step(self, closure=None):
        """One step; a closure means nothing here."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= group["lr"] * self._rates * parameter.grad


@dataclass(frozen=True)
class Result:
    """What runs ended with, one number per run.

    Attributes:
        loss: final test loss.
        accuracy: final test accuracy, in percent.
        gains: second moment of uniform draws over that of the draws made; None where shuffled.
        age: of the scores that draws used, in updates, over all runs; None where shuffled.
    """

    loss: Tensor
    accuracy: Tensor
    gains: Tensor | None = None
    age: float | None = None

    def part(self, runs: slice) -> "Result":
        """Some of the runs."""
        gains = None if self.gains is None else self.gains[runs]
        return Result(self.loss[runs], self.accuracy[runs], gains, self.age)


def simulate(runs: Runs, arm: Arm, delay: int, lr: Tensor, updates: int, seed: int) -> Result:
    """Trains until every run has had its updates; a run's weights are taken when it has.

    Args:
        runs: splits, orders and first weights.
        arm: what is done about delay.
        delay: age of every gradient in arrivals, once there are so many.
        lr: learning rate of every run.
        updates: replays included.
        seed: of the guide and of draws.
    """
    weights = runs.start.clone().requires_grad_()
    server = ParameterServer(
        [weights], SGDByRun(weights, lr), compensation=arm.compensation(), memory=delay
    )
    size = runs.batches.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    guide = arm.guide(FreshByRun(runs.counts, SETS * size, generator), seed)
    drawn = drawn_of(runs, arm, size, seed)
    average, averaging = TailAverage(), False
    ended, done = runs.start.clone(), torch.zeros(len(runs.start), dtype=torch.bool)
    for received in rounds_of(runs, server, guide, drawn, delay, updates, seed):
        if averaging:
            average.add(server.weights)
        if received % RHO and received < updates:
            continue
        count = torch.as_tensor(received + (0 if guide is None else guide.corrections))
        averaging = arm.average and int(count.min()) >= updates // 2
        ready = (count >= updates) & ~done
        if bool(ready.any()):
            now = average.weights[0] if arm.average else server.weights[0]
            ended[ready] = now[ready]
            done |= ready
            if bool(done.all()):
                break
    measured = (None, None) if drawn is None else (drawn.gains, drawn.mean_age)
    return Result(runs.test_loss(ended), runs.accuracy(ended), *measured)


def drawn_of(runs: Runs, arm: Arm, size: int, seed: int) -> DrawnBatches | None:
    """The batches that an arm's workers draw; None where they are shuffled."""
    if arm.uniform is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    table = PopulationTable(len(runs.start), runs.counts, uniform=arm.uniform, generator=generator)
    return DrawnBatches(table, size)


def rounds_of(
    runs: Runs,
    server: ParameterServer,
    guide: AbstractGuide | None,
    drawn: DrawnBatches | None,
    delay: int,
    updates: int,
    seed: int,
) -> Iterator[int]:
    """Asynchronous SGD on shuffled or drawn batches."""
    generator = torch.Generator().manual_seed(seed)
    arrivals = arrivals_by_age(ConstantDelay(delay), delay + 1, updates, generator)
    if drawn is not None:
        return sampled_asgd(server, runs.train, arrivals, drawn)
    stream = chain.from_iterable(repeat(runs.batches.unbind(1)))
    return asgd(server, runs.train, arrivals, stream, guide)
