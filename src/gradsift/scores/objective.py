"""What is being trained: the mean over the data of what ``loss_fn`` returns for an example.

Importance weights keep ``(1/N) Σ_i loss_fn_i`` unbiased. A loss whose value for one example
depends on which others share its batch has no such sum: its denominator would change with the
proposal. Such a loss is refused rather than silently replaced by another objective; a loss with a
denominator of its own is given its defined meaning, and that meaning is said once.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.errors import UsageError
from gradsift.nested import per_leaf, take
from gradsift.records import LossFunction
from gradsift.scores.base import in_full_precision, losses_of
from gradsift.scores.precision import autocast

TOLERANCE = 1e-3
"""Relative change of an example's loss that counts as a dependence on its batch."""


def examine(loss_fn: LossFunction, outputs: Any, targets: Any) -> list[str]:
    """Checks that ``loss_fn`` defines an objective, and says what it is where that may surprise.

    Args:
        loss_fn: ``loss_fn(outputs, targets)``.
        outputs: the model's outputs for one batch.
        targets: the targets of the same batch.

    Returns:
        Notices, in words, possibly none.

    Raises:
        UsageError: for a loss that is not one number per example, or that changes with the rest
            of the batch.

    Example:
        >>> import torch
        >>> def token_mean(outputs, targets):
        ...     return (outputs * targets).sum(1) / targets.sum()
        >>> examine(token_mean, torch.ones(4, 3), torch.ones(4, 3))
        Traceback (most recent call last):
        gradsift.errors.UsageError: loss_fn gives an example another loss when ...
    """
    outputs = in_full_precision(outputs)
    with torch.no_grad(), autocast(outputs, "float32"):
        losses = losses_of(loss_fn, outputs, targets)
        _refuse_dependence(loss_fn, outputs, targets, losses)
    return _notices(loss_fn, targets)


def _refuse_dependence(loss_fn: LossFunction, outputs: Any, targets: Any, losses: Tensor) -> None:
    count = len(losses)
    if count < 2 or not torch.equal(losses, losses_of(loss_fn, outputs, targets)):
        return
    cut = max(1, count // 3)
    alone = torch.cat(
        [
            losses_of(loss_fn, _rows(outputs, part, count), take(targets, part, count))
            for part in (slice(0, cut), slice(cut, count))
        ]
    )
    scale = losses.abs().max()
    if not torch.isfinite(scale):
        return
    change = (alone - losses).abs().nan_to_num(nan=math.inf).max()
    if bool(change > TOLERANCE * scale):
        raise UsageError(
            f"loss_fn gives an example another loss when the rest of its batch changes (by "
            f"{float(change / scale):.2g} of the largest), expected a loss of its own for each: "
            "divide by a constant, such as the mean token count of the data, not by a number "
            "taken from the batch"
        )


def _rows(outputs: Any, part: slice, count: int) -> Any:
    """An output without a batch dimension stays whole: a loss may ignore it."""

    def cut(leaf: Tensor) -> Tensor:
        return leaf[part] if leaf.dim() > 0 and leaf.shape[0] == count else leaf

    return per_leaf(outputs, cut)


def _notices(loss_fn: LossFunction, targets: Any) -> list[str]:
    notices: list[str] = []
    if getattr(loss_fn, "weight", None) is not None and isinstance(loss_fn, nn.Module):
        notices.append(
            "class weights: the objective is the mean of a_y·loss over all examples; "
            "reduction='mean' would divide by the mean of a_y too, a constant factor"
        )
    ignored = getattr(loss_fn, "ignore_index", None)
    hard = isinstance(targets, Tensor) and not targets.is_floating_point()
    if ignored is not None and hard and bool((targets == ignored).any()):
        notices.append(
            f"targets equal to ignore_index={ignored}: the objective is the mean over all "
            "examples, ignored ones counting as zero; reduction='mean' would leave them out"
        )
    return notices
