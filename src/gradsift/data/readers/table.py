"""Numeric tables in text files: which column is learnt, what is missing, and the scale."""

from dataclasses import dataclass

import numpy as np
import torch

from gradsift.data.problem import Problem, pose
from gradsift.data.readers.arrays import Rows, Standard
from gradsift.data.readers.cells import Cells, is_missing, is_number, read_cells
from gradsift.data.readers.files import find_file
from gradsift.data.readers.options import ReadOptions
from gradsift.data.readers.targets import complement, held_out_part, read_targets
from gradsift.errors import DataError, UsageError


@dataclass(frozen=True, eq=False)
class Table:
    """A table as numbers.

    Attributes:
        features: float64 ``[rows, columns]``, NaN where a value is missing.
        labels: ``[rows]``, texts or float64.
        columns: number of each feature in the file, from 1.
        label: the learnt column, for error messages.
    """

    features: np.ndarray
    labels: np.ndarray
    columns: tuple[int, ...]
    label: str


def read_table(name: str, file: str, options: ReadOptions) -> Problem:
    """The problem of a numeric table: a fifth of the rows is the test part.

    Every column is standardised with the mean and the standard deviation of its training part; a
    constant column becomes zero.

    Args:
        name: for tables and reports.
        file: with the table.
        options: label, drop, missing, task and seed.

    Raises:
        UsageError: for a column that is not there.
        DataError: naming the file, the row and the column.
    """
    cells = read_cells(find_file(file))
    table = _numbers(cells, options)
    targets = read_targets(table.label, table.labels, options.task)
    held_out = held_out_part(str(cells.path), targets, options.seed)
    kept = complement(len(table.features), held_out)
    features = _filled(cells, table, kept.numpy())
    inputs = _standardised(cells, features, kept.numpy())
    return pose(
        name,
        Rows(inputs[kept], targets.values[kept]),
        Rows(inputs[held_out], targets.values[held_out]),
        (inputs.shape[1],),
        targets.outputs,
        targets.task,
    )


def find_column(cells: Cells, given: str) -> int:
    """The position of a column, from 0, by its name or by its number from 1 or from -1 backwards.

    Raises:
        UsageError: when there is none, or it is not clear which one is meant.

    Example:
        >>> from pathlib import Path
        >>> cells = Cells(Path("a.csv"), ("x", "y", "z"), [["1", "2", "3"]], [2])
        >>> find_column(cells, "y"), find_column(cells, "1"), find_column(cells, "-1")
        (1, 0, 2)
    """
    if given in cells.header:
        return cells.header.index(given)
    try:
        number = int(given)
    except ValueError:
        number = 0
    if 1 <= abs(number) <= cells.width:
        return number - 1 if number > 0 else cells.width + number
    named = f"one of {', '.join(cells.header)}, or " if cells.header else ""
    raise UsageError(
        f"{cells.path} has no column {given!r}: name {named}a number from 1 to {cells.width}, or "
        f"from -1 to -{cells.width} backwards"
    )


def _numbers(cells: Cells, options: ReadOptions) -> Table:
    label = find_column(cells, "-1" if options.label is None else options.label)
    dropped = {find_column(cells, column) for column in options.drop}
    if label in dropped:
        raise UsageError(
            f"column {label + 1} of {cells.path} is the label and is dropped too: choose another "
            "--label or --drop"
        )
    chosen = [column for column in range(cells.width) if column not in {label, *dropped}]
    if not chosen:
        raise UsageError(f"{cells.path} has no column left besides the label: drop fewer columns")
    rows = _complete_rows(cells, label, chosen, options.missing)
    features = np.array(
        [[_number(cells, row, column) for column in chosen] for row in rows], dtype=np.float64
    )
    texts = [cells.rows[row][label] for row in rows]
    numeric = all(is_number(text) for text in texts)
    labels = np.array(texts, dtype=np.float64) if numeric else np.array(texts)
    if numeric and not np.isfinite(labels).all():
        raise DataError(f"{_column(cells, label)} holds a number beyond float64: rescale it")
    names = tuple(column + 1 for column in chosen)
    return Table(features, labels, names, _column(cells, label))


def _complete_rows(cells: Cells, label: int, chosen: list[int], missing: str) -> list[int]:
    """The rows that stay; with ``mean`` these are all, and gaps in the features with them."""
    gaps = [
        (row, column)
        for row, texts in enumerate(cells.rows)
        for column in (*chosen, label)
        if is_missing(texts[column])
    ]
    refused = [gap for gap in gaps if gap[1] == label] if missing == "mean" else gaps
    if refused and missing != "drop":
        row, column = refused[0]
        advice = "--missing drop" if missing == "mean" else "--missing drop or --missing mean"
        raise DataError(
            f"{_column(cells, column)} has no value in line {cells.lines[row]} "
            f"({cells.rows[row][column]!r}; {len(refused)} such in all): choose {advice}"
        )
    gone = {row for row, _ in gaps} if missing == "drop" else set()
    kept = [row for row in range(len(cells.rows)) if row not in gone]
    if not kept:
        raise DataError(f"every row of {cells.path} misses a value: choose --missing mean")
    return kept


def _number(cells: Cells, row: int, column: int) -> float:
    text = cells.rows[row][column]
    value = float(text) if is_number(text) else np.nan
    if np.isfinite(value) or is_missing(text):
        return value
    raise DataError(
        f"{_column(cells, column)} has {text[:40]!r} in line {cells.lines[row]}, expected a "
        f"number: leave the column out with --drop {column + 1}, or make it the --label"
    )


def _column(cells: Cells, column: int) -> str:
    named = f" ({cells.header[column]})" if cells.header else ""
    return f"column {column + 1}{named} of {cells.path}"


def _filled(cells: Cells, table: Table, kept: np.ndarray) -> np.ndarray:
    """Gaps become the mean of the training part."""
    gaps = np.isnan(table.features)
    known = ~gaps[kept]
    empty = np.flatnonzero(~known.any(axis=0))
    if len(empty) > 0:
        raise DataError(
            f"{_column(cells, table.columns[empty[0]] - 1)} has no value in the training part: "
            "leave it out with --drop"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.where(known, table.features[kept], 0.0).sum(axis=0)
    return np.where(gaps, sums / known.sum(axis=0), table.features)


def _standardised(cells: Cells, features: np.ndarray, kept: np.ndarray) -> torch.Tensor:
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = features[kept].mean(axis=0), features[kept].std(axis=0)
        standard = Standard.of(mean, deviation)
        scaled = (features - mean) / standard.deviation.double().numpy()
        inputs = torch.from_numpy(scaled.astype(np.float32))
    if not bool(torch.isfinite(inputs).all()):
        raise DataError(f"{cells.path} holds numbers too large to standardise: rescale it")
    return inputs
