"""Outputs of training steps, whose scores are computed for several steps together.

A score is a dozen small operations, which take hardly longer for a thousand examples than for 64.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gradsift.nested import move
from gradsift.records import LossFunction, ScoreUpdate, WeightedBatch
from gradsift.scores.base import AbstractOutputScore

LARGEST = 2**16
"""Numbers in a step's outputs or targets beyond which it is scored at once, to save memory."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of one or several training steps.

    Attributes:
        update: ids and scores, with the version of the oldest step.
        weights: what each example was trained with.
        drawn: whether the examples were drawn, rather than taken in the user's own order.
    """

    update: ScoreUpdate
    weights: Tensor
    drawn: bool


@dataclass(frozen=True, eq=False)
class _Kept:
    """What a score needs of a step, and no more: its inputs may be freed."""

    outputs: Tensor
    targets: Tensor
    ids: Tensor
    weights: Tensor
    drawn: bool
    version: int


class Observations:
    """Scores the outputs of training steps, ``window`` steps at a time where they can be joined.

    Outputs can be joined when they and their targets are tensors of one shape per example, not
    larger than `LARGEST` numbers per step. Others are scored at once.

    Example:
        >>> from gradsift.scores import OutputGradient
        >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
        >>> observations = Observations(OutputGradient(), loss_fn, window=2)
        >>> def step(*ids):
        ...     labels = torch.zeros(len(ids), dtype=torch.int64)
        ...     return WeightedBatch(
        ...         None, labels, torch.ones(len(ids)), torch.tensor(ids), len(ids), False,
        ...         loss_fn, lambda *_: None,
        ...     )
        >>> observations.add(step(5, 7), torch.zeros(2, 2), version=0)
        []
        >>> (found,) = observations.add(step(3), torch.zeros(1, 2), version=1)
        >>> found.update.index, found.update.version
        (tensor([5, 7, 3]), 0)
    """

    def __init__(self, score: AbstractOutputScore, loss_fn: LossFunction, window: int) -> None:
        self._score = score
        self._loss_fn = loss_fn
        self._window = window
        self._kept: list[_Kept] = []

    def add(self, batch: WeightedBatch, outputs: Any, version: int) -> list[Scored]:
        """Takes the outputs of one step; returns what can be said now, oldest first."""
        if self._window == 1 or not _is_plain(batch, outputs):
            return [*self._settle(), self._at_once(batch, outputs, version)]
        found = [] if self._fits(batch, outputs) else self._settle()
        self._kept.append(
            _Kept(
                outputs=outputs.detach().clone(),
                targets=batch.targets.clone(),
                ids=batch.indices,
                weights=batch.weights,
                drawn=batch.drawn,
                version=version,
            )
        )
        if len(self._kept) == self._window:
            found += self._settle()
        return found

    def score(self, outputs: Any, targets: Any) -> Tensor:
        """The scores of one step."""
        return self._score.of_outputs(self._loss_fn, outputs, targets)

    def state_dict(self) -> dict[str, Any]:
        """The outputs that wait, as plain tensors and numbers."""
        return {"kept": [asdict(one) for one in self._kept]}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Goes on with the outputs that waited elsewhere.

        Args:
            state: of other observations.
            device: of the outputs to come.
        """
        self._kept = [_Kept(**move(one, device)) for one in state["kept"]]

    def _at_once(self, batch: WeightedBatch, outputs: Any, version: int) -> Scored:
        return scored(batch, self.score(outputs, batch.targets), version)

    def _settle(self) -> list[Scored]:
        if not self._kept:
            return []
        kept, self._kept = self._kept, []
        targets = torch.cat([one.targets for one in kept])
        scores = self.score(torch.cat([one.outputs for one in kept]), targets)
        ids = torch.cat([one.ids for one in kept])
        weights = torch.cat([one.weights for one in kept])
        update = ScoreUpdate(ids, scores, kept[0].version, _labels(targets, len(ids)))
        return [Scored(update, weights, kept[0].drawn)]

    def _fits(self, batch: WeightedBatch, outputs: Tensor) -> bool:
        if not self._kept:
            return True
        last = self._kept[-1]
        return (
            batch.drawn == last.drawn
            and _kind(outputs) == _kind(last.outputs)
            and _kind(batch.targets) == _kind(last.targets)
        )


def scored(batch: WeightedBatch, scores: Tensor, version: int) -> Scored:
    """The scores of one step, with all that is known about its examples."""
    update = ScoreUpdate(batch.indices, scores, version, _labels(batch.targets, len(batch)))
    return Scored(update, batch.weights, batch.drawn)


def _is_plain(batch: WeightedBatch, outputs: Any) -> bool:
    """Whether a step is small, and has one row of outputs and targets for each example."""
    return (
        all(isinstance(side, Tensor) and side.dim() > 0 for side in (outputs, batch.targets))
        and len(outputs) == len(batch.targets) == len(batch)
        and max(outputs.numel(), batch.targets.numel()) <= LARGEST
    )


def _labels(targets: Any, count: int) -> Tensor | None:
    """Targets that are one class per example."""
    classes = isinstance(targets, Tensor) and targets.dtype == torch.int64
    return targets if classes and targets.shape == (count,) else None


def _kind(values: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return values.shape[1:], values.dtype, values.device
