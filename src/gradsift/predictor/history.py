"""The last few losses of every example, oldest first."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64


class LossHistory:
    """``length`` numbers per example at most; the oldest leave when more come.

    Everyone begins with one number, as published: so an example that was never seen has a history
    too. Memory: 4 bytes per number and one more.

    Args:
        examples: N.
        length: from 1 to 255.
        first: the number that every history begins with.

    Example:
        >>> history = LossHistory(3, length=2, first=1.0)
        >>> history.append(np.array([2]), np.array([5.0]))
        >>> history.append(np.array([0, 2]), np.array([3.0, 7.0]))
        >>> values, counts = history.rows(np.array([0, 1, 2]))
        >>> values.tolist(), counts.tolist()
        ([[1.0, 3.0], [1.0, 0.0], [5.0, 7.0]], [2, 1, 2])
    """

    def __init__(self, examples: int, length: int, first: float) -> None:
        self._values = np.zeros((examples, length), np.float32)
        self._values[:, 0] = first
        self._counts = np.ones(examples, np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self._values.nbytes + self._counts.nbytes

    def append(self, ids: Int64[np.ndarray, " n"], numbers: Float[np.ndarray, " n"]) -> None:
        """Adds one number to the histories of different examples."""
        counts = self._counts[ids]
        full = counts == self._values.shape[1]
        moved = ids[full]
        self._values[moved, :-1] = self._values[moved, 1:]
        self._values[ids, np.where(full, counts - 1, counts)] = numbers
        self._counts[ids] = np.where(full, counts, counts + 1)

    def rows(
        self, ids: Int64[np.ndarray, " n"]
    ) -> tuple[Float32[np.ndarray, "n longest"], Int64[np.ndarray, " n"]]:
        """Histories, filled up with zeros to the longest of them, and their lengths."""
        counts = self._counts[ids].astype(np.int64)
        return self._values[ids, : int(counts.max(initial=1))], counts

    def state_dict(self) -> dict[str, Any]:
        """Copies."""
        return {
            "values": torch.from_numpy(self._values.copy()),
            "counts": torch.from_numpy(self._counts.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from other histories of the same shape."""
        self._values[:] = state["values"].numpy()
        self._counts[:] = state["counts"].numpy()


def each_once(
    ids: Int64[np.ndarray, " n"], *columns: Float64[np.ndarray, " n"]
) -> tuple[np.ndarray, ...]:
    """Different ids, ascending; where each stands first; and the means of its numbers.

    Example:
        >>> ids, first, means = each_once(np.array([7, 3, 7]), np.array([1.0, 5.0, 2.0]))
        >>> ids.tolist(), first.tolist(), means.tolist()
        ([3, 7], [1, 0], [5.0, 1.5])
    """
    different, first, places, counts = np.unique(
        ids, return_index=True, return_inverse=True, return_counts=True
    )
    sums = [np.bincount(places, column, len(different)) for column in columns]
    return different, first, *(total / counts for total in sums)
