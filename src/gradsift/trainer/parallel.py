"""A run of parallel SGD, on simulated workers or real ones, from its settings to its summary.

Simulated delays take no time, so seconds mean nothing for the comparison of recipes: a budget is
epochs or steps, and equal budgets are equal numbers of gradients (replays come on top and are
counted).
"""

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from gradsift.clock import AbstractClock, PausableClock, Seconds, WallClock
from gradsift.data.problem import Problem
from gradsift.errors import TrainingError
from gradsift.fitting import recalibrate_batch_norm
from gradsift.monitors.log import AbstractLog, NullLog
from gradsift.parallel.service import progress_of
from gradsift.report.summary import Summary, versions, write_summary
from gradsift.scores.untouched import random_states
from gradsift.trainer.evaluation import (
    Quality,
    evaluate,
    followed,
    next_evaluation,
    sizes,
)
from gradsift.trainer.interruption import Interruption
from gradsift.trainer.keeping import Keepable, Keeper, Keeping, require_free
from gradsift.trainer.progress import AbstractProgress, Point, Silent
from gradsift.trainer.run import Outcome
from gradsift.trainer.settings import Settings, check_device
from gradsift.trainer.work import Opening, Work, prepare
from gradsift.trainer.workers import Workers


def run_parallel(
    problem: Problem,
    settings: Settings,
    workers: Workers,
    *,
    out: Path | None = None,
    clock: AbstractClock | None = None,
    progress: AbstractProgress | None = None,
    command: str = "",
    keeping: Keeping | None = None,
    opening: Opening | None = None,
) -> Outcome:
    """Trains a fresh model by parallel SGD until the budget is spent.

    Args:
        problem: what to learn.
        settings: model, optimiser, schedule, budget and seed; their recipe is not looked at.
        workers: the algorithm.
        out: folder for ``summary.json`` and ``metrics.jsonl``; None keeps nothing.
        clock: where seconds come from; None reads real ones.
        progress: is told about every evaluation.
        command: kept in the summary; that of a run that is resumed stays.
        keeping: how often the run is saved in ``out``, and whether it goes on from there: to the
            bit, where gradients arrive in an order that was made before.
        opening: how real workers open the data; None sends them the problem by value.

    Raises:
        UsageError: when the settings do not fit, before anything is written.
        TrainingError: when the weights are not finite any more.

    Example:
        >>> from gradsift.budget import parse_budget
        >>> from gradsift.data.digits import digits
        >>> settings = Settings(recipe="uniform", budget=parse_budget("60steps"))
        >>> outcome = run_parallel(digits(), settings, Workers("gasgd", delay="constant:9"))
        >>> outcome.summary.examples_trained > 60 * 64, outcome.summary.test_error < 0.5
        (True, True)
    """
    device = check_device(settings.device)
    cards = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with random_states(list(cards)), Interruption() as interruption:
        torch.manual_seed(settings.seed)
        keeping, kept = keeping or Keeping(), None
        if out is not None:
            if not keeping.resume:
                require_free(out)
            kept = Keeper(out, keeping, settings, problem, command, workers.listed())
        work = prepare(problem, settings, workers, device, opening)
        with closing(work.crew):
            run = _Run(
                work=work,
                log=NullLog() if kept is None else kept.open_log(),
                inner=WallClock(device) if clock is None else clock,
                progress=Silent() if progress is None else progress,
                interruption=interruption,
                keep=_nowhere if kept is None else kept.keep,
            )
            if kept is not None:
                kept.restore(run)
            run.train_all()
            summary = run.summarise(command if kept is None else kept.command)
            if out is not None:
                work.crew.write(out)
                write_summary(out, summary)
            if kept is not None and not interruption.requested:
                kept.end()
    return Outcome(summary, work.model, interruption.requested)


def _nowhere(run: Keepable) -> None:
    """Where a run without a folder is saved."""
    del run


