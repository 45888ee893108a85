"""How a comparison is watched: a bar on a terminal, a line per run elsewhere."""

import re

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from gradsift.comparison.execute import AbstractWatcher
from gradsift.comparison.folder import State
from gradsift.comparison.plan import Job
from gradsift.report.compared import Measured
from gradsift.report.numbers import quantity, seconds

_SHARE = re.compile(r"\s*(\d+) % ")


def run_in_words(job: Job, state: State, measured: Measured | None) -> str:
    """How a run ended, on one line."""
    name = f"{job.arm}, seed {job.seed}"
    if measured is None:
        return f"{name}: {state}"
    if measured.run is None:
        return f"{name}: failed: {measured.error}"
    summary = measured.run.summary
    mark = ", contended" if measured.contended else ""
    return (
        f"{name}: {summary.steps:,} steps, training loss {quantity(summary.train_loss)}, "
        f"test error {quantity(summary.test_error)}, {seconds(summary.seconds_total)}{mark}"
    )


class ComparisonLines(AbstractWatcher):
    """Prints a line when a run starts, and one when it has ended."""

    def started(self, job: Job, number: int, total: int) -> None:
        """Prints its number."""
        print(f"run {number} of {total}: {job.arm}, seed {job.seed}", flush=True)

    def heard(self, line: str) -> None:
        """Prints nothing."""
        del line

    def ended(self, job: Job, state: State, measured: Measured | None) -> None:
        """Prints how."""
        print(f"  {run_in_words(job, state, measured)}", flush=True)


class ComparisonBar(AbstractWatcher):
    """A bar that fills with the runs, above it a line for each that has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("comparing", total=1.0)
        self._done = 0
        self._total = 1

    def __enter__(self) -> "ComparisonBar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def started(self, job: Job, number: int, total: int) -> None:
        """Shows which run it is."""
        self._done, self._total = number - 1, total
        text = f"{number} of {total}: {job.arm}, seed {job.seed}"
        self._bar.update(self._task, description=text, completed=self._done / total)

    def heard(self, line: str) -> None:
        """Fills the bar by the share that an evaluation's line begins with."""
        found = _SHARE.match(line)
        if found is not None:
            share = int(found[1]) / 100
            self._bar.update(self._task, completed=(self._done + share) / self._total)

    def ended(self, job: Job, state: State, measured: Measured | None) -> None:
        """Leaves a line above the bar."""
        self._console.print(run_in_words(job, state, measured), markup=False, highlight=False)
