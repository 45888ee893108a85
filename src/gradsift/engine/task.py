"""What a worker needs in order to score, and how it does: the same code in every engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsift.data.split import Split
from gradsift.engine.identity import Fingerprint, compare, fingerprint
from gradsift.engine.opening import Opening, open_examples
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


class Examiner:
    """Opens the data, takes parameters, scores blocks of ids.

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
            self._examples = open_examples(task.opening)
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