@dataclass(eq=False)
class _Run:
    """A run in progress."""

    work: Work
    log: AbstractLog
    inner: AbstractClock
    progress: AbstractProgress
    interruption: Interruption
    keep: Callable[[Keepable], None]
    spent: Seconds = field(default_factory=Seconds)

    def __post_init__(self) -> None:
        self.clock = PausableClock(self.inner)
        self.at = progress_of(self.work.server, self.work.guide)
        self._due = next_evaluation(0.0)
        problem, seed = self.work.problem, self.work.settings.seed
        self._followed, self._followed_test = followed(problem, seed)

    @property
    def steps(self) -> int:
        """Batches whose gradients have arrived."""
        return self.at.received * self.work.workers.batches_per_round

    @property
    def epochs(self) -> float:
        return self.steps / self.work.per_epoch

    @property
    def share(self) -> float:
        return min(1.0, self.steps / self.work.total)

    def train_all(self) -> None:
        self.keep(self)
        if not self.steps:
            self._note("settings", **self._settings())
            self._refresh()
            self._evaluate()
        try:
            while self.share < 1 and not self.interruption.requested:
                self._round()
                if self.share >= self._due:
                    self._refresh()
                    self._evaluate()
                    self._due = next_evaluation(self.share)
                self.keep(self)
        except TrainingError as error:
            self._note("failed", text=str(error))
            raise
        self._refresh()
        self._settle()
        if self.interruption.requested:
            self._note("interrupted", share=self.share)

    def state_dict(self) -> dict[str, Any]:
        return {
            "crew": self.work.crew.state_dict(),
            "spent": dict(self.spent.spent),
            "clock": self.clock.state_dict(),
            "due": self._due,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.work.crew.load_state_dict(state["crew"])
        self.at = progress_of(self.work.server, self.work.guide)
        self.spent.spent.update(state["spent"])
        self.clock.load_state_dict(state["clock"])
        self._due = state["due"]

    def _refresh(self) -> None:
        """Brings the model here to where training is."""
        self.work.crew.refresh()
        self.at = progress_of(self.work.server, self.work.guide)

    def _round(self) -> None:
        before, size = self.at, self.work.settings.batch_size
        with self.clock.timing(self.spent, "training"):
            self.at = self.work.crew.advance()
            rounds = max(0, self.at.received - before.received)
            replays = max(0, self.at.replays - before.replays)
            per_round = self.work.workers.batches_per_round
            self.clock.charge(trained=(rounds * per_round + replays) * size)
        for text in self.work.crew.news():
            self._note("workers", text=text)
        if not self.at.finite:
            raise TrainingError(
                f"after {self.at.version} updates the weights are not finite: lower the learning "
                "rate or shorten the delay"
            )
        self.progress.moved(self.share, self.at.version)

    def _settle(self) -> None:
        """Takes the averaged weights where some were averaged, with statistics of their own."""
        average = self.work.average
        if average is None or not average.count or self.interruption.requested:
            return
        with torch.no_grad():
            for weight, mean in zip(self.work.server.weights, average.weights, strict=True):
                weight.copy_(mean)
        loader = DataLoader(self._followed, batch_size=512, generator=torch.Generator())
        recalibrate_batch_norm(self.work.model, loader)
        self._note("averaged", updates=average.count)
        self._evaluate()

    def _evaluate(self) -> None:
        train, test = self._quality(self._followed), self._quality(self._followed_test)
        step, seconds = self.at.version, self.spent["training"]
        self.log.write(
            "eval",
            step=step,
            seconds=seconds,
            train_loss=train.loss,
            train_error=train.error,
            test_loss=test.loss,
            test_error=test.error,
        )
        point = Point(step, seconds, self.share, train.loss, test.loss, test.error)
        self.progress.evaluated(point)

    def summarise(self, command: str) -> Summary:
        work, at = self.work, self.at
        train, test = self._quality(work.problem.train), self._quality(work.problem.test)
        if not (math.isfinite(train.loss) and math.isfinite(test.loss)):
            raise TrainingError(
                f"after {at.version} updates the loss is {train.loss} on the training "
                f"set and {test.loss} on the test set: lower the learning rate"
            )
        size = work.settings.batch_size
        return Summary(
            recipe=work.workers.recipe,
            data=work.problem.name,
            model=work.settings.model,
            seed=work.settings.seed,
            steps=at.version,
            examples_trained=(self.steps + at.replays) * size,
            examples_scored=at.evaluations * size,
            seconds_total=self.spent["training"],
            seconds_loading=0.0,
            seconds_scoring=0.0,
            seconds_training=self.spent["training"],
            seconds_evaluating=self.spent["evaluating"],
            train_loss=train.loss,
            train_error=train.error,
            test_loss=test.loss,
            test_error=test.error,
            gate=work.gate(at.replays),
            engine={
                "kind": work.crew.kind,
                "workers_lost": work.crew.workers_lost,
                "restarts": work.crew.restarts,
            },
            versions=versions(),
            command=command,
        )

    def _settings(self) -> dict[str, Any]:
        work = self.work
        return {
            **work.settings.listed(),
            **work.workers.listed(),
            **sizes(work.problem, work.model),
        }

    def _quality(self, data: Any) -> Quality:
        with self.clock.timing(self.spent, "evaluating"):
            return evaluate(self.work.model, self.work.problem, data, self.work.device)

    def _note(self, name: str, **values: Any) -> None:
        step, seconds = self.at.version, self.spent["training"]
        self.log.write("event", step=step, seconds=seconds, name=name, **values)
