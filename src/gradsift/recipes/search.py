"""How the scores of an engine are used: when parameters are published, and what is too old."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from gradsift.errors import UsageError

Stale = Literal["neutral", "filter"]


@dataclass(frozen=True)
class Search:
    """What a recipe with the source "engine" asks of its scores.

    Attributes:
        every: training steps between two publications of the parameters.
        stale: what happens to scores that are too old. "neutral": their examples count as unseen,
            which stays unbiased. "filter", as published: they are not drawn at all, and the
            estimator is that of the mean over the others: biased within a sweep.
        epochs: age in passes over the data from which a score is too old; None for no limit.
        seconds: likewise in real seconds since it came.
        opens: share of examples with usable scores from which they are first drawn by.
        least: share below which steps are uniform again.
        constant: c, added to every score in its own unit, as published; None chooses the share of
            uniform draws by the estimated second moment, which is free of units.

    Raises:
        UsageError: for values out of range.

    Example:
        >>> Search(epochs=2.0).stale
        'neutral'
    """

    every: int = 32
    stale: str = "neutral"
    epochs: float | None = 10.0
    seconds: float | None = None
    opens: float = 0.5
    least: float = 0.1
    constant: float | None = None

    def __post_init__(self) -> None:
        if self.stale not in get_args(Stale):
            raise UsageError(f"stale={self.stale!r} received, expected 'neutral' or 'filter'")
        ages = [age for age in (self.epochs, self.seconds) if age is not None]
        shares = 0 <= self.least <= self.opens <= 1
        if self.every < 1 or not shares or any(not age > 0 for age in ages):
            raise UsageError(
                f"a search received every={self.every}, opens={self.opens}, least={self.least}, "
                f"epochs={self.epochs}, seconds={self.seconds}: expected at least one step, "
                "shares 0 <= least <= opens <= 1, and ages above zero"
            )
        if self.constant is not None and not (math.isfinite(self.constant) and self.constant > 0):
            raise UsageError(
                f"a search received the constant {self.constant}, expected a positive finite "
                "number in the unit of the scores, or None"
            )
