"""What cleanlab makes of a run's history: the only file that knows it, imported when it is there.

Confident learning (Northcutt, Jiang, Chuang, "Confident learning: estimating uncertainty in dataset
labels", 2021) wants predicted probabilities that are out of sample. Those of a history are means
over training, each taken before the step that learnt from the example: nearly so in a short run.
Extra ``suspects``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradsift.monitors.history import History
from gradsift.report.suspects import Judged

_find: Callable[..., Any] | None
try:
    from cleanlab.filter import find_label_issues  # pyright: ignore[reportMissingImports]
except ImportError:
    _find = None
else:
    _find = find_label_issues


def judge(history: History) -> Judged | None:
    """Label issues by confident learning, among the examples that were trained on.

    Issues are those of ``find_label_issues`` by its own default. Its usual order, by the mean
    probability of the given label, is that of the column "confidence".

    Args:
        history: with predicted probabilities.

    Returns:
        None where cleanlab is not installed, or where there is nothing to judge: no probabilities,
        or labels of fewer than two classes.

    Example:
        >>> ones, classes = np.ones(2, np.float32), np.zeros(2, np.int32)
        >>> judge(History(classes, ones, ones, classes, classes)) is None
        True
    """
    found = _known(history)
    if _find is None or found is None:
        return None
    ids, labels, probabilities = found
    issue, asked = np.zeros((2, len(history.visits)), dtype=bool)
    issue[ids] = _find(labels, probabilities, n_jobs=1)
    asked[ids] = True
    return Judged(issue, asked)


def _known(history: History) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Ids, labels and probabilities, whose rows sum to one again after their rounding."""
    if not len(history.probabilities):
        return None
    ids = np.flatnonzero((history.visits > 0) & (history.labels >= 0))
    labels = history.labels[ids].astype(np.int64)
    if len(np.unique(labels)) < 2:
        return None
    rows = history.probabilities[ids].astype(np.float64)
    return ids, labels, rows / rows.sum(1, keepdims=True)
