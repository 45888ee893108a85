"""How long a run lasts, and how far along it is: the number that schedules follow.

A budget is seconds, epochs or steps. Its progress is a number from 0 to 1, so a learning rate
that follows it decays fully under each of them, also where nobody knows the number of steps.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from gradsift.errors import UsageError

Kind = Literal["seconds", "epochs", "steps"]

_UNITS: dict[str, Kind] = {"s": "seconds", "ep": "epochs", "steps": "steps"}
_PATTERN = re.compile(r"(?P<amount>\d+(\.\d*)?|\.\d+)(?P<unit>s|ep|steps)", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """An amount of seconds, epochs or steps.

    Attributes:
        kind: what is counted. Seconds are those of the run's clock: loading, drawing, scoring
            and training, without evaluation and the first batch.
        amount: how many of them; positive and finite, and whole for steps.

    Raises:
        UsageError: for any other amount.

    Example:
        >>> Budget("epochs", 10).progress(seconds=3.0, epochs=2.5, steps=70)
        0.25
    """

    kind: Kind
    amount: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise UsageError(
                f"a budget of {self.amount} {self.kind} is not positive and finite: "
                "give one such as 60s, 10ep or 2000steps"
            )
        if self.kind == "steps" and self.amount != int(self.amount):
            raise UsageError(f"a budget of {self.amount} steps is not a whole number of steps")

    def progress(self, *, seconds: float, epochs: float, steps: int) -> float:
        """The share of the budget that is spent, from 0 to 1."""
        spent = {"seconds": seconds, "epochs": epochs, "steps": steps}[self.kind]
        return min(max(spent / self.amount, 0.0), 1.0)

    def __str__(self) -> str:
        unit = next(unit for unit, kind in _UNITS.items() if kind == self.kind)
        return f"{self.amount:.12g}{unit}"


def parse_budget(text: str) -> Budget:
    """Reads ``60s``, ``10ep`` or ``2000steps``.

    Raises:
        UsageError: for anything else.

    Example:
        >>> parse_budget("1.5ep")
        Budget(kind='epochs', amount=1.5)
        >>> parse_budget("10 parsecs")
        Traceback (most recent call last):
        gradsift.errors.UsageError: '10 parsecs' is not a budget: write a positive number and ...
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a budget: write a positive number and a unit, such as "
            "60s, 10ep or 2000steps"
        )
    return Budget(_UNITS[match["unit"]], float(match["amount"]))
