"""Which runs a comparison consists of, and in which order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradsift.comparison.arms import TUNING, Arm, check_common, sets
from gradsift.errors import UsageError

TUNING_SEED = 1_000_000
"""Of the runs that tune the reference: no run of a comparison has it."""

MOST_SEEDS = 1_000


@dataclass(frozen=True)
class Grid:
    """Values of one flag, out of which the reference gets the best.

    Attributes:
        flag: of ``gradsift train``, with its dashes.
        values: as typed.
    """

    flag: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        arm: name of its arm.
        seed: of the pair that it belongs to, which names its folder.
        folder: below that of the comparison.
        arguments: of ``gradsift``, without the folder.
    """

    arm: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A comparison before it runs.

    Attributes:
        arms: at least one; names differ, in more than upper and lower case.
        seeds: runs per arm, with seeds 0, 1, ….
        common: flags of ``gradsift train`` that all arms share.
        reference: name of an arm; the first one where it is empty.
        grid: tunes the reference before anything is compared.

    Raises:
        UsageError: for arms, seeds, a reference or a grid that make no comparison.

    Example:
        >>> arms = (Arm("a", ("--lr", "1")), Arm("b", ("--lr", "2")))
        >>> [(job.seed, job.arm) for job in Plan(arms, seeds=2).jobs()]
        [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """

    arms: tuple[Arm, ...]
    seeds: int
    common: tuple[str, ...] = ()
    reference: str = ""
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if not self.arms:
            raise UsageError("nothing to compare: give --recipes a,b or --arm 'name: --flag value'")
        names = [arm.name.lower() for arm in self.arms]
        for arm in self.arms:
            if names.count(arm.name.lower()) > 1:
                raise UsageError(f"arm {arm.name!r} is there twice: give each arm its own name")
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise UsageError(f"seeds {self.seeds} received, expected 1 to {MOST_SEEDS}")
        check_common(self.common)
        if self.reference and self.reference not in [arm.name for arm in self.arms]:
            raise UsageError(
                f"reference {self.reference!r} is no arm: choose one of "
                f"{', '.join(arm.name for arm in self.arms)}"
            )
        self._check_grid()

    @property
    def base(self) -> Arm:
        """The arm that the others are compared with."""
        return next((arm for arm in self.arms if arm.name == self.reference), self.arms[0])

    def flags(self, arm: Arm, tuned: Sequence[str] = ()) -> tuple[str, ...]:
        """Everything an arm passes to ``gradsift train``, but for its seed and folder."""
        return (*self.common, *tuned, *arm.flags)

    def jobs(self, tuned: Sequence[str] = ()) -> list[Job]:
        """All runs, seed by seed; the arm that goes first changes with the seed.

        So a machine that gets slower or busier over the hours meets all arms alike.

        Args:
            tuned: flag and value that tuning chose.
        """
        jobs = []
        for seed in range(self.seeds):
            first = seed % len(self.arms)
            for arm in (*self.arms[first:], *self.arms[:first]):
                arguments = ("train", *self.flags(arm, tuned), "--seed", str(seed + arm.shift))
                jobs.append(Job(arm.name, seed, Path(arm.name) / f"seed-{seed}", arguments))
        return jobs

    def tuning(self) -> list[Job]:
        """The runs of the grid: the reference, on a seed that the comparison does not use."""
        jobs = []
        for value in self.grid.values if self.grid else ():
            tuned = (self.grid.flag, value) if self.grid else ()
            arguments = ("train", *self.flags(self.base, tuned), "--seed", str(TUNING_SEED))
            folder = Path(TUNING) / f"value-{value}"
            jobs.append(Job(f"{self.base.name} {' '.join(tuned)}", TUNING_SEED, folder, arguments))
        return jobs

    def _check_grid(self) -> None:
        if self.grid is None:
            return
        for flags, where in ((self.base.flags, "the reference"), (self.common, "all arms")):
            if sets(flags, self.grid.flag):
                raise UsageError(
                    f"--grid tunes {self.grid.flag[2:]}, which is set for {where} already: leave "
                    "one of the two out"
                )


def parse_grid(text: str) -> Grid:
    """Reads ``flag=value,value,…``.

    Raises:
        UsageError: for anything else, or a value twice.

    Example:
        >>> parse_grid("lr=0.01,0.03,0.1")
        Grid(flag='--lr', values=('0.01', '0.03', '0.1'))
    """
    flag, equals, listed = text.partition("=")
    flag = flag.strip().removeprefix("--")
    values = tuple(value.strip() for value in listed.split(","))
    if not (equals and flag) or len(values) < 2 or not all(values):
        raise UsageError(
            f"grid {text!r} received, expected a flag and at least two values, such as "
            "'lr=0.01,0.03,0.1'"
        )
    if len({*values}) < len(values) or any(set(value) & set("/\\") for value in values):
        raise UsageError(f"grid {text!r} has a value twice, or one with a slash: give plain values")
    if flag in ("seed", "out", "clock", "data", "budget", "recipe"):
        raise UsageError(f"grid {text!r} received, but {flag} cannot be tuned: tune lr, say")
    return Grid(f"--{flag}", values)
