"""Scores from the training step itself, read one step late so that the step never waits.

On a CUDA device the scores are copied to pinned memory behind the step's own work; by the time
the next batch is prepared they have arrived.
"""

from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradsift.records import WeightedBatch
from gradsift.sifting.observations import Scored


@dataclass(frozen=True, eq=False)
class Reported:
    """What a training step told about its examples.

    Attributes:
        batch: the batch that was trained on.
        losses: the loss of each example, detached, in host memory.
        scores: of its examples, where the step is recorded; None otherwise.
        scored: scores that became known with it, of this step or of several, oldest first.
    """

    batch: WeightedBatch
    losses: Tensor
    scores: Tensor | None = None
    scored: tuple[Scored, ...] = ()


class Mailbox:
    """Holds reports until they are collected.

    Example:
        >>> Mailbox().collect()
        []
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Reported, torch.cuda.Event | None]] = deque()

    def post(self, report: Reported) -> None:
        """Takes a report and starts to copy it to host memory, where it is not there already."""
        if report.losses.device.type == "cpu":
            self._waiting.append((report, None))
            return
        on_host = replace(
            report,
            losses=_to_host(report.losses),
            scores=None if report.scores is None else _to_host(report.scores),
            scored=tuple(map(_scored_on_host, report.scored)),
        )
        event = None
        if report.losses.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((on_host, event))

    def collect(self) -> list[Reported]:
        """Every report posted since the last call, oldest first."""
        arrived = list(self._waiting)
        self._waiting.clear()
        for _, event in arrived:
            if event is not None:
                event.synchronize()
        return [report for report, _ in arrived]


def _scored_on_host(found: Scored) -> Scored:
    update = found.update
    update = replace(
        update,
        index=_to_host(update.index),
        score=_to_host(update.score),
        label=None if update.label is None else _to_host(update.label),
    )
    return replace(found, update=update, weights=_to_host(found.weights))


def _to_host(values: Tensor) -> Tensor:
    if values.device.type != "cuda":
        return values.cpu()
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return pinned.copy_(values, non_blocking=True)
