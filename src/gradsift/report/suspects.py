"""Examples whose history is suspicious, as rows: for the terminal, for a file, for a page."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from jaxtyping import Bool

from gradsift.errors import UsageError
from gradsift.monitors.history import History
from gradsift.report.numbers import quantity

HEAD = ("id", "label", "model", "mean loss", "last loss", "visits", "confidence", "cleanlab")
"""Titles of the columns."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What cleanlab says about the labels of a training set, by example id.

    Attributes:
        issue: whether the label is taken for wrong; False where nothing is known.
        asked: whether it was asked about the example.
    """

    issue: Bool[np.ndarray, " examples"]
    asked: Bool[np.ndarray, " examples"]


@dataclass(frozen=True)
class Suspect:
    """One example.

    Attributes:
        id: of the example, in the training set as it was trained on.
        label: class that it was given; None where targets are no classes.
        model: class that the model takes it for; None where unknown.
        mean_loss: over its visits, each over the mean loss of all examples at that time.
        last_loss: likewise, at the last visit.
        visits: training steps that it was in.
        confidence: mean predicted probability of the given label; None where unknown.
        issue: whether cleanlab takes the label for wrong; None where it was not asked.
    """

    id: int
    label: int | None
    model: int | None
    mean_loss: float
    last_loss: float
    visits: int
    confidence: float | None
    issue: bool | None


def suspects(history: History, top: int, judged: Judged | None = None) -> list[Suspect]:
    """The ``top`` examples with the largest mean relative loss, the most suspicious first.

    The order is that of the history alone: cleanlab only says which of them it takes for issues.

    Raises:
        UsageError: for no example to list, or a history of a run that made no step.

    Example:
        >>> losses, ones = np.array([0.5, 4.0], np.float32), np.ones(2, np.int32)
        >>> [found.id for found in suspects(History(ones, losses, losses, ones, ones), top=9)]
        [1, 0]
    """
    if top < 1:
        raise UsageError(f"--top {top} received, expected at least 1 example")
    if not history.visits.any():
        raise UsageError("the history is that of a run without a step: there is nothing to list")
    return [suspect(history, index, judged) for index in history.suspects()[:top].tolist()]


def as_text(found: Sequence[Suspect]) -> str:
    """A table in plain text, without the columns that nothing is known for.

    Example:
        >>> print(as_text([Suspect(7, 2, 1, 4.25, 3.5, 12, 0.01, None)]))
        id  label  model  mean loss  last loss  visits  confidence
         7      2      1       4.25        3.5      12        0.01
    """
    rows = [HEAD, *map(cells, found)]
    columns = [place for place in range(len(HEAD)) if any(row[place] for row in rows[1:])]
    widths = {place: max(len(row[place]) for row in rows) for place in columns}
    lines = [[row[place].rjust(widths[place]) for place in columns] for row in rows]
    return "\n".join(map("  ".join, lines))


def as_csv(found: Sequence[Suspect]) -> str:
    """Comma-separated values with all columns; what is not known is empty.

    Example:
        >>> print(as_csv([Suspect(7, 2, 1, 4.25, 3.5, 12, None, None)]))
        id,label,model,mean_loss,last_loss,visits,confidence,issue
        7,2,1,4.25,3.5,12,,
    """
    text = io.StringIO()
    names = [field.name for field in fields(Suspect)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(one) for one in found)
    return text.getvalue().rstrip("\n")


def suspect(history: History, index: int, judged: Judged | None = None) -> Suspect:
    """What the history says about one example that was trained on."""
    label, model = (_class(row[index]) for row in (history.labels, history.predicted))
    confidence = None
    if label is not None and label < history.probabilities.shape[1]:
        confidence = _rounded(history.probabilities[index, label])
    return Suspect(
        id=index,
        label=label,
        model=model,
        mean_loss=_rounded(history.mean[index]),
        last_loss=_rounded(history.last[index]),
        visits=int(history.visits[index]),
        confidence=confidence,
        issue=None if judged is None or not judged.asked[index] else bool(judged.issue[index]),
    )


def _rounded(value: np.floating) -> float:
    """Six digits: the record has no more."""
    return float(f"{float(value):.6g}")


def _class(value: np.integer) -> int | None:
    return int(value) if value >= 0 else None


def cells(one: Suspect) -> tuple[str, ...]:
    """Of one row, in the order of `HEAD`; empty where nothing is known."""
    return (
        str(one.id),
        "" if one.label is None else str(one.label),
        "" if one.model is None else str(one.model),
        quantity(one.mean_loss),
        quantity(one.last_loss),
        str(one.visits),
        "" if one.confidence is None else quantity(one.confidence),
        {None: "", True: "issue", False: "fine"}[one.issue],
    )
