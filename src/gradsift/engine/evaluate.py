"""How a worker evaluates a data set: in slices, each a sample of the whole.

A set of any size is looked at through `EXAMPLES` of its examples at most, spread evenly over its
ids, and these are dealt into `SLICES` slices. So a curve costs the same for every data set, a slice
takes about as long as a block, and whoever asks need not know how large the set is.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsift.data.split import Split
from gradsift.engine.identity import GOLDEN
from gradsift.nested import move
from gradsift.records import LossFunction, check_per_example
from gradsift.scores.base import Forward
from gradsift.scores.untouched import random_states, untouched

ErrorFunction = Callable[[Any, Any], Tensor]
"""``error(outputs, targets)``: one error per example, such as 0 or 1."""

EXAMPLES = 4096
"""Of a data set, at most: a mean error is known to one percent."""

SLICES = 8

NUMBERS = 3
"""That a slice comes back as: mean loss, mean error, number of examples."""


def slice_ids(length: int, place: int) -> list[int]:
    """The ids of one slice: every example belongs to one slice at most, and small sets to one.

    Example:
        >>> slice_ids(10, 0), slice_ids(10, 7)
        ([0, 8], [7])
        >>> len(slice_ids(10**9, 3)), slice_ids(10**9, 0)[0]
        (512, 0)
    """
    if length <= EXAMPLES:
        return list(range(place, length, SLICES))
    spread = {(k * GOLDEN % 2**64) * length >> 64 for k in range(EXAMPLES)}
    return sorted(spread)[place::SLICES]


def evaluate_slice(
    model: nn.Module,
    examples: Any,
    place: int,
    *,
    loss_fn: LossFunction,
    error_fn: ErrorFunction | None,
    split: Split,
    forward: Forward,
    collate: Callable[[list[Any]], Any],
    device: str,
    chunk: int | None,
) -> Float[Tensor, " 3"]:
    """Mean loss, mean error and number of examples of one slice, in eval mode, without a trace.

    Sums are taken in float64; the means come as float32.

    Args:
        model: on the device.
        examples: a map-style data set.
        place: of the slice, from 0 to ``SLICES − 1``.
        loss_fn: one loss per example.
        error_fn: one error per example; None gives a mean error of nan.
        split: a collated batch into inputs and targets.
        forward: how the model is called.
        collate: examples into a batch.
        device: of the model.
        chunk: examples per forward pass; None takes the slice at once.

    Raises:
        UsageError: for a loss or an error that is not one number per example.

    Example:
        >>> from gradsift.data.split import split_batch
        >>> from gradsift.scores.base import call_model
        >>> data = torch.utils.data.TensorDataset(torch.arange(16.0), torch.zeros(16))
        >>> evaluate_slice(nn.Identity(), data, 1, loss_fn=lambda x, y: x + y, error_fn=None,
        ...     split=split_batch, forward=call_model, collate=torch.utils.data.default_collate,
        ...     device="cpu", chunk=None)
        tensor([5., nan, 2.])
    """
    ids = slice_ids(len(examples), place)
    step = max(1, len(ids) if chunk is None else chunk)
    loss = error = 0.0
    for start in range(0, len(ids), step):
        part = ids[start : start + step]
        with random_states([]):
            inputs, targets = split(move(collate([examples[i] for i in part]), device))
        with untouched(model), torch.no_grad():
            outputs = forward(model, inputs)
            loss += _total(loss_fn(outputs, targets), len(part), "loss_fn returned")
            if error_fn is not None:
                error += _total(error_fn(outputs, targets), len(part), "error returned")
    count = max(1, len(ids))
    mean_error = torch.nan if error_fn is None else error / count
    return torch.tensor([loss / count, mean_error, len(ids)])


def _total(values: Tensor, count: int, what: str) -> float:
    check_per_example(values, count, what)
    return float(values.double().sum())
