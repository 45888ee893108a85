"""A run of parallel SGD on simulated workers, from its settings to its summary.

The delays are simulated, so seconds mean nothing for the comparison of recipes: a budget is epochs
or steps, and equal budgets are equal numbers of gradients (replays come on top and are counted).
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from gradsift.clock import AbstractClock, Seconds, WallClock
from gradsift.data.problem import Problem
from gradsift.errors import TrainingError
from gradsift.fitting import recalibrate_batch_norm
from gradsift.monitors.log import AbstractLog, JsonLines, NullLog
from gradsift.parallel import TailAverage
from gradsift.report.summary import Summary, versions, write_summary
from gradsift.schedule import find_schedule
from gradsift.trainer.evaluation import Quality, count_examples, evaluate, subsample
from gradsift.trainer.interruption import Interruption
from gradsift.trainer.keeping import require_free
from gradsift.trainer.loop import EVALUATIONS, SUBSAMPLE, TEST_SUBSAMPLE
from gradsift.trainer.progress import AbstractProgress, Point, Silent
from gradsift.trainer.run import Outcome
from gradsift.trainer.settings import Settings, check_device
from gradsift.trainer.work import Work, prepare
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
) -> Outcome:
    """Trains a fresh model by parallel SGD until the budget is spent.

    Args:
        problem: what to learn.
        settings: model, optimiser, schedule, budget and seed; their recipe is not looked at.
        workers: the algorithm.
        out: folder for ``summary.json`` and ``metrics.jsonl``; None keeps nothing.
        clock: where seconds come from; None reads real ones.
        progress: is told about every evaluation.
        command: kept in the summary.

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
    with torch.random.fork_rng(devices=cards), Interruption() as interruption:
        torch.manual_seed(settings.seed)
        if out is not None:
            require_free(out)
        work = prepare(problem, settings, workers, device)
        run = _Run(
            work=work,
            log=NullLog() if out is None else JsonLines(out),
            clock=WallClock(device) if clock is None else clock,
            progress=Silent() if progress is None else progress,
            interruption=interruption,
        )
        run.train_all()
        summary = run.summarise(command)
        if out is not None:
            write_summary(out, summary)
    return Outcome(summary, work.model, interruption.requested)


@dataclass(eq=False)
class _Run:
    """A run in progress."""

    work: Work
    log: AbstractLog
    clock: AbstractClock
    progress: AbstractProgress
    interruption: Interruption
    spent: Seconds = field(default_factory=Seconds)
    batches: int = 0
    average: TailAverage = field(default_factory=TailAverage)

    def __post_init__(self) -> None:
        problem, seed = self.work.problem, self.work.settings.seed
        self._followed = subsample(problem.train, SUBSAMPLE, seed)
        self._followed_test = subsample(problem.test, TEST_SUBSAMPLE, seed)

    @property
    def share(self) -> float:
        return min(1.0, self.batches / self.work.total)

    def train_all(self) -> None:
        self._note("settings", **self._settings())
        self._evaluate()
        due = 1 / EVALUATIONS
        while self.share < 1 and not self.interruption.requested:
            self._round()
            if self.share >= due:
                self._evaluate()
                due = (math.floor(self.share * EVALUATIONS) + 1) / EVALUATIONS
        self._settle()
        if self.interruption.requested:
            self._note("interrupted", share=self.share)

    def _round(self) -> None:
        settings, server = self.work.settings, self.work.server
        size = self.work.workers.batches_per_round
        before = server.version
        with self.clock.timing(self.spent, "training"):
            factor = find_schedule(settings.schedule)(self.share)
            for group in server.optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            next(self.work.rounds)
            replays = server.version - before - 1
            self.clock.charge(trained=(size + replays) * settings.batch_size)
        self.batches += size
        if not all(bool(torch.isfinite(weight).all()) for weight in server.weights):
            error = TrainingError(
                f"after {server.version} updates the weights are not finite: lower the learning "
                "rate or shorten the delay"
            )
            self._note("failed", text=str(error))
            raise error
        if self.share > 1 - self.work.workers.average:
            self.average.add(server.weights)
        self.progress.moved(self.share, server.version)

    def _settle(self) -> None:
        """Takes the averaged weights where some were averaged, with statistics of their own."""
        if not self.average.count or self.interruption.requested:
            return
        with torch.no_grad():
            for weight, mean in zip(self.work.server.weights, self.average.weights, strict=True):
                weight.copy_(mean)
        loader = DataLoader(self._followed, batch_size=512, generator=torch.Generator())
        recalibrate_batch_norm(self.work.model, loader)
        self._note("averaged", updates=self.average.count)
        self._evaluate()

    def _evaluate(self) -> None:
        train, test = self._quality(self._followed), self._quality(self._followed_test)
        step, seconds = self.work.server.version, self.spent["training"]
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
        work, guide = self.work, self.work.guide
        train, test = self._quality(work.problem.train), self._quality(work.problem.test)
        if not (math.isfinite(train.loss) and math.isfinite(test.loss)):
            raise TrainingError(
                f"after {work.server.version} updates the loss is {train.loss} on the training "
                f"set and {test.loss} on the test set: lower the learning rate"
            )
        replays, evaluations = (guide.replays, guide.evaluations) if guide else (0, 0)
        size = work.settings.batch_size
        return Summary(
            recipe=work.workers.recipe,
            data=work.problem.name,
            model=work.settings.model,
            seed=work.settings.seed,
            steps=work.server.version,
            examples_trained=(self.batches + replays) * size,
            examples_scored=evaluations * size,
            seconds_total=self.spent["training"],
            seconds_loading=0.0,
            seconds_scoring=0.0,
            seconds_training=self.spent["training"],
            seconds_evaluating=self.spent["evaluating"],
            train_loss=train.loss,
            train_error=train.error,
            test_loss=test.loss,
            test_error=test.error,
            gate=self._gate(replays),
            engine={"kind": work.workers.backend, "workers_lost": 0, "restarts": 0},
            versions=versions(),
            command=command,
        )

    def _gate(self, replays: int) -> dict[str, Any]:
        drawn = self.work.drawn is not None
        return {
            "state": "on" if drawn else "off",
            "reason": self._in_words(replays),
            "opened_at_step": 1 if drawn else None,
        }

    def _in_words(self, replays: int) -> str:
        workers, drawn = self.work.workers, self.work.drawn
        draw = "draw uniformly"
        if drawn is not None:
            draw = (
                f"draw from one score table, by scores {drawn.mean_age:.1f} updates old, with "
                f"{drawn.gain:.2f} times less of a second moment than uniformly"
            )
        return (
            f"{workers.count} simulated workers {draw}, delay {workers.delay_in_words()}, "
            f"compensation {workers.compensation}, {replays} replays"
        )

    def _settings(self) -> dict[str, Any]:
        work = self.work
        return {
            **work.settings.listed(),
            **work.workers.listed(),
            "train_examples": count_examples(work.problem.train),
            "test_examples": count_examples(work.problem.test),
            "parameters": sum(p.numel() for p in work.model.parameters()),
            "task": work.problem.task,
        }

    def _quality(self, data: Any) -> Quality:
        with self.clock.timing(self.spent, "evaluating"):
            return evaluate(self.work.model, self.work.problem, data, self.work.device)

    def _note(self, name: str, **values: Any) -> None:
        step, seconds = self.work.server.version, self.spent["training"]
        self.log.write("event", step=step, seconds=seconds, name=name, **values)
