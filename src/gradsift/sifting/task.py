"""What the workers of an engine have to know of a sifted loader."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from gradsift.engine.identity import fingerprint
from gradsift.engine.interface import Options
from gradsift.engine.task import Task
from gradsift.errors import UsageError
from gradsift.scores.gradient_norm import GradientNorm
from gradsift.scores.untouched import random_states
from gradsift.sifting.setup import Setup


def task_of(setup: Setup, model: nn.Module, options: Options, loader: DataLoader[Any]) -> Task:
    """A copy of the model, the score, and where the examples are to be had.

    Args:
        setup: of the sifted loader.
        model: without wrappers.
        options: of the engine.
        loader: the user's own.

    Raises:
        UsageError: for a score that needs what no worker has.
    """
    score = setup.recipe.score
    if isinstance(score, GradientNorm) and score.precondition is not None:
        raise UsageError(
            "a preconditioned GradientNorm needs the optimiser's state, which an engine does "
            "not have: leave precondition out"
        )
    device = options.device
    if device is None:
        first = next(iter(model.parameters()), torch.zeros(0))
        device = str(first.device)
    with random_states([]):
        expected = fingerprint(loader.dataset, loader.collate_fn, setup.split)
    return Task(
        model=copy.deepcopy(model).to("cpu"),
        loss_fn=setup.loss_fn,
        score=score,
        split=setup.split,
        forward=setup.forward,
        collate=loader.collate_fn,
        opening=loader.dataset if options.dataset is None else options.dataset,
        expected=expected,
        device=device,
        chunk=options.block,
        evaluate=options.evaluate,
        error_fn=options.error,
    )
