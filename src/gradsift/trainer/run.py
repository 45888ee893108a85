"""A run from its settings to its summary.

The budget counts loading, drawing, scoring and training. The first batch, which warms everything
up, and evaluations happen while the budget's clock is paused.

Lines of kind "eval" and "event" in ``metrics.jsonl`` are written by the loop, those of kind
"train" and "gate" by the loader.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from gradsift.clock import AbstractClock, PausableClock, WallClock
from gradsift.data.problem import Problem
from gradsift.engine.interface import AbstractEngine
from gradsift.errors import UsageError
from gradsift.loader import sift
from gradsift.models import build_model
from gradsift.monitors.history import write_history
from gradsift.monitors.log import AbstractLog, SeveralLogs
from gradsift.monitors.recorder import HistoryRecorder
from gradsift.recipes.recipe import Recipe
from gradsift.report.picks import write_picks
from gradsift.report.summary import Summary, write_summary
from gradsift.schedule import find_schedule
from gradsift.scores.doubt import Doubt
from gradsift.scores.input_norm import InputNorm
from gradsift.scores.untouched import random_states
from gradsift.trainer.evaluation import count_examples
from gradsift.trainer.interruption import Interruption
from gradsift.trainer.keeping import Keeper, Keeping
from gradsift.trainer.loop import Loop
from gradsift.trainer.progress import AbstractProgress, Silent
from gradsift.trainer.searching import make_engine
from gradsift.trainer.settings import Settings, check_device
from gradsift.trainer.suspects import with_looks


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a run.

    Attributes:
        summary: as written to ``summary.json``.
        model: with the parameters of the last step.
        interrupted: whether Ctrl-C ended the run before its budget was spent.
    """

    summary: Summary
    model: nn.Module
    interrupted: bool


def run(
    problem: Problem,
    settings: Settings,
    *,
    out: Path | None = None,
    clock: AbstractClock | None = None,
    progress: AbstractProgress | None = None,
    log: AbstractLog | None = None,
    opening: Any = None,
    command: str = "",
    keeping: Keeping | None = None,
) -> Outcome:
    """Trains a fresh model on a problem until the budget is spent, or goes on with one that was.

    PyTorch's global random state is seeded for the run; those of PyTorch, NumPy and Python are
    restored after it. The first Ctrl-C ends the run after its step, with everything written; the
    second stops it at once.

    Args:
        problem: what to learn.
        settings: how.
        out: folder for ``summary.json`` and ``metrics.jsonl``, which must be empty or not exist,
            unless the run in it is resumed; None keeps nothing.
        clock: where seconds come from; None reads real ones.
        progress: is told about every step and evaluation.
        log: one more place for measurements, beside ``out``.
        opening: how the workers of an engine open the problem, or its two data sets as a pair; None
            sends them both by value.
        command: kept in the summary; that of a run that is resumed stays.
        keeping: how often the run is saved in ``out``, and whether it goes on from there. Under
            a virtual clock, or a budget in steps or epochs without a gate, every later number is
            the same to the bit as without the break.

    Raises:
        UsageError: when settings and problem do not fit, or are not those of the run that is to
            be resumed, before anything is written.
        DataError: for a checkpoint that cannot be read.
        TrainingError: when the loss is not finite; measurements up to there stay in ``out``.

    Example:
        >>> from gradsift.budget import parse_budget
        >>> from gradsift.data.digits import digits
        >>> settings = Settings(recipe="uniform", budget=parse_budget("50steps"))
        >>> run(digits(), settings).summary.test_error < 0.3
        True
    """
    device = check_device(settings.device)
    cards = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with random_states(list(cards)), Interruption() as interruption:
        torch.manual_seed(settings.seed)
        kept = None
        if out is not None:
            kept = Keeper(out, keeping or Keeping(), settings, problem, command)
        engine = make_engine(
            settings.engine,
            settings.scorers,
            examples=count_examples(problem.train),
            opening=opening,
            address=settings.ray_address,
            evaluate={"train": None, "test": problem.test if opening is None else None},
            error=problem.error_fn,
        )
        loop = _prepare(problem, settings, device, kept, clock, progress, log, interruption, engine)
        with closing(loop.train):
            if kept is not None:
                kept.restore(loop)
            loop.train_all()
        if out is not None:
            write_picks(out, loop.pick())
            if loop.history is not None:
                with loop.clock.paused():
                    write_history(out, with_looks(loop.history.read(), problem))
            loop.compare_scores()
        summary = loop.summarise(command if kept is None else kept.command)
        if out is not None:
            write_summary(out, summary)
        if kept is not None and not interruption.requested:
            kept.end()
    return Outcome(summary, loop.model, interruption.requested)


def _prepare(
    problem: Problem,
    settings: Settings,
    device: torch.device,
    keeper: Keeper | None,
    clock: AbstractClock | None,
    progress: AbstractProgress | None,
    log: AbstractLog | None,
    interruption: Interruption,
    engine: AbstractEngine | None,
) -> Loop:
    """Makes every part; the folder last, when nothing can be refused any more."""
    _check_task(problem, settings.assembled())
    loader = load_batches(problem, settings)
    model = make_model(problem, settings).to(device)
    inner = WallClock(device) if clock is None else clock
    paused = PausableClock(inner)
    together = SeveralLogs(*([] if log is None else [log]))
    train = sift(
        loader,
        model,
        problem.loss_fn,
        recipe=settings.assembled(),
        spend=settings.spending,
        seed=settings.seed,
        device=device,
        clock=paused,
        log=together,
        engine=engine,
    )
    if keeper is not None:
        together.logs = (keeper.open_log(), *together.logs)
    return Loop(
        problem=problem,
        settings=settings,
        model=model,
        optimizer=settings.optimise(model.parameters()),
        schedule=find_schedule(settings.schedule),
        train=train,
        device=device,
        clock=paused,
        inner=inner,
        log=together,
        progress=Silent() if progress is None else progress,
        interruption=interruption,
        keep=_nowhere if keeper is None else keeper.keep,
        history=None if keeper is None else HistoryRecorder(count_examples(problem.train)),
    )


def _check_task(problem: Problem, recipe: Recipe) -> None:
    """Scores of classes need classes, and norms need numbers."""
    if isinstance(recipe.score, Doubt) and problem.task != "classification":
        raise UsageError(
            f"recipe {recipe.name!r} received a {problem.task}, expected classes: it picks by the "
            "predicted probability of an example's class"
        )
    if isinstance(recipe.score, InputNorm) and (problem.vocabulary or problem.sparse):
        raise UsageError(
            f"recipe {recipe.name!r} received tokens or pairs of columns and values, expected "
            "dense numbers: it picks by the norm of an input"
        )


def _nowhere(loop: Loop) -> None:
    """Where a run without a folder is saved."""
    del loop


def make_model(problem: Problem, settings: Settings) -> nn.Module:
    """The model that the settings name, as it is before any step."""
    return build_model(
        settings.model,
        problem.input_shape,
        problem.outputs,
        generator=torch.Generator().manual_seed(settings.seed),
        norm=settings.norm,
        vocabulary=None if problem.vocabulary is None else len(problem.vocabulary),
        sparse=problem.sparse,
    )


def load_batches(problem: Problem, settings: Settings) -> DataLoader:
    """Shuffled batches, all of one size: what does not fill the last one waits for its turn."""
    count = count_examples(problem.train)
    if settings.batch_size > count:
        raise UsageError(
            f"batch size {settings.batch_size} received, but the training set of "
            f"{problem.name!r} has {count} examples: choose at most that"
        )
    return DataLoader(
        problem.train,
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(settings.seed),
    )
