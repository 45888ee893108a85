"""What the tests of rules share: updates, a picker at work without any model, all rules."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gradsift import rules
from gradsift.records import ScoreUpdate
from gradsift.rules import AbstractPicker, AbstractRule

N, BATCH = 14, 4

RULES: dict[str, AbstractRule] = {
    "prioritised": rules.Prioritised(),
    "ranked": rules.RankedByLoss(pressure=50.0, final=2.0, recompute=1.0),
    "random subset": rules.RandomSubset(0.5),
    "infobatch": rules.InfoBatch(until=0.8),
    "hidden": rules.Hidden(share=0.5, confidence=0.6),
    "p-sgd": rules.Budgeted("p", share=0.4),
    "c-sgd": rules.Budgeted("c", share=0.4),
    "learnt classes": rules.LearntClasses(),
    "class gaussian": rules.ClassGaussian(),
    "fixed": rules.Fixed(),
}
"""One of each."""


def update(
    ids: Iterable[int], scores: Iterable[float], labels: Iterable[int] | None = None
) -> ScoreUpdate:
    """Scores of some examples, and their classes."""
    return ScoreUpdate(
        torch.tensor(list(ids)),
        torch.tensor(list(scores), dtype=torch.float64),
        version=1,
        label=None if labels is None else torch.tensor(list(labels)),
    )


def ones(count: int) -> Tensor:
    """Weights of one."""
    return torch.ones(count, dtype=torch.float64)


def tell(
    picker: AbstractPicker, scores: Iterable[float], labels: Iterable[int] | None = None
) -> None:
    """A first pass over all examples, in order."""
    scores = list(scores)
    picker.learn(update(range(len(scores)), scores, labels), ones(len(scores)))
    picker.passed(len(scores))


def generator(seed: int = 0) -> torch.Generator:
    """Of the draws."""
    return torch.Generator().manual_seed(seed)


def score_of(ids: Tensor, step: int) -> Tensor:
    """A number in [0, 1) for each example, which changes from step to step."""
    return (0.37 * ids.double() + 0.11 * step + 0.05 * (ids % 3)) % 1.0


def work(
    picker: AbstractPicker, steps: Iterable[int], source: torch.Generator
) -> list[tuple[Any, ...]]:
    """What a picker picks in some steps of a run, as the loop asks and tells it."""
    found = []
    for step in steps:
        picker.progress = step / 40
        wanted = picker.wanted(BATCH)
        if len(wanted):
            picker.answer(ScoreUpdate(wanted, score_of(wanted, step), step))
        ids, weights = torch.arange(BATCH * step, BATCH * (step + 1)) % N, ones(BATCH)
        if picker.ready:
            drawn = picker.draw(BATCH, source)
            ids, weights = drawn.positions, drawn.weights
            assert drawn.size == BATCH
        picker.learn(ScoreUpdate(ids, score_of(ids, step), step, ids % 3), weights)
        picker.passed(BATCH)
        found.append((ids.tolist(), weights.tolist(), picker.lr_factor, wanted.tolist()))
    return found
