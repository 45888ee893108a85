"""From the word after ``--data`` to a problem: a bundled data set, or a function of the user's.

It imports the readers, and with them the optional packages that they need.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from gradsift.data.digits import digits
from gradsift.data.problem import Problem, from_datasets
from gradsift.errors import DataError, UsageError

BUNDLED = {"digits": digits}
"""Readers by name; each takes the seed of its split."""


def load_problem(spec: str, seed: int) -> Problem:
    """The problem behind ``digits`` or ``module:callable``.

    The module is looked for in the working directory too. The callable takes no argument and
    returns a `Problem`, or two map-style data sets ``(train, test)`` of ``(input, target)``.

    Args:
        spec: the word on the command line.
        seed: of the split of a bundled data set.

    Raises:
        UsageError: when the name, the module or the callable does not exist or fails.
        DataError: when what it returns is not a problem.

    Example:
        >>> load_problem("digits", seed=0).name
        'digits'
        >>> load_problem("mnits", seed=0)
        Traceback (most recent call last):
        gradsift.errors.UsageError: data set 'mnits' is unknown: give digits, or module:callable
    """
    if spec in BUNDLED:
        return BUNDLED[spec](seed)
    module_name, colon, attribute = spec.partition(":")
    if not (colon and module_name and attribute):
        raise UsageError(
            f"data set {spec!r} is unknown: give {', '.join(BUNDLED)}, or module:callable"
        )
    made = _call(spec, _resolve(spec, module_name, attribute))
    if isinstance(made, Problem):
        return made
    if isinstance(made, tuple | list) and len(made) == 2:
        train, test = made
        if isinstance(train, Dataset) and isinstance(test, Dataset):
            return from_datasets(spec, train, test)
    raise DataError(
        f"{spec} returned a {type(made).__name__}, expected a gradsift Problem or a pair "
        "(train, test) of torch data sets"
    )


def _resolve(spec: str, module_name: str, attribute: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"cannot import the module of {spec!r} ({_describe(error)}): name a module that is "
            "installed or in the working directory"
        ) from error
    target = getattr(module, attribute, None)
    if not callable(target):
        found = "has no" if target is None else "holds, but cannot call,"
        raise UsageError(f"module {module_name!r} {found} {attribute!r}: name a function of it")
    return target


def _call(spec: str, function: Any) -> Any:
    try:
        return function()
    except Exception as error:
        raise UsageError(
            f"{spec} failed ({_describe(error)}): it must run without arguments"
        ) from error


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
