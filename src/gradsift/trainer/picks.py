"""Which examples a run draws, and how it scores them at its end."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from gradsift.data.problem import Problem
from gradsift.nested import move
from gradsift.report.picks import Picks
from gradsift.scores.evaluate import score_examples
from gradsift.scores.output_gradient import OutputGradient

SCORED = 2_000
"""Training examples that are scored at the end of a run, at most."""

SHOWN = 12
"""Examples that are kept of each kind: scored highest, lowest, drawn most, least."""

VALUES = 12
"""Numbers of a row that are written out."""

CHUNK = 256


def pick(
    model: nn.Module,
    problem: Problem,
    draws: Int64[Tensor, " examples"],
    device: torch.device,
    seed: int,
) -> Picks:
    """Scores up to 2,000 random training examples, and keeps the inputs of the extreme ones.

    The score is ``‖∂ℓ/∂z‖`` of the model as it is, in eval mode; nothing of the model changes.

    Args:
        model: as trained.
        problem: that it was trained on.
        draws: how often each training example was drawn.
        device: where the model is.
        seed: of the sample that is scored.
    """
    order = torch.randperm(len(draws), generator=torch.Generator().manual_seed(seed))
    sample = order[:SCORED].sort().values
    parts = []
    for inputs, targets in _batches(problem, sample.tolist()):
        x, y = move((inputs, targets), device)
        found = score_examples(
            OutputGradient(), model, problem.loss_fn, x, y, count=len(y), chunk=CHUNK
        )
        parts.append(found.double().cpu())
    none = np.zeros(0, dtype=np.float32)
    scored = Picks(
        scored=sample.numpy(),
        scores=torch.cat(parts).numpy(),
        draws=draws.numpy(),
        shown=np.zeros(0, dtype=np.int64),
        inputs=none,
        texts=(),
    )
    shown = np.unique(np.concatenate(list(scored.extremes(SHOWN).values())))
    examples = [problem.train[index] for index in shown.tolist()]
    images = is_image(problem.input_shape) and problem.vocabulary is None
    return replace(
        scored,
        shown=shown,
        inputs=np.stack([inputs.numpy() for inputs, _ in examples]) if images else none,
        texts=tuple(describe(problem, *example) for example in examples),
    )


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an input of this shape is a grey or colour image: channels first, 4 pixels or more.

    Example:
        >>> is_image((3, 32, 32)), is_image((20, 64)), is_image((2, 8, 8))
        (True, False, False)
    """
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= 4


def describe(problem: Problem, inputs: Tensor, target: Any) -> str:
    """An example in words: its label, and of rows and texts what is in them.

    Example:
        >>> from gradsift.data.problem import pose
        >>> data = torch.utils.data.TensorDataset(torch.zeros(1, 2), torch.zeros(1))
        >>> rows = pose("toy", data, data, (2,), 1, "regression")
        >>> describe(rows, torch.tensor([0.25, -1.0]), torch.tensor(3.0))
        '3: 0.25, -1'
        >>> text = replace(rows, vocabulary=("a", "b"), task="classification")
        >>> describe(text, torch.tensor([0, 1, 1]), torch.tensor(0))
        'abb → a'
    """
    if problem.vocabulary is not None:
        tokens = [problem.vocabulary[index] for index in inputs.tolist()]
        between = "" if all(len(token) == 1 for token in problem.vocabulary[1:]) else " "
        return f"{between.join(tokens)} → {problem.vocabulary[int(target)]}"
    numbers = torch.as_tensor(target).reshape(-1).tolist()
    label = ", ".join(f"{number:.4g}" for number in numbers[:VALUES])
    if is_image(problem.input_shape):
        return label
    if problem.sparse:
        pairs = [(int(column), value) for column, value in inputs.tolist() if value != 0]
        return f"{label}: " + " ".join(f"{column}:{value:.3g}" for column, value in pairs[:VALUES])
    values = inputs.reshape(-1)[:VALUES].tolist()
    more = ", …" if inputs.numel() > VALUES else ""
    return f"{label}: " + ", ".join(f"{value:.3g}" for value in values) + more


def _batches(problem: Problem, ids: list[int]) -> DataLoader[Any]:
    # The loader draws a seed for its workers, even without any: not from the global state.
    data = Subset(problem.train, ids)
    return DataLoader(data, batch_size=CHUNK, generator=torch.Generator())
