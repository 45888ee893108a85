"""What is kept of the parts of a parallel run: plain values, whose names are checked on loading."""

from collections.abc import Mapping
from typing import Any

from gradsift.errors import UsageError


def check_keys(part: object, state: Mapping[str, Any], expected: set[str]) -> None:
    """Refuses the state of another kind of part.

    Raises:
        UsageError: naming what was found and what should be there.

    Example:
        >>> check_keys(3, {"steps": 1}, {"steps"})
        >>> check_keys(3, {"steps": 1}, {"squares"})
        Traceback (most recent call last):
        gradsift.errors.UsageError: the state of int has ['steps'], expected ['squares']: go on ...
    """
    if set(state) != expected:
        raise UsageError(
            f"the state of {type(part).__name__} has {sorted(state)}, expected "
            f"{sorted(expected)}: go on with the parts that it was saved from"
        )
