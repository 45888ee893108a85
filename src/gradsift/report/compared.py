"""What a comparison found, as its table and its page show it: arms, runs, rows and ratios."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gradsift.report.picks import Picks
from gradsift.report.runs import Run

CONTENDED = 0.05
"""Share of the machine that other processes used, above which a timing counts for no claim."""

MEASURES = ("train_loss", "test_error", "seconds_to_train_loss", "seconds_to_test_error")
"""What arms are compared by, pair by pair."""


@dataclass(frozen=True)
class Machine:
    """What a run cost the machine, and what others took of it meanwhile.

    Attributes:
        cpu_seconds: of the run's process and of those that it started.
        wall_seconds: from its start to its end.
        foreign_cpu: share of the machine's cores that other processes used; None where the
            system does not tell.
    """

    cpu_seconds: float
    wall_seconds: float
    foreign_cpu: float | None

    @property
    def contended(self) -> bool:
        """Whether its seconds count for no claim."""
        return self.foreign_cpu is not None and self.foreign_cpu > CONTENDED


@dataclass(frozen=True, eq=False)
class Measured:
    """One run of one arm.

    Attributes:
        arm: its name.
        seed: of the pair that it belongs to.
        folder: of the run, relative to that of the comparison.
        error: what a failed run said; None for a complete one.
        machine: None where the run was not measured.
        run: None for a failed run.
        seconds_to_train_loss: until the training loss was that of the reference at its end, in
            the run of the same seed; None where it never was.
        seconds_to_test_error: likewise.
    """

    arm: str
    seed: int
    folder: str
    error: str | None
    machine: Machine | None
    run: Run | None
    seconds_to_train_loss: float | None = None
    seconds_to_test_error: float | None = None

    @property
    def contended(self) -> bool:
        """Whether its seconds count for no claim."""
        return self.machine is not None and self.machine.contended


@dataclass(frozen=True)
class Estimate:
    """An arm against the reference, over the seeds that both have.

    Attributes:
        kind: ratio (arm over reference, geometric mean) or difference (arm minus reference).
        value: below 1, or below 0, is better than the reference.
        low: of the 95 % t interval; None with fewer than two pairs.
        high: likewise.
        each: the pairs themselves, in the order of their seeds.
    """

    kind: Literal["ratio", "difference"]
    value: float
    low: float | None
    high: float | None
    each: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One arm in the table: medians over its complete runs, and its pairs with the reference.

    Attributes:
        arm: its name.
        complete: how many runs came to their end.
        failed: how many did not.
        contended: how many of the complete ones shared the machine.
        levels: medians by name; None where no run has a value.
        reached: complete runs that reached the reference's training loss and test error.
        estimates: by measure; None where a pair lacks a value.
    """

    arm: str
    complete: int
    failed: int
    contended: int
    levels: dict[str, float | None]
    reached: dict[str, int]
    estimates: dict[str, Estimate | None]


@dataclass(frozen=True, eq=False)
class Compared:
    """A comparison, finished or not.

    Attributes:
        reference: name of the arm that the others are compared with.
        again: name of the arm that is the reference a second time; None without one.
        flags: of each arm, in the order of the table, as typed after ``gradsift train``.
        runs: of all arms, complete or failed.
        rows: one per arm.
        virtual: whether seconds are counted cost.
        notes: what has to be said under the table.
        picks: by arm, of its first seed; arms without any are left out.
        biased: names of the arms whose recipe is biased on purpose.
    """

    reference: str
    again: str | None
    flags: dict[str, str]
    runs: Sequence[Measured]
    rows: Sequence[Row]
    virtual: bool
    notes: Sequence[str]
    picks: dict[str, Picks]
    biased: Sequence[str] = ()

    def of(self, arm: str) -> list[Run]:
        """The complete runs of an arm, in the order of their seeds."""
        found = sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)
        return [measured.run for measured in found if measured.run is not None]
