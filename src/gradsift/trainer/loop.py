"""The loop itself: step, schedule, evaluation, and what is written down about them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, repeat
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradsift.clock import AbstractClock, PausableClock, Seconds
from gradsift.data.problem import Problem
from gradsift.errors import TrainingError
from gradsift.loader import SiftedLoader
from gradsift.monitors.cost import Cost
from gradsift.monitors.health import HealthMonitor
from gradsift.monitors.log import AbstractLog
from gradsift.monitors.recorder import HistoryRecorder
from gradsift.records import WeightedBatch
from gradsift.report.histogram import histogram
from gradsift.report.picks import Picks
from gradsift.report.summary import Summary, versions
from gradsift.schedule import Schedule
from gradsift.trainer.evaluation import (
    Quality,
    count_examples,
    evaluate,
    followed,
    next_evaluation,
    sizes,
)
from gradsift.trainer.interruption import Interruption
from gradsift.trainer.norms import against_norms
from gradsift.trainer.picks import pick
from gradsift.trainer.progress import AbstractProgress, Point
from gradsift.trainer.settings import Settings

TOLD = 10.0
"""Seconds of the budget between two states of an engine in the log, at most: they are live."""


@dataclass(eq=False)
class Loop:
    """A run in progress.

    Attributes:
        problem: what is learnt.
        settings: how.
        model: on the device.
        optimizer: of its parameters.
        schedule: factor on the learning rate by progress.
        train: the sifted loader.
        device: where the model is.
        clock: of the budget; paused while evaluating.
        inner: the clock that is never paused.
        log: of measurements.
        progress: who watches.
        interruption: notes Ctrl-C.
        keep: is told about every step, to save it where that is due.
        history: of every example, for those who look for wrong labels; None keeps none.
        spent: seconds of training and evaluating.
        steps: updates so far.
    """

    problem: Problem
    settings: Settings
    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    train: SiftedLoader
    device: torch.device
    clock: PausableClock
    inner: AbstractClock
    log: AbstractLog
    progress: AbstractProgress
    interruption: Interruption
    keep: Callable[["Loop"], None]
    history: HistoryRecorder | None = None
    spent: Seconds = field(default_factory=Seconds)
    steps: int = 0

    def __post_init__(self) -> None:
        self._start = self.clock.now()
        self._due = next_evaluation(0.0)
        self._told = 0.0
        self._followed, self._followed_test = followed(self.problem, self.settings.seed)
        self._health = HealthMonitor(count_examples(self.problem.train))

    @property
    def seconds(self) -> float:
        """Of the budget, so far."""
        return self.clock.now() - self._start

    @property
    def epochs(self) -> float:
        """Passes over the training set, so far."""
        return self.steps / len(self.train)

    @property
    def share(self) -> float:
        """Of the budget that is spent, from 0 to 1."""
        return self.settings.budget.progress(
            seconds=self.seconds, epochs=self.epochs, steps=self.steps
        )

    def train_all(self) -> None:
        """Trains until the budget is spent or Ctrl-C is pressed.

        Raises:
            TrainingError: when the loss is not finite; it is noted in the log first.
        """
        self.keep(self)
        if not self.steps:
            self._note("settings", **self.settings.listed(), **sizes(self.problem, self.model))
        try:
            self._train_all()
        except TrainingError as error:
            self._note("failed", text=str(error))
            raise
        if self.interruption.requested:
            self._note("interrupted", share=self.share)
        if self.train.scores is not None:
            self._note("scores", **asdict(histogram(self.train.scores)))

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on after the last step."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "train": self.train.state_dict(),
            "health": self._health.state_dict(),
            "history": None if self.history is None else self.history.state_dict(),
            "spent": dict(self.spent.spent),
            "steps": self.steps,
            "start": self._start,
            "due": self._due,
            "told": self._told,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another loop of the same settings and data was; sets its clocks too."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.train.load_state_dict(state["train"])
        self._health.load_state_dict(state["health"])
        if self.history is not None:
            self.history.load_state_dict(state["history"])
        self.spent.spent.update(state["spent"])
        self.steps, self._start = state["steps"], state["start"]
        self._due, self._told = state["due"], state["told"]

    def summarise(self, command: str) -> Summary:
        """Evaluates on everything and sums the run up.

        Raises:
            TrainingError: when the model's loss on the data is not finite.
        """
        train = self._quality(self.problem.train)
        test = self._quality(self.problem.test)
        if not (math.isfinite(train.loss) and math.isfinite(test.loss)):
            raise TrainingError(
                f"after {self.steps} steps the loss is {train.loss} on the training set and "
                f"{test.loss} on the test set: lower the learning rate"
            )
        return Summary(
            recipe=self.train.recipe.name,
            data=self.problem.name,
            model=self.settings.model,
            seed=self.settings.seed,
            steps=self.steps,
            examples_trained=self.train.examples_trained,
            examples_scored=self.train.examples_scored,
            seconds_total=self.seconds,
            seconds_loading=self.train.seconds["loading"],
            seconds_scoring=self.train.seconds["scoring"],
            seconds_training=self.spent["training"],
            seconds_evaluating=self.spent["evaluating"],
            train_loss=train.loss,
            train_error=train.error,
            test_loss=test.loss,
            test_error=test.error,
            gate=self.train.gate,
            engine=self.train.engine,
            versions=versions(),
            command=command,
        )

    def pick(self) -> Picks:
        """Which examples were drawn how often, and what a sample of them scores now."""
        with self.inner.timing(self.spent, "evaluating"), self.clock.paused():
            draws = self._health.draws
            return pick(self.model, self.problem, draws, self.device, self.settings.seed)

    def compare_scores(self) -> None:
        """Writes down how well scores follow exact gradient norms at the end of the run."""
        recipe = self.settings.assembled()
        if not recipe.scored:
            return
        with self.inner.timing(self.spent, "evaluating"), self.clock.paused():
            found = against_norms(
                self.model, self.problem, recipe.score, self.train.table, self.settings.seed
            )
        self._note("correlation", **found)

    def _train_all(self) -> None:
        batches = chain.from_iterable(repeat(self.train))
        if not self.steps:
            self._evaluate()
            with self.clock.paused():
                self._step(next(batches))
        while (share := self.share) < 1 and not self.interruption.requested:
            self.keep(self)
            if share >= self._due:
                self._evaluate()
                self._due = next_evaluation(share)
            elif self.seconds >= self._told + TOLD:
                self._tell_engine()
            self._step(next(batches))
        self.keep(self)
        self._evaluate()

    def _step(self, batch: WeightedBatch) -> None:
        with self.clock.timing(self.spent, "training"):
            share = self.share
            rate = self.settings.learning_rate * self.schedule(share) * self.train.lr_factor
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.train.policy.progress = share
            outputs = self.model(batch.inputs)
            loss = batch.loss(outputs)
            if not math.isfinite(loss.item()):
                batch.check_finite(self.problem.loss_fn(outputs, batch.targets))
                raise TrainingError(
                    f"the loss of step {self.steps} is {loss.item()}: the step was stopped "
                    "before the update; lower the learning rate"
                )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.clock.charge(trained=len(batch))
        with self.clock.paused():
            self._health.add(batch.indices, batch.weights)
            if self.history is not None:
                self.history.add(batch, outputs)
        self.steps += 1
        self.progress.moved(self.share, self.steps)

    def _evaluate(self) -> None:
        self.train.settle()
        train = self._quality(self._followed)
        test = self._quality(self._followed_test)
        self.log.write(
            "eval",
            step=self.steps,
            seconds=self.seconds,
            train_loss=train.loss,
            train_error=train.error,
            test_loss=test.loss,
            test_error=test.error,
        )
        self._look()
        self.progress.evaluated(
            Point(
                step=self.steps,
                seconds=self.seconds,
                share=self.share,
                train_loss=train.loss,
                test_loss=test.loss,
                test_error=test.error,
            )
        )

    def _look(self) -> None:
        with self.inner.timing(self.spent, "evaluating"), self.clock.paused():
            health = self._health.read(self.train.table, self.train.updates)
        cost = Cost(
            total=self.seconds,
            loading=self.train.seconds["loading"],
            scoring=self.train.seconds["scoring"],
            training=self.spent["training"],
            trained=self.train.examples_trained,
            scored=self.train.examples_scored,
        )
        self._note("health", **asdict(health))
        self._note("cost", **cost.listed())
        self._tell_engine()

    def _tell_engine(self) -> None:
        self._told = self.seconds
        if (status := self.train.engine_status) is not None:
            self._note("engine", **status)

    def _quality(self, data: Any) -> Quality:
        with self.inner.timing(self.spent, "evaluating"), self.clock.paused():
            return evaluate(self.model, self.problem, data, self.device)

    def _note(self, name: str, **values: Any) -> None:
        self.log.write("event", step=self.steps, seconds=self.seconds, name=name, **values)
