"""One run that is looked at on the way: the checkpoints of a measurement of variances."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from gradsift.comparison.costs import EXACT, SCORES, TRAINING
from gradsift.comparison.noises import AbstractWay, FromAll, measure, pools
from gradsift.comparison.population import Population, coordinates
from gradsift.data.problem import Problem
from gradsift.errors import TrainingError, UsageError
from gradsift.monitors.health import correlation
from gradsift.nested import move
from gradsift.report.variance import Against, Checkpoint, VarianceFound
from gradsift.sampling.draws import Multinomial, Stratified
from gradsift.sampling.table import FLOORED
from gradsift.schedule import find_schedule
from gradsift.scores.loss import Loss
from gradsift.trainer import Settings
from gradsift.trainer.run import check_device, load_batches

AGES = (0.1, 1.0, 3.0)
"""Of stale scores, in passes over the data; each is at least one step."""

SHOWN = 200
"""Examples whose scores are kept beside their norms."""

STALE = "output gradient"
"""The score that training steps give away, which a table therefore keeps."""


class AbstractSpectator(ABC):
    """Watches a measurement of variances."""

    @abstractmethod
    def moved(self, share: float, text: str) -> None:
        """After every step; ``share`` of the run is done, from 0 to 1."""

    @abstractmethod
    def measured(self, checkpoint: Checkpoint, found: VarianceFound) -> None:
        """After every checkpoint."""


@dataclass(frozen=True)
class Asked:
    """How much is measured.

    Attributes:
        checkpoints: along the run, at even distances, the last at its end.
        repeats: independent measurements of every variance.
        pool_ratio: candidates per trained example.

    Raises:
        UsageError: for fewer than one checkpoint, two repeats or one candidate.
    """

    checkpoints: int = 5
    repeats: int = 10
    pool_ratio: float = 3.0

    def __post_init__(self) -> None:
        if self.checkpoints < 1:
            raise UsageError(f"checkpoints {self.checkpoints} received, expected at least 1")
        if self.repeats < 2:
            raise UsageError(
                f"repeats {self.repeats} received, expected at least 2: one has no interval"
            )
        if not 1 <= self.pool_ratio < math.inf:
            raise UsageError(f"pool ratio {self.pool_ratio} received, expected at least 1")


@dataclass(eq=False)
class Watched:
    """A uniform run, which is trained while its checkpoints are asked for.

    Attributes:
        problem: what is learnt.
        settings: how.
        asked: how much is measured.
        model: on its device.
        people: examples that stand for the data.
        found: what is known before the first step: steps, seconds.
        past: scores of the examples at steps that a later checkpoint looks back to.
    """

    problem: Problem
    settings: Settings
    asked: Asked
    model: nn.Module
    people: Population
    found: VarianceFound
    past: dict[int, Float64[Tensor, " n"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._device = check_device(self.settings.device)
        self._optimizer = self.settings.optimise(self.model.parameters())
        self._draws = torch.Generator().manual_seed(self.settings.seed)
        self._ages = sorted({max(1, round(age * self.found.steps_per_epoch)) for age in AGES})

    def checkpoints(
        self, spectator: AbstractSpectator, stop: Callable[[], bool]
    ) -> Iterator[Checkpoint]:
        """Trains, and stops for each checkpoint."""
        total = self.found.steps
        due = {round(total * k / self.asked.checkpoints) for k in range(1, self.asked.checkpoints)}
        due = {step for step in due if step > 0} | {total}
        kept = {step - age for step in due for age in self._ages}
        batches = chain.from_iterable(repeat(load_batches(self.problem, self.settings)))
        for step in range(total + 1):
            if step in kept:
                self.past[step] = self.people.scores(SCORES[STALE], self.model)
            if step in due:
                spectator.moved(step / total, f"measuring at step {step:,}")
                yield self._look(step)
            if step == total or stop():
                return
            self._step(step, next(batches))
            spectator.moved((step + 1) / total, f"step {step + 1:,}")

    def _step(self, step: int, batch: Any) -> None:
        inputs, targets = move(batch, self._device)
        factor = find_schedule(self.settings.schedule)(step / self.found.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        loss = self.problem.loss_fn(self.model(inputs), targets).mean()
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"the loss of step {step} is {loss.item()}: lower the learning rate"
            )
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def _look(self, step: int) -> Checkpoint:
        gradients = coordinates(self.people.gradients(self.model))
        norms = gradients.norm(dim=1)
        cheap = {name: SCORES[name] for name in SCORES if name != EXACT}
        scores = {name: self.people.scores(score, self.model) for name, score in cheap.items()}
        scores[EXACT] = norms
        ages = [age for age in self._ages if step - age in self.past]
        ways = self._ways(scores, {age: self.past[step - age] for age in ages})
        size, repeats = self.settings.batch_size, self.asked.repeats
        arms = tuple(measure(way, gradients, size, repeats, self._draws) for way in ways)
        beside = [
            way
            for way in ways
            if way.source in ("fresh", "table")
            and way.score != EXACT
            and isinstance(way.draw, Multinomial)
        ]
        mean_square = float(gradients.mean(0).square().sum())
        return Checkpoint(
            step=step,
            loss=float(self.people.scores(Loss(), self.model).mean()),
            uniform=float(norms.square().mean()) - mean_square,
            ideal=float(norms.mean()) ** 2 - mean_square,
            mean_square=mean_square,
            arms=arms,
            against=tuple(_against(way, norms) for way in beside),
        )

    def _ways(
        self,
        scores: dict[str, Float64[Tensor, " n"]],
        stale: dict[int, Float64[Tensor, " n"]],
    ) -> list[AbstractWay]:
        """Uniform first; then pools, the table at each age, and fresh scores of everything."""
        seconds = self.found.seconds
        train, even = seconds[TRAINING], torch.ones(self.people.count, dtype=torch.float64)
        priced = [(name, values, seconds[name]) for name, values in scores.items()]
        return [
            FromAll("uniform", "none", even, Multinomial(), train),
            *pools(priced, train, self.asked.pool_ratio),
            *(
                FromAll("table", STALE, values, draw, train, age, FLOORED)
                for age, values in stale.items()
                for draw in (Multinomial(), Stratified())
            ),
            *(FromAll("fresh", name, values, Multinomial(), None) for name, values, _ in priced),
        ]


def _against(way: AbstractWay, norms: Float64[Tensor, " n"]) -> Against:
    found = correlation(way.scores, norms)
    pairs = [values / values.mean().clamp(min=1e-300) for values in (way.scores, norms)]
    scores, shown = (tuple(float(f"{x:.5g}") for x in side[:SHOWN].tolist()) for side in pairs)
    return Against(way.name, found.rank, found.linear, scores, shown)
