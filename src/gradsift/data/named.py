"""From the word after ``--data`` to a problem: a file in a known format, or a function of yours.

It imports the readers, and with them the optional packages that they need.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from gradsift.data.digits import digits
from gradsift.data.problem import Problem, from_datasets
from gradsift.data.readers.cifar import read_cifar
from gradsift.data.readers.idx import read_mnist
from gradsift.data.readers.npz import read_npz
from gradsift.data.readers.options import ReadOptions as ReadOptions
from gradsift.data.readers.svmlight import read_svmlight
from gradsift.data.readers.table import read_table
from gradsift.data.readers.text import read_text_problem
from gradsift.errors import DataError, UsageError

Reader = Callable[[str, str, ReadOptions], Problem]
"""``reader(spec, place, options)``; the spec is the problem's name."""

TABLE = ("label", "drop", "missing", "task")


def _digits(spec: str, place: str, options: ReadOptions) -> Problem:
    if place != spec:
        raise UsageError(f"{spec!r} received, but digits are bundled: leave {place!r} out")
    return digits(options.seed)


def _mnist(spec: str, place: str, options: ReadOptions) -> Problem:
    del options
    return read_mnist(spec, place)


def _cifar(spec: str, place: str, options: ReadOptions) -> Problem:
    del options
    return read_cifar(spec.partition(":")[0], spec, place)


KINDS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    "digits": (_digits, ()),
    "mnist": (_mnist, ()),
    "fashion-mnist": (_mnist, ()),
    "cifar10": (_cifar, ()),
    "cifar100": (_cifar, ()),
    "libsvm": (read_svmlight, ("task",)),
    "text": (read_text_problem, ("unit", "context")),
    "table": (read_table, TABLE),
    "npz": (read_npz, ("task",)),
}
"""Readers by the word before the colon, each with the options that mean something to it."""

ALONE = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")
"""Names that stand for a folder of the same name, or for no folder."""

ENDINGS = {".csv": "table", ".tsv": "table", "data": "table", ".npz": "npz"}
"""How a file name ends, where it stands without a word before it."""

EXPECTED = (
    f"{', '.join(ALONE)} (with :DIR), FILE.npz, FILE.csv, FILE.data, table:FILE, libsvm:FILE, "
    "text:FILE, or module:callable"
)


def load_problem(spec: str, options: ReadOptions) -> Problem:
    """The problem behind a word such as ``digits``, ``iris.csv``, ``libsvm:a9a`` or ``module:f``.

    Paths that do not exist here are looked for in the folder that the environment variable
    ``GRADSIFT_DATA`` names. A module is looked for in the working directory too. A callable takes
    no argument and returns a `Problem`, or two map-style data sets ``(train, test)`` of
    ``(input, target)``.

    Args:
        spec: the word on the command line.
        options: how to read the data.

    Raises:
        UsageError: when the name, the module or the callable does not exist or fails, or when an
            option means nothing for these data.
        DataError: when a file is missing or broken, or what a callable returns is not a problem.

    Example:
        >>> load_problem("digits", ReadOptions(seed=0)).name
        'digits'
        >>> load_problem("mnits", ReadOptions())
        Traceback (most recent call last):
        gradsift.errors.UsageError: data set 'mnits' is unknown: give digits, mnist, ...
    """
    kind, colon, place = spec.partition(":")
    if kind in KINDS and (colon or kind in ALONE):
        place = place if colon else kind
    else:
        ending = next((ending for ending in ENDINGS if spec.endswith(ending)), None)
        kind, place = (ENDINGS[ending], spec) if ending and not _names_code(spec) else ("", spec)
    if kind:
        reader, meant = KINDS[kind]
        options.allow(spec, *meant)
        return reader(spec, place, options)
    options.allow(spec)
    return _from_callable(spec)


def _names_code(spec: str) -> bool:
    """Whether a word is ``module:callable`` rather than a file, as in ``my_module:load_data``."""
    module, colon, attribute = spec.partition(":")
    return bool(colon) and attribute.isidentifier() and module.replace(".", "").isidentifier()


def _from_callable(spec: str) -> Problem:
    module_name, colon, attribute = spec.partition(":")
    if not (colon and module_name and attribute):
        raise UsageError(f"data set {spec!r} is unknown: give {EXPECTED}")
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
