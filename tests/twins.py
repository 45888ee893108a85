"""Slow, obvious twins: one example at a time, by plain autograd or by the textbook formula."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LossFunction = Callable[[Any, Any], Tensor]


def row(tree: Any, place: int) -> Any:
    """Example ``place`` of a nesting, as a batch of one."""
    if isinstance(tree, Tensor):
        return tree[place : place + 1] if tree.dim() else tree
    if isinstance(tree, dict):
        return {key: row(value, place) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(row(value, place) for value in tree)
    return tree


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a nesting of dictionaries, tuples and lists."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, tuple | list):
        return [leaf for part in tree for leaf in leaves(part)]
    return []


def fresh(tree: Any) -> Any:
    """A copy whose floating tensors require a gradient."""
    if isinstance(tree, Tensor):
        return tree.clone().requires_grad_(tree.is_floating_point())
    if isinstance(tree, dict):
        return {key: fresh(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(fresh(value) for value in tree)
    return tree


def slow_losses(loss_fn: LossFunction, outputs: Any, targets: Any, count: int) -> Tensor:
    """The loss of each example in a batch of its own."""
    return torch.cat([loss_fn(row(outputs, i), row(targets, i)) for i in range(count)])


def slow_norms(loss_fn: LossFunction, outputs: Any, targets: Any, count: int) -> Tensor:
    """The norm of the gradient of each example's loss, in a batch of its own."""
    norms = []
    for place in range(count):
        example = fresh(row(outputs, place))
        (loss,) = loss_fn(example, row(targets, place))
        inputs = [leaf for leaf in leaves(example) if leaf.requires_grad]
        parts = torch.autograd.grad(loss, inputs, allow_unused=True)
        squares = [
            float(value) ** 2 for part in parts if part is not None for value in part.flatten()
        ]
        norms.append(math.sqrt(math.fsum(squares)))
    return torch.tensor(norms, dtype=torch.float64)


def cross_entropy_truth(gap: float, classes: int) -> float:
    """``‖p − y‖`` for the logits ``(gap, 0, …, 0)`` and class 0, without cancellation."""
    others = classes - 1
    probability = math.exp(-gap) / (1 + others * math.exp(-gap))
    return probability * math.sqrt(others + others**2)


def binary_truth(gap: float) -> float:
    """``1 − σ(gap)``, without cancellation."""
    return math.exp(-gap) / (1 + math.exp(-gap))


GAPS = tuple(range(41))
"""Logit gaps from undecided to long fitted; every one is exact in bfloat16."""


def gap_logits(classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Row ``g`` is ``(g, 0, …, 0)``."""
    logits = torch.zeros(len(GAPS), classes, dtype=dtype)
    logits[:, 0] = torch.tensor(GAPS, dtype=dtype)
    return logits


def gap_truth(classes: int) -> Tensor:
    """The exact scores of `gap_logits` for class 0."""
    return torch.tensor([cross_entropy_truth(g, classes) for g in GAPS], dtype=torch.float64)


def binary_gap_truth() -> Tensor:
    """The exact scores of binary logits 0 to 40 for label 1."""
    return torch.tensor([binary_truth(g) for g in GAPS], dtype=torch.float64)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Equal shapes and types, and values within a relative and absolute tolerance."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_within_one_percent(scores: Tensor, truth: Tensor) -> None:
    """Positive, and correct to 1 %, however small."""
    assert bool((scores > 0).all())
    torch.testing.assert_close(scores.double(), truth, rtol=0.01, atol=0)
