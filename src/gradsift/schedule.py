"""The learning rate as a function of the share of the budget that is spent.

A factor of 1 is the learning rate that was asked for. Progress comes from the budget, so a run of
60 seconds ends its decay after 60 seconds, however many steps that was.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from gradsift.errors import UsageError

Schedule = Callable[[float], float]
"""From progress in [0, 1] to the factor on the learning rate."""


def constant(progress: float) -> float:
    """Always 1.

    Example:
        >>> constant(0.7)
        1.0
    """
    del progress
    return 1.0


def linear(progress: float) -> float:
    """``1 − p``: from 1 straight down to 0.

    Example:
        >>> linear(0.25)
        0.75
    """
    return 1.0 - progress


def cosine(progress: float) -> float:
    """``(1 + cos πp)/2``: half a cosine from 1 to 0 (Loshchilov & Hutter 2017, no restarts).

    Example:
        >>> [round(cosine(progress), 4) for progress in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    return (1.0 + math.cos(math.pi * progress)) / 2.0


def step(progress: float) -> float:
    """1, then 0.2 from half of the budget on, then 0.04 from four fifths on.

    The learning rates 0.1, 0.02 and 0.004 are those of the CIFAR-10 script published beside
    Katharopoulos & Fleuret 2018, which has a budget in seconds too.

    Example:
        >>> [step(progress) for progress in (0.49, 0.5, 0.8)]
        [1.0, 0.2, 0.04]
    """
    if progress < 0.5:
        return 1.0
    return 0.2 if progress < 0.8 else 0.04


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {"constant": constant, "cosine": cosine, "linear": linear, "step": step}
)
"""Every schedule by its name."""


def find_schedule(name: str) -> Schedule:
    """The schedule of a name.

    Raises:
        UsageError: naming the schedules there are.

    Example:
        >>> find_schedule("linear")(1.0)
        0.0
    """
    if name not in SCHEDULES:
        raise UsageError(f"schedule {name!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]
