"""Scoring a pool: in chunks, without a trace, with any kind of score."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradsift.nested import take
from gradsift.records import LossFunction, check_per_example
from gradsift.scores.base import AbstractOutputScore, Forward, ScoreFunction, call_model
from gradsift.scores.untouched import untouched


def score_examples(
    score: ScoreFunction,
    model: Any,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    *,
    count: int,
    chunk: int | None = None,
    forward: Forward = call_model,
) -> Float[Tensor, " candidates"]:
    """One score for each of ``count`` examples, in chunks that are known to fit in memory.

    Args:
        score: any score; an `AbstractOutputScore` runs ``forward`` in its own mode and precision.
        model: the model as it is now; nothing of it changes.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example.
        inputs: what ``forward`` takes, ``count`` examples.
        targets: what ``loss_fn`` takes, ``count`` examples.
        count: how many examples there are.
        chunk: examples per forward pass; all at once by default.
        forward: how the model is called. Plain score functions call it themselves.

    Raises:
        UsageError: when the score does not return one number per example.

    Example:
        >>> import torch
        >>> def first_feature(model, loss_fn, inputs, targets):
        ...     return inputs[:, 0]
        >>> x = torch.arange(6.0).reshape(3, 2)
        >>> score_examples(first_feature, torch.nn.Identity(), torch.dot, x, x, count=3, chunk=2)
        tensor([0., 2., 4.])
    """
    step = count if chunk is None else chunk
    mode = score.mode if isinstance(score, AbstractOutputScore) else "eval"
    parts: list[Tensor] = []
    with untouched(model, mode):
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            x, y = (take(side, part, count) for side in (inputs, targets))
            parts.append(_score_chunk(score, model, loss_fn, x, y, forward))
            check_per_example(parts[-1], part.stop - part.start, "the score returned")
    return torch.cat(parts)


def _score_chunk(
    score: ScoreFunction,
    model: Any,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    forward: Forward,
) -> Tensor:
    if isinstance(score, AbstractOutputScore):
        return score.of_outputs(loss_fn, score.outputs(model, forward, inputs), targets)
    return score(model, loss_fn, inputs, targets).detach()
