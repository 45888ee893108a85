"""Where a worker gets the data set from: by name, by calling a function, or by value."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradsift.data.problem import Problem
from gradsift.errors import DataError, UsageError

NAMED = "gradsift.data.named"
"""Knows the other words; imported when one is used, because it needs packages of an extra."""

Opening = Any
"""``"module:callable"`` or another word after ``--data``, a callable, or the data set itself."""


def open_examples(opening: Opening) -> Any:
    """The map-style data set that an opening stands for.

    A callable returns a data set, or what ``--data module:callable`` may return, of which the
    training set is taken.

    Args:
        opening: a word, a function without arguments, or a data set.

    Raises:
        UsageError: when a name does not exist, or a call fails.
        DataError: when what is opened has no length or no index.

    Example:
        >>> len(open_examples("digits")), open_examples([4, 5])[1]
        (1442, 5)
        >>> open_examples(lambda: 3)
        Traceback (most recent call last):
        gradsift.errors.DataError: the engine's data set is a int, expected a map-style ...
    """
    found = opening
    if isinstance(opening, str):
        found = _by_name(opening)
    elif callable(opening):
        found = opening()
    if isinstance(found, Problem):
        found = found.train
    elif isinstance(found, tuple) and len(found) == 2:
        found = found[0]
    if not (hasattr(found, "__len__") and hasattr(found, "__getitem__")):
        raise DataError(
            f"the engine's data set is a {type(found).__name__}, expected a map-style data set: "
            "one with a length and an index"
        )
    return found


def _by_name(word: str) -> Any:
    module_name, colon, attribute = word.partition(":")
    function = _function(module_name, attribute) if colon and module_name else None
    if function is not None:
        return function()
    named = importlib.import_module(NAMED)
    return named.load_problem(word, named.ReadOptions())


def _function(module_name: str, attribute: str) -> Callable[[], Any] | None:
    """The function of a module, or None where the word names something else."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0]:
            raise UsageError(
                f"cannot import {module_name!r} for the engine's data set ({error}): name a "
                "module that is installed or in the working directory"
            ) from error
        return None
    function = getattr(module, attribute, None)
    return function if callable(function) else None
