"""How well the scores of a run follow exact gradient norms, on a few examples."""

from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from gradsift.data.problem import Problem
from gradsift.monitors.health import correlation
from gradsift.nested import move
from gradsift.sampling.table import ScoreTable
from gradsift.scores.base import ScoreFunction
from gradsift.scores.evaluate import score_examples
from gradsift.scores.gradient_loop import gradient_norms
from gradsift.trainer.evaluation import count_examples

EXAMPLES = 64
"""Examples whose exact norm is taken, at most: each costs a forward and a backward pass."""


def against_norms(
    model: nn.Module,
    problem: Problem,
    score: ScoreFunction,
    table: ScoreTable | None,
    seed: int,
) -> dict[str, Any]:
    """Scores and exact gradient norms of random training examples, in eval mode.

    Nothing of the model changes.

    Args:
        model: as trained.
        problem: that it was trained on.
        score: that it was trained by.
        table: of the scores that were drawn by, if there is one.
        seed: of the sample.

    Returns:
        ``norms``, ``scores`` as they are now, and their ``rank`` and ``linear`` correlation;
        ``stale``, ``stale_rank`` and ``stale_linear`` likewise of the relative scores in the
        table, or None.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(count_examples(problem.train), generator=generator)[:EXAMPLES]
    data = Subset(problem.train, ids.tolist())
    device = next(model.parameters()).device
    batch = next(iter(DataLoader(data, batch_size=len(ids), generator=torch.Generator())))
    x, y = move(batch, device)
    norms = gradient_norms(model, problem.loss_fn, x, y).cpu()
    scores = score_examples(score, model, problem.loss_fn, x, y, count=len(ids)).cpu()
    found = correlation(scores, norms)
    stale = None if table is None else table.relative(ids)
    of_stale = None if stale is None else correlation(stale, norms)
    return {
        **asdict(found),
        "norms": _listed(norms),
        "scores": _listed(scores),
        "stale_rank": of_stale and of_stale.rank,
        "stale_linear": of_stale and of_stale.linear,
        "stale": None if stale is None else _listed(stale),
    }


def _listed(values: torch.Tensor) -> list[float | None]:
    """JSON has no numbers that are not finite."""
    finite = values.isfinite().tolist()
    return [x if known else None for x, known in zip(values.tolist(), finite, strict=True)]
