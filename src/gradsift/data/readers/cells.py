"""A text table into cells: the separator, the header, the shape; nothing about their meaning."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from gradsift.data.readers.files import read_text
from gradsift.errors import DataError

SEPARATORS = (";", "\t", ",")
MISSING = frozenset({"", "?", "na", "nan"})
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Cells:
    """A rectangle of texts.

    Attributes:
        path: where it came from.
        header: names of the columns; empty where the file has none.
        rows: texts without surrounding space, all of one length.
        lines: where in the file each row ends, from 1.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    @property
    def width(self) -> int:
        """How many columns there are."""
        return len(self.rows[0])


def is_number(cell: str) -> bool:
    """Whether a cell is a plain decimal number.

    Example:
        >>> [cell for cell in ("1", "-.5e3", "1,5", "nan", "1_000", "0x1", "") if is_number(cell)]
        ['1', '-.5e3']
    """
    return _NUMBER.fullmatch(cell) is not None


def is_missing(cell: str) -> bool:
    """Whether a cell says that its value is not known.

    Example:
        >>> [is_missing(cell) for cell in ("?", "", "NaN", "NA", "0")]
        [True, True, True, True, False]
    """
    return cell.lower() in MISSING


def read_cells(path: Path) -> Cells:
    """The cells of a table.

    The separator is the first of semicolon, tab and comma that the first line has; without any it
    is white space. Cells may be quoted. The first row is a header when none of its cells is a
    number, while the rest of the table has numbers.

    Raises:
        DataError: for a file that is no text, for rows of different length, for a header with the
            same name twice, and for a table without rows.
    """
    text = read_text(path)
    rows, lines = _split(path, text)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(rows[0]):
            raise DataError(
                f"line {line} of {path} has {len(row)} columns, the first row has "
                f"{len(rows[0])}: expected as many in every row"
            )
    if not _is_header(rows):
        return Cells(path, (), rows, lines)
    header = tuple(rows[0])
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise DataError(
            f"the header of {path} names {twice[0]!r} twice: expected a different name for every "
            "column"
        )
    return Cells(path, header, rows[1:], lines[1:])


def _split(path: Path, text: str) -> tuple[list[list[str]], list[int]]:
    first = next(line for line in text.splitlines() if line.strip())
    separator = next((mark for mark in SEPARATORS if mark in first), None)
    rows, lines = [], []
    if separator is None:
        for line, row in enumerate(text.splitlines(), 1):
            if row.strip():
                rows.append(row.split())
                lines.append(line)
        return rows, lines
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if len(cells) > 1 or any(cells):
                rows.append(cells)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} of {path} is no row of a table ({error}): check its quotes"
        ) from error
    return rows, lines


def _is_header(rows: list[list[str]]) -> bool:
    if any(is_number(cell) for cell in rows[0]) or all(is_missing(cell) for cell in rows[0]):
        return False
    return any(is_number(cell) for row in rows[1:] for cell in row)
