"""What the most suspicious examples of a run look like, so that a gallery needs no data."""

from dataclasses import replace

import numpy as np

from gradsift.data.problem import Problem
from gradsift.monitors.history import History, no_pixels
from gradsift.report.gallery import as_pixels
from gradsift.trainer.picks import describe, is_image

SHOWN = 48
"""Examples that a gallery of suspects can show."""


def with_looks(history: History, problem: Problem) -> History:
    """The same history with the pictures, or words, of its most suspicious examples.

    Args:
        history: of a run on the problem.
        problem: whose training examples are read again.

    Example:
        >>> from torch import arange, zeros
        >>> from torch.utils.data import TensorDataset
        >>> from gradsift.data.problem import from_datasets
        >>> data = TensorDataset(zeros(2, 1, 4, 4), arange(2))
        >>> losses, classes = np.array([0.5, 3.0], np.float32), np.arange(2, dtype=np.int32)
        >>> history = History(classes + 1, losses, losses, classes, classes)
        >>> found = with_looks(history, from_datasets("toy", data, data))
        >>> found.shown.tolist(), found.texts, found.pixels.shape
        ([1, 0], ('1', '0'), (2, 4, 4))
    """
    shown = history.suspects()[:SHOWN]
    examples = [problem.train[index] for index in shown.tolist()]
    images = bool(examples) and is_image(problem.input_shape) and problem.vocabulary is None
    return replace(
        history,
        shown=shown,
        pixels=np.stack([as_pixels(x.numpy()) for x, _ in examples]) if images else no_pixels(),
        texts=tuple(describe(problem, *example) for example in examples),
    )
