"""What a worker needs in order to score, and how it does: the same code in every engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsift.data.split import Split
from gradsift.engine.evaluate import ErrorFunction, evaluate_slice
from gradsift.engine.identity import Fingerprint, compare, fingerprint
from gradsift.engine.opening import TRAIN, Opening, find_set, open_sets
from gradsift.errors import DataError
from gradsift.nested import move
from gradsift.records import LossFunction
from gradsift.scores.base import Forward, ScoreFunction
from gradsift.scores.evaluate import score_examples
from gradsift.scores.gradient_norm import GradientNorm
from gradsift.scores.untouched import random_states


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be scored, and how. It travels to workers by value.

    Attributes:
        model: a copy of the trained one, on the CPU; its parameters are replaced by published ones.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example.
        score: how much an example matters.
        split: a collated batch into inputs and targets.
        forward: how the model is called.
        collate: examples into a batch, as the loader does.
        opening: where a worker gets the data set from.
        expected: what some of the examples of the trainer look like.
        device: where workers score, in PyTorch's notation.
        chunk: examples per forward pass; None takes a block at once.
        evaluate: data sets whose loss is measured, by name; None for the part of that name of
            what ``opening`` opens.
        error_fn: one error per example of those; None measures none.
    """

    model: nn.Module
    loss_fn: LossFunction
    score: ScoreFunction
    split: Split
    forward: Forward
    collate: Callable[[list[Any]], Any]
    opening: Opening
    expected: Fingerprint
    device: str = "cpu"
    chunk: int | None = None
    evaluate: Mapping[str, Opening] = field(default_factory=dict)
    error_fn: ErrorFunction | None = None


class Examiner:
    """Opens the data, takes parameters, scores blocks of ids, evaluates slices.

    Nothing of the process changes by it: random states are put back.

    Args:
        task: what to score.

    Attributes:
        version: of the parameters in use; −1 before the first.
        notice: what should be said about the data, or None.

    Raises:
        DataError: when the examples are not those of the trainer.
    """

    def __init__(self, task: Task) -> None:
        self.version = -1
        with random_states([]):
            opened = open_sets(task.opening)
            self._examples = opened[TRAIN]
            self._evaluated = [find_set(opened, *named) for named in task.evaluate.items()]
            found = fingerprint(self._examples, task.collate, task.split)
        self.notice = compare(task.expected, found)
        self._task = replace(task, model=task.model.to(task.device))
        self._score = task.score
        if isinstance(task.score, GradientNorm):
            self._score = _Norms(task.score, task.forward)

    def load(self, parameters: Mapping[str, Tensor], version: int) -> None:
        """Replaces all parameters and buffers by another whole set."""
        self._task.model.load_state_dict(parameters)
        self.version = version

    def answer(self, start: int, stop: int, part: int = 0) -> Float[Tensor, " n"]:
        """What comes back for a block, or for a slice of a data set that is evaluated.

        Args:
            start: as of the `Block`, like the others.
            stop: likewise.
            part: likewise.
        """
        return self.evaluate(part - 1, start) if part else self.score(start, stop)

    def evaluate(self, number: int, place: int) -> Float[Tensor, " 3"]:
        """Mean loss, mean error and number of examples of a slice.

        Args:
            number: of the data set, in the order of ``Task.evaluate``.
            place: of the slice.
        """
        task = self._task
        return evaluate_slice(
            task.model,
            self._evaluated[number],
            place,
            loss_fn=task.loss_fn,
            error_fn=task.error_fn,
            split=task.split,
            forward=task.forward,
            collate=task.collate,
            device=task.device,
            chunk=task.chunk,
        )

    def score(self, start: int, stop: int) -> Float[Tensor, " n"]:
        """One score for each of the ids from ``start`` to ``stop − 1``: float32, on the CPU.

        Raises:
            DataError: for a score below zero.
        """
        task = self._task
        with random_states([]):
            batch = task.collate([self._examples[place] for place in range(start, stop)])
            inputs, targets = task.split(move(batch, task.device))
        scores = score_examples(
            self._score,
            task.model,
            task.loss_fn,
            inputs,
            targets,
            count=stop - start,
            chunk=task.chunk,
            forward=task.forward,
        )
        found = scores.float().cpu()
        if bool((found < 0).any()):
            first = int((found < 0).nonzero()[0])
            raise DataError(
                f"the score of example {start + first} is {float(found[first]):g}, expected "
                "scores >= 0: use a norm or a loss bounded below"
            )
        return found


@dataclass(frozen=True, eq=False)
class _Norms:
    """Gradient norms of a model that is called in the user's way."""

    score: GradientNorm
    forward: Forward

    def __call__(self, model: Any, loss_fn: LossFunction, inputs: Any, targets: Any) -> Tensor:
        return self.score.norms(model, loss_fn, inputs, targets, self.forward)


def plain_module(model: Any) -> Any:
    """The module inside `torch.compile` and data-parallel wrappers.

    Example:
        >>> inner = nn.Linear(1, 1)
        >>> plain_module(nn.DataParallel(inner)) is inner, plain_module(inner) is inner
        (True, True)
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.DataParallel | torch.nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if inner is None:
            return model
        model = inner
