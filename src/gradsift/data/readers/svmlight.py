"""LIBSVM (SVMlight) files: sparse rows, ``label column:value …``, columns counted from 1.

scikit-learn reads the lines. What it lets through is looked for here: values that are not finite,
numbers with underscores, ranking data, empty files.
"""

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.datasets import load_svmlight_file
from torch import Tensor

from gradsift.data.problem import Problem, pose
from gradsift.data.readers.arrays import Rows
from gradsift.data.readers.files import find_file, read_bytes
from gradsift.data.readers.options import ReadOptions
from gradsift.data.readers.targets import (
    check_known,
    complement,
    held_out_part,
    read_targets,
)
from gradsift.errors import DataError

MOST_COLUMNS = 2**24
"""Column numbers up to here are exact in float32."""

_COMMENT = re.compile(rb"#[^\n]*")


class SparseRows(Rows):
    """Sparse rows that stay sparse: an input is ``[pairs, 2]``, each a column and its value.

    All inputs have as many pairs as the fullest row; the rest are ``(0, 0)``, which adds nothing.

    Args:
        bounds: where each row begins and ends among the entries.
        entries: column, from 0, and value; may be shared with other rows.
        pairs: of the fullest row.
        targets: as of `Rows`.

    Example:
        >>> entries = torch.tensor([[4.0, 0.5], [0.0, 1.0], [2.0, 2.0]])
        >>> rows = SparseRows(torch.tensor([[0, 1], [1, 3]]), entries, 2, torch.tensor([0, 1]))
        >>> rows[0][0], rows[1][0]
        (tensor([[4.0000, 0.5000], [0.0000, 0.0000]]), tensor([[0., 1.], [2., 2.]]))
    """

    def __init__(
        self,
        bounds: Int64[Tensor, "n 2"],
        entries: Float[Tensor, "entries 2"],
        pairs: int,
        targets: Tensor,
    ) -> None:
        super().__init__(bounds, targets)
        self._entries = entries
        self._places = torch.arange(pairs)

    def fetch(self, chosen: Tensor) -> Tensor:
        """Float32 pairs ``[batch, pairs, 2]``."""
        starts, ends = self.inputs[chosen].unbind(dim=1)
        places = starts[:, None] + self._places
        within = places < ends[:, None]
        return self._entries[places * within] * within[..., None]


@dataclass(frozen=True, eq=False)
class _Parsed:
    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    labels: np.ndarray


def read_svmlight(name: str, file: str, options: ReadOptions) -> Problem:
    """The problem of a LIBSVM file; ``FILE.t`` is its test part where it exists.

    Values are taken as they stand. Whole labels of at most 20 different values, such as -1 and
    +1, are classes.

    Args:
        name: for tables and reports.
        file: of the training part, or of both.
        options: task, and seed of the split.

    Raises:
        DataError: naming the file, and the line where there is one.
    """
    path = find_file(file)
    beside = path.with_name(f"{path.name}.t")
    paths = [path, beside] if beside.is_file() else [path]
    parts = [parse_svmlight(part, bytes(read_bytes(part))) for part in paths]
    rows = _joined(parts)
    targets = read_targets(f"the labels of {path}", rows.labels, options.task)
    if len(parts) == 2:
        test = torch.arange(len(parts[0].labels), len(rows.labels))
    else:
        test = held_out_part(str(path), targets, options.seed)
    train = complement(len(rows.labels), test)
    check_known(str(paths[-1]), targets, train, test)
    width = int(rows.columns.max()) + 1
    bounds = torch.from_numpy(np.stack([rows.starts[:-1], rows.starts[1:]], axis=1))
    pairs = int((bounds[:, 1] - bounds[:, 0]).max())
    entries = torch.from_numpy(np.stack([rows.columns.astype(np.float32), rows.values], axis=1))
    sets = [
        SparseRows(bounds[part], entries, pairs, targets.values[part]) for part in (train, test)
    ]
    return pose(name, sets[0], sets[1], (width,), targets.outputs, targets.task, sparse=True)


def parse_svmlight(path: Path, content: bytes) -> _Parsed:
    """The rows of the content of a file.

    Raises:
        DataError: naming the first line that is not one of the format.

    Example:
        >>> parse_svmlight(Path("a"), b"+1 1:0.5 3:2 # comment").columns
        array([0, 2])
    """
    bare = _COMMENT.sub(b"", content)
    if not bare.strip():
        raise DataError(f"{path} is empty, expected lines such as '+1 3:0.5 7:1'")
    parsed = _parse(bare)
    if parsed is None:
        lines = bare.split(b"\n")
        wrong = next((line for line in enumerate(lines, 1) if _parse(line[1]) is None), None)
        number, line = wrong or (1, lines[0])
        text = line.decode("ascii", "backslashreplace")[:60]
        raise DataError(
            f"line {number} of {path} is {text!r}: expected a label and finite values as "
            "COLUMN:VALUE, the columns whole numbers from 1 in ascending order"
        )
    if len(parsed.columns) == 0:
        raise DataError(f"{path} has labels but no values: expected COLUMN:VALUE after the label")
    if int(parsed.columns.max()) >= MOST_COLUMNS:
        raise DataError(
            f"{path} has column {parsed.columns.max() + 1}, expected at most {MOST_COLUMNS}: "
            "renumber the columns that occur"
        )
    return parsed


def _parse(content: bytes) -> _Parsed | None:
    """None for what is not the format."""
    if b"_" in content or b"qid:" in content or b"\0" in content:
        return None
    try:
        matrix, labels = load_svmlight_file(
            BytesIO(content),
            zero_based=False,  # pyright: ignore[reportArgumentType]
        )
    except (ValueError, OverflowError, MemoryError):
        return None
    values = matrix.data
    if not (np.isfinite(values).all() and np.isfinite(labels).all()):
        return None
    if np.abs(values).max(initial=0) > np.finfo(np.float32).max:
        return None
    columns = matrix.indices.astype(np.int64)
    return _Parsed(matrix.indptr.astype(np.int64), columns, values.astype(np.float32), labels)


def _joined(parts: list[_Parsed]) -> _Parsed:
    first, *others = parts
    for other in others:
        first = _Parsed(
            np.concatenate([first.starts, other.starts[1:] + first.starts[-1]]),
            np.concatenate([first.columns, other.columns]),
            np.concatenate([first.values, other.values]),
            np.concatenate([first.labels, other.labels]),
        )
    return first
