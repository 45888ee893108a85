"""Running a comparison: what is missing, in its order, whatever happens to single runs."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradsift.comparison.child import Children, command_of
from gradsift.comparison.folder import SUMMARY, State, check_folder, look, move_aside
from gradsift.comparison.machine import write_machine
from gradsift.comparison.plan import Job, Plan
from gradsift.comparison.rows import as_json, compared
from gradsift.errors import TrainingError, UsageError
from gradsift.report.compared import Compared, Measured
from gradsift.report.summary import write_whole


class AbstractWatcher(ABC):
    """Is told how far a comparison is."""

    @abstractmethod
    def started(self, job: Job, number: int, total: int) -> None:
        """A run starts, the ``number``-th of ``total``."""

    @abstractmethod
    def heard(self, line: str) -> None:
        """The run printed a line."""

    @abstractmethod
    def ended(self, job: Job, state: State, measured: Measured | None) -> None:
        """A run ended, or was there already."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a comparison.

    Attributes:
        compared: of all runs that have ended, those of earlier calls too.
        interrupted: whether Ctrl-C ended it.
    """

    compared: Compared
    interrupted: bool

    @property
    def failed(self) -> bool:
        """Whether some run failed."""
        return any(run.error is not None for run in self.compared.runs)


def compare(plan: Plan, out: Path, watcher: AbstractWatcher) -> Outcome:
    """Runs what is missing of a comparison, and writes ``OUT/summary.json`` after every run.

    Complete and failed runs of earlier calls are kept; half-finished ones are moved aside and
    run again. Ctrl-C lets the run that is under way write what it has, and ends the comparison.

    Args:
        plan: of the comparison.
        out: its folder; a relative one is as seen from the working directory.
        watcher: is told about every run.

    Raises:
        UsageError: when the folder holds something else, or a run refuses its flags or data.
        TrainingError: when every value of the grid failed.
    """
    check_folder(out, plan)
    for job in (*plan.tuning(), *(() if plan.grid else plan.jobs())):
        look(out, job)
    with Children() as children:
        runs = _Runs(plan, out, watcher, children)
        tuning = runs.all(plan.tuning())
        if not children.interrupted:
            runs.tuned, runs.notes = _best(plan, tuning)
            for job in plan.jobs(runs.tuned):
                look(out, job)
            runs.all(plan.jobs(runs.tuned))
        return Outcome(runs.write(), children.interrupted)


@dataclass(eq=False)
class _Runs:
    """The runs that have ended so far.

    Attributes:
        tuned: flag and value that the grid chose.
        notes: what has to be said about it.
    """

    plan: Plan
    out: Path
    watcher: AbstractWatcher
    children: Children
    tuned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    found: list[Measured] = field(default_factory=list)

    def all(self, jobs: Sequence[Job]) -> list[Measured]:
        """The runs of some jobs that have ended: those there are, and then the missing ones."""
        names = {arm.name for arm in self.plan.arms}
        ended = []
        for number, job in enumerate(jobs, 1):
            state, measured = look(self.out, job)
            if state in ("absent", "unfinished") and not self.children.interrupted:
                self.watcher.started(job, number, len(jobs))
                state, measured = self._run(job, state)
            if measured is not None or not self.children.interrupted:
                self.watcher.ended(job, state, measured)
            if measured is not None:
                ended.append(measured)
                if measured.arm in names:
                    self.found.append(measured)
                    self.write()
        return ended

    def write(self) -> Compared:
        """Writes what is known so far, if anything is."""
        found = compared(self.plan, self.found, self.out, self.tuned, self.notes)
        if self.out.is_dir():
            write_whole(self.out / SUMMARY, json.dumps(as_json(found), indent=2, allow_nan=False))
        return found

    def _run(self, job: Job, state: State) -> tuple[State, Measured | None]:
        folder = self.out / job.folder
        if state == "unfinished":
            move_aside(folder)
        arguments = (*job.arguments, "--out", str(folder))
        ended = self.children.run(arguments, self.watcher.heard)
        if self.children.interrupted and ended.status != 0:
            return "unfinished", None
        if ended.status == 2:
            raise UsageError(f"arm {job.arm!r}: {ended.message}")
        error = None if ended.status == 0 else ended.message
        write_machine(folder, ended.machine, command=command_of(arguments), error=error)
        return look(self.out, job)


def _best(plan: Plan, tuning: Sequence[Measured]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The value of the grid with the lowest training loss over the whole training set."""
    if plan.grid is None:
        return (), ()
    by_value = zip(plan.grid.values, tuning, strict=True)
    losses = {
        value: measured.run.summary.train_loss
        for value, measured in by_value
        if measured.run is not None
    }
    name = plan.grid.flag[2:]
    if not losses:
        raise TrainingError(
            f"{plan.base.name!r} failed with every {name} of the grid "
            f"({', '.join(plan.grid.values)}): {tuning[0].error}"
        )
    best = min(losses, key=lambda value: losses[value])
    edge = best in (plan.grid.values[0], plan.grid.values[-1])
    tried = ", ".join(f"{value}: {loss:.4g}" for value, loss in losses.items())
    note = (
        f"tuned: {name} {best} for {plan.base.name}, by its training loss on a seed that is not "
        f"compared ({tried}); the others use it too unless they set their own."
        + (" It is at the end of the grid: the best may lie beyond." if edge else "")
    )
    return (plan.grid.flag, best), (note,)
