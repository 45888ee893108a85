"""Where a worker gets the data set from: by name, by calling a function, or by value."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradsift.data.problem import Problem
from gradsift.errors import DataError, UsageError

NAMED = "gradsift.data.named"
"""Knows the other words; imported when one is used, because it needs packages of an extra."""

TRAIN, TEST = "train", "test"
"""The parts of a `Problem` and of a pair of data sets."""

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
    return open_sets(opening)[TRAIN]


def open_sets(opening: Opening) -> dict[str, Any]:
    """All data sets that an opening stands for: "train", and "test" where there are two.

    Args:
        opening: as for `open_examples`.

    Raises:
        UsageError: likewise.
        DataError: likewise.

    Example:
        >>> {name: len(data) for name, data in open_sets("digits").items()}
        {'train': 1442, 'test': 355}
    """
    found: Any = opening
    if isinstance(opening, str):
        found = _by_name(opening)
    elif callable(opening):
        found = opening()
    if isinstance(found, Problem):
        found = (found.train, found.test)
    pair = isinstance(found, tuple) and len(found) == 2
    opened: dict[str, Any] = {TRAIN: found[0], TEST: found[1]} if pair else {TRAIN: found}
    for data in opened.values():
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise DataError(
                f"the engine's data set is a {type(data).__name__}, expected a map-style data "
                "set: one with a length and an index"
            )
    return opened


def find_set(opened: Mapping[str, Any], name: str, opening: Opening) -> Any:
    """The data set that is evaluated under a name.

    Args:
        opened: the parts of what is scored.
        name: of the data set.
        opening: of its own; None takes the part of that name.

    Raises:
        UsageError: where there is no part of that name.

    Example:
        >>> find_set({"train": [1, 2]}, "validation", [5, 6])
        [5, 6]
        >>> find_set({"train": [1, 2]}, "test", None)
        Traceback (most recent call last):
        gradsift.errors.UsageError: an engine is to evaluate 'test', and the data set has train ...
    """
    parts = opened if opening is None else open_sets(opening)
    if opening is not None and len(parts) == 1:
        return parts[TRAIN]
    if name not in parts:
        raise UsageError(
            f"an engine is to evaluate {name!r}, and the data set has {' and '.join(parts)} only: "
            "say how to open it, as in evaluate={'validation': 'module:callable'}"
        )
    return parts[name]


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
