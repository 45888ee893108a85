"""How data are read: one record, the same for every verb of the command line."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from gradsift.errors import UsageError

Missing = Literal["error", "drop", "mean"]
TaskName = Literal["classification", "regression"]
Unit = Literal["characters", "words"]


@dataclass(frozen=True)
class ReadOptions:
    """Everything that can be said about data besides where they are.

    Attributes:
        label: column of a table that is learnt: its name in the header, or its number, from 1, or
            from -1 backwards; None is the last one.
        drop: columns of a table that are left out, named like the label.
        missing: what to do about missing values in a table: ``error``, ``drop`` the row, or take
            the ``mean`` of the column over the training part.
        task: None leaves it to the targets.
        seed: of the split of data that bring no test part.
        unit: what a token of a text is: ``characters`` or ``words``.
        context: tokens of a text that come before the one to predict.

    Raises:
        UsageError: for a value that no format understands.

    Example:
        >>> ReadOptions(missing="mean").changed()
        ('missing',)
        >>> ReadOptions(missing="zero")
        Traceback (most recent call last):
        gradsift.errors.UsageError: missing 'zero' received: choose error, drop or mean
    """

    label: str | None = None
    drop: tuple[str, ...] = ()
    missing: str = "error"
    task: str | None = None
    seed: int = 0
    unit: str = "characters"
    context: int = 20

    def __post_init__(self) -> None:
        _check_choice("missing", self.missing, get_args(Missing))
        _check_choice("unit", self.unit, get_args(Unit))
        if self.task is not None:
            _check_choice("task", self.task, get_args(TaskName))
        if self.context < 1:
            raise UsageError(f"context {self.context} received, expected at least 1 token")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed {self.seed} received, expected a whole number from 0 to 2^63-1")

    def changed(self) -> tuple[str, ...]:
        """The options that are not at their defaults; the seed, which is always meant, apart."""
        return tuple(
            field.name
            for field in fields(self)
            if field.name != "seed" and getattr(self, field.name) != field.default
        )

    def allow(self, spec: str, *names: str) -> None:
        """Raises a `UsageError` for an option that means nothing for these data.

        Example:
            >>> ReadOptions(label="2").allow("digits")
            Traceback (most recent call last):
            gradsift.errors.UsageError: --label means nothing for the data 'digits': leave it out
        """
        for name in self.changed():
            if name not in names:
                raise UsageError(f"--{name} means nothing for the data {spec!r}: leave it out")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise UsageError(f"{name} {value!r} received: choose {listed}")
