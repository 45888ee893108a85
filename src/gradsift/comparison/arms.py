"""The arms of a comparison: a name, and what it adds to the flags that all arms share."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from gradsift.errors import UsageError
from gradsift.recipes import recipes
from gradsift.trainer.workers import PARALLEL

TUNING = "tuning"
"""Folder of the runs that chose a value for the reference; no arm may have this name."""

AGAIN = "-again"
"""Ends the name of the arm that is the reference a second time."""

AGAIN_SEEDS = 2_000_000
"""Added to the seeds of that arm, so that its pairs differ by everything that is random."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,59}", re.ASCII)
_OF_THE_COMPARISON = ("--seed", "--out", "--resume")
_THE_SAME_FOR_ALL = ("--clock", "--data")


@dataclass(frozen=True)
class Arm:
    """One of the things compared.

    Attributes:
        name: of its folder and in the table.
        flags: of ``gradsift train``, after those that all arms share; the last one counts.
        shift: added to the seed of every run.

    Raises:
        UsageError: for a name that makes no folder, or a flag that belongs to the comparison.

    Example:
        >>> Arm("../up", ())
        Traceback (most recent call last):
        gradsift.errors.UsageError: arm name '../up' received, expected at most 60 letters, ...
    """

    name: str
    flags: tuple[str, ...]
    shift: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"arm name {self.name!r} received, expected at most 60 letters, digits and ._+=- "
                "that start with a letter or digit"
            )
        if self.name.lower() == TUNING:
            raise UsageError(f"arm name {self.name!r} is kept for the runs of --grid: take another")
        refuse(self.flags, _OF_THE_COMPARISON, f"arm {self.name!r}", "the comparison sets it")
        refuse(
            self.flags, _THE_SAME_FOR_ALL, f"arm {self.name!r}", "it must be the same for all arms"
        )


def recipe_arms(names: str) -> list[Arm]:
    """One arm per recipe of a list with commas, recipes of parallel SGD among them.

    Raises:
        UsageError: for an unknown recipe.

    Example:
        >>> [arm.name for arm in recipe_arms("uniform, pool")]
        ['uniform', 'pool']
    """
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if name not in recipes and name not in PARALLEL:
            raise UsageError(
                f"recipe {name!r} is unknown, expected one of {', '.join(recipes)}; or of "
                f"{', '.join(PARALLEL)}"
            )
    return [Arm(name, ("--recipe", name)) for name in found]


def parse_arm(text: str) -> Arm:
    """Reads ``name: --flag value …``.

    Raises:
        UsageError: for anything else.

    Example:
        >>> parse_arm("slow: --recipe uniform --lr 0.01")
        Arm(name='slow', flags=('--recipe', 'uniform', '--lr', '0.01'), shift=0)
    """
    name, colon, flags = text.partition(":")
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise UsageError(f"arm {text!r} cannot be split into words ({error})") from error
    if not colon or not words or not words[0].startswith("--"):
        raise UsageError(
            f"arm {text!r} received, expected a name, a colon and flags of gradsift train, such "
            "as 'slow: --recipe uniform --lr 0.01'"
        )
    return Arm(name.strip(), tuple(words))


def again(reference: Arm) -> Arm:
    """The reference a second time, with seeds of its own: the A/A arm."""
    return Arm(f"{reference.name}{AGAIN}", reference.flags, shift=AGAIN_SEEDS)


def check_common(flags: Sequence[str]) -> None:
    """Raises a `UsageError` for a shared flag that the comparison or the arms set themselves."""
    where = "the flags of all arms"
    refuse(flags, _OF_THE_COMPARISON, where, "the comparison sets it")
    refuse(flags, ("--recipe",), where, "name recipes in --recipes or --arm")


def sets(flags: Sequence[str], flag: str) -> bool:
    """Whether a flag is among words of a command line, as ``--flag value`` or ``--flag=value``."""
    return any(word.partition("=")[0] == flag for word in flags)


def value_after(flags: Sequence[str], flag: str) -> str | None:
    """The value of a flag, as the parser reads it: the last one counts.

    Example:
        >>> value_after(["--lr", "1", "--lr=2"], "--lr")
        '2'
    """
    found = None
    for word, following in zip_longest(flags, flags[1:]):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else following
    return found


def refuse(flags: Sequence[str], unwanted: Sequence[str], where: str, why: str) -> None:
    """Raises a `UsageError` for the first unwanted flag."""
    for flag in unwanted:
        if sets(flags, flag):
            raise UsageError(f"{flag} received in {where}, but {why}: leave it out")
