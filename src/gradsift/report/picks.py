"""``picks.npz``: which examples a run scored high and low, and which it drew often and seldom.

A run keeps the inputs of the few examples that a gallery shows, so that a report needs no data.
"""

import os
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradsift.errors import DataError

FILE = "picks.npz"


@dataclass(frozen=True, eq=False)
class Picks:
    """Scores and draws per example, and what the shown examples look like.

    Attributes:
        scored: int64 ids of the examples that were scored at the end of the run.
        scores: float64, of each of them, by the output gradient of the final model.
        draws: int64, how often each example of the training set was trained on.
        shown: int64 ids of the examples whose inputs are kept.
        inputs: float32, ``[shown, channels, height, width]`` where inputs are images; empty
            elsewhere.
        texts: of each shown example, what it is in words.
    """

    scored: NDArray[np.int64]
    scores: NDArray[np.float64]
    draws: NDArray[np.int64]
    shown: NDArray[np.int64]
    inputs: NDArray[np.float32]
    texts: tuple[str, ...]

    def extremes(self, count: int) -> dict[str, NDArray[np.int64]]:
        """Ids of the examples with the largest and smallest scores, and most and least drawn.

        Among equals the smaller id comes first.

        Example:
            >>> ids, none = np.arange(3), np.zeros(0, dtype=np.float32)
            >>> picks = Picks(ids, np.array([0.2, 0.9, 0.1]), np.array([4, 4, 0]), ids, none, ())
            >>> {name: found.tolist() for name, found in picks.extremes(2).items()}
            {'high': [1, 0], 'low': [2, 0], 'most': [0, 1], 'least': [2, 0]}
        """
        by_score = np.argsort(self.scores, kind="stable")
        downwards = np.argsort(-self.scores, kind="stable")
        return {
            "high": self.scored[downwards[:count]],
            "low": self.scored[by_score[:count]],
            "most": np.argsort(-self.draws, kind="stable")[:count],
            "least": np.argsort(self.draws, kind="stable")[:count],
        }


def write_picks(folder: Path, picks: Picks) -> Path:
    """Writes ``FOLDER/picks.npz`` whole or not at all, and returns its path."""
    path = folder / FILE
    waiting = folder / f"{FILE}.partial"
    with waiting.open("wb") as file:
        np.savez_compressed(file, **{**asdict(picks), "texts": np.array(picks.texts, dtype=str)})
        file.flush()
        os.fsync(file.fileno())
    waiting.replace(path)
    return path


def read_picks(folder: Path) -> Picks | None:
    """Reads what `write_picks` wrote; None where a run kept none.

    Raises:
        DataError: when the file is there and cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    names = [field.name for field in fields(Picks)]
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{str(path)!r} cannot be read ({type(error).__name__}), expected the arrays "
            f"{', '.join(names)}: delete it, or the run, and run it again"
        ) from error
    return Picks(**{**found, "texts": tuple(found["texts"].tolist())})
