"""``history.npz``: what training steps said about every example, in a few numbers each.

High losses over a whole run are often wrong labels. The record is small, so that a run can leave it
behind: how often an example was trained on, its mean and last relative loss, its label, and what
the model made of it meanwhile.
"""

import os
import zipfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int32, Int64, UInt8

from gradsift.errors import DataError, UsageError

FILE = "history.npz"

UNKNOWN = -1
"""A class that nobody has told."""


def no_probabilities() -> Float16[np.ndarray, "kept classes"]:
    """Of a run that keeps none."""
    return np.zeros((0, 0), np.float16)


def nobody() -> Int64[np.ndarray, " shown"]:
    """No example to show."""
    return np.zeros(0, np.int64)


def no_pixels() -> UInt8[np.ndarray, "pictures height width *channels"]:
    """Of examples that are no images."""
    return np.zeros((0, 0, 0), np.uint8)


@dataclass(frozen=True, eq=False)
class History:
    """Every example of a training set, by id, as the training steps on it saw it.

    A relative loss is over the mean loss of all examples at that time: one is average, at the start
    of a run and at its end. Nothing here cost an extra forward pass.

    Attributes:
        visits: training steps that the example was in.
        mean: of its relative losses over these; nan without any.
        last: relative loss in the last of them; nan without any.
        labels: class that it was trained on; −1 where targets are no classes.
        predicted: class of the largest mean probability, or of the largest output in the last
            visit where probabilities are not kept; −1 where unknown.
        probabilities: mean predicted probabilities over its visits, each as it was before the step
            that learnt from it; no rows where they are not kept.
        shown: ids of the most suspicious examples, in that order, that a gallery can show.
        pixels: of each of these, where inputs are images; empty elsewhere.
        texts: of each of these, what it is in words.

    Example:
        >>> history = History(
        ...     visits=np.array([2, 0, 3], np.int32),
        ...     mean=np.array([0.5, np.nan, 4.0], np.float32),
        ...     last=np.array([0.1, np.nan, 5.0], np.float32),
        ...     labels=np.array([1, -1, 0], np.int32),
        ...     predicted=np.array([1, -1, 1], np.int32),
        ... )
        >>> history.suspects().tolist()
        [2, 0]
    """

    visits: Int32[np.ndarray, " examples"]
    mean: Float32[np.ndarray, " examples"]
    last: Float32[np.ndarray, " examples"]
    labels: Int32[np.ndarray, " examples"]
    predicted: Int32[np.ndarray, " examples"]
    probabilities: Float16[np.ndarray, "kept classes"] = field(default_factory=no_probabilities)
    shown: Int64[np.ndarray, " shown"] = field(default_factory=nobody)
    pixels: UInt8[np.ndarray, "pictures height width *channels"] = field(default_factory=no_pixels)
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        examples = len(self.visits)
        rows = (self.mean, self.last, self.labels, self.predicted)
        if any(len(row) != examples for row in rows):
            raise UsageError(
                f"a history received the rows of {sorted({examples, *map(len, rows)})} examples, "
                "expected one number of each kind per example"
            )
        whole = len(self.probabilities) in (0, examples) and len(self.texts) == len(self.shown)
        inside = bool(((self.shown >= 0) & (self.shown < examples)).all())
        if not (whole and inside and len(self.pixels) in (0, len(self.shown))):
            raise UsageError(
                f"a history of {examples} examples received {len(self.probabilities)} rows of "
                f"probabilities, and to be shown {len(self.shown)} ids, {len(self.pixels)} "
                f"pictures and {len(self.texts)} texts: expected as many of each, of its own"
            )

    def suspects(self) -> Int64[np.ndarray, " visited"]:
        """Ids by falling mean relative loss, the smaller id first among equals.

        The most suspicious come first. Examples that were never trained on are left out.
        """
        visited = np.flatnonzero(self.visits)
        return visited[np.argsort(-self.mean[visited], kind="stable")]


def write_history(folder: str | Path, history: History) -> Path:
    """Writes ``FOLDER/history.npz`` whole or not at all, and returns its path.

    Args:
        folder: made if it does not exist.
        history: of a `HistoryRecorder`.

    Example:
        >>> import tempfile
        >>> ones, classes = np.ones(3, np.float32), np.zeros(3, np.int32)
        >>> folder = tempfile.mkdtemp()
        >>> write_history(folder, History(classes + 2, ones, ones, classes, classes)).name
        'history.npz'
        >>> read_history(folder).suspects().tolist()
        [0, 1, 2]
    """
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f"{FILE}.partial")
    with waiting.open("wb") as file:
        texts = np.array(history.texts, dtype=str)
        np.savez_compressed(file, **{**asdict(history), "texts": texts})
        file.flush()
        os.fsync(file.fileno())
    waiting.replace(path)
    return path


def read_history(folder: str | Path) -> History:
    """Reads what `write_history` wrote.

    Raises:
        UsageError: for a folder that does not exist, or holds no history.
        DataError: for a history that cannot be read.

    Example:
        >>> read_history("runs/none")
        Traceback (most recent call last):
        gradsift.errors.UsageError: there is no folder 'runs/none': name that of a run
    """
    path = Path(folder) / FILE
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {str(folder)!r}: name that of a run")
    if not path.exists():
        raise UsageError(
            f"folder {str(folder)!r} holds no {FILE}: name that of a run of gradsift train that "
            "has come to its end (parallel SGD keeps no history)"
        )
    names = [part.name for part in fields(History)]
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in names}
        return History(**{**found, "texts": tuple(map(str, found["texts"].tolist()))})
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{str(path)!r} cannot be read ({type(error).__name__}), expected the arrays "
            f"{', '.join(names)}: run it again"
        ) from error
