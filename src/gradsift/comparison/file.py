"""``compare.toml``: a whole comparison in one file."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsift.comparison.arms import Arm
from gradsift.errors import UsageError

KEYS = {
    "recipes": list,
    "seeds": int,
    "reference": str,
    "grid": str,
    "aa": bool,
    "out": str,
    "train": dict,
    "arms": dict,
}
"""What a file may say, and of which type."""


@dataclass(frozen=True)
class Asked:
    """What a file or a command line asks for; None where it says nothing.

    Attributes:
        recipes: names with commas.
        seeds: runs per arm.
        reference: name of an arm.
        grid: ``flag=value,value``.
        aa: whether the reference runs a second time.
        out: folder of the comparison.
        arms: beside the recipes.
        train: flags of ``gradsift train`` that all arms share.
    """

    recipes: str | None = None
    seeds: int | None = None
    reference: str | None = None
    grid: str | None = None
    aa: bool | None = None
    out: Path | None = None
    arms: tuple[Arm, ...] = ()
    train: tuple[str, ...] = ()

    def over(self, other: "Asked") -> "Asked":
        """This one where it says something, the other elsewhere; arms and flags of both.

        Flags of this one come last, so they count.
        """
        own = {name: value for name, value in vars(self).items() if value is not None}
        both = {"arms": (*other.arms, *self.arms), "train": (*other.train, *self.train)}
        return Asked(**{**vars(other), **own, **both})


def read_file(path: Path) -> Asked:
    """Reads a comparison out of a TOML file.

    Such as::

        recipes = ["uniform", "pool"]
        seeds = 5
        aa = true

        [train]          # flags of gradsift train, for all arms
        budget = "60s"
        model = "cnn"

        [arms.slow]      # one more arm, and its own flags
        recipe = "uniform"
        lr = 0.01

    Raises:
        UsageError: for a file that cannot be read, and for keys or types it may not have.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{str(path)!r} cannot be read ({type(error).__name__}: {error}), expected a TOML file"
        ) from error
    for key, value in content.items():
        if key not in KEYS:
            raise UsageError(f"{str(path)!r} has {key!r}, expected only {', '.join(KEYS)}")
        if type(value) is not KEYS[key]:
            raise UsageError(
                f"{key!r} of {str(path)!r} is a {type(value).__name__}, expected a "
                f"{KEYS[key].__name__}"
            )
    recipes = content.get("recipes")
    return Asked(
        recipes=None if recipes is None else ",".join(map(str, recipes)),
        seeds=content.get("seeds"),
        reference=content.get("reference"),
        grid=content.get("grid"),
        aa=content.get("aa"),
        out=Path(content["out"]) if "out" in content else None,
        arms=tuple(_arm(path, *named) for named in content.get("arms", {}).items()),
        train=flags_of(content.get("train", {}), f"'train' of {str(path)!r}"),
    )


def flags_of(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Flags of a table: ``batch_size = 32`` is ``--batch-size 32``, a list repeats its flag.

    Raises:
        UsageError: for values that no flag has.

    Example:
        >>> flags_of({"batch_size": 32, "drop": ["id", "name"]}, "'train'")
        ('--batch-size', '32', '--drop', 'id', '--drop', 'name')
    """
    words: list[str] = []
    for key, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str | int | float) or isinstance(one, bool):
                raise UsageError(
                    f"{key!r} in {where} is a {type(one).__name__}, expected text or a number"
                )
            words += [f"--{key.replace('_', '-')}", str(one)]
    return tuple(words)


def _arm(path: Path, name: str, values: Any) -> Arm:
    where = f"arm {name!r} of {str(path)!r}"
    if not isinstance(values, dict):
        raise UsageError(f"{where} is a {type(values).__name__}, expected a table of flags")
    return Arm(name, flags_of(values, where))
