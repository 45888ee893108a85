"""The loss as a score is the loss, in float32 or better."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.errors import UsageError
from gradsift.scores import Loss
from twins import assert_close, slow_losses


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 6),
    classes=st.integers(1, 5),
    smoothing=st.sampled_from([0.0, 0.2]),
    weighted=st.booleans(),
)
@settings(derandomize=True, max_examples=40, deadline=None)
def test_cross_entropy(
    seed: int, batch: int, classes: int, smoothing: float, weighted: bool
) -> None:
    weight = normal(seed, classes).exp() if weighted else None
    loss_fn = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing, reduction="none")
    logits, targets = normal(seed + 1, batch, classes), torch.arange(batch) % classes
    scores = Loss()(nn.Identity(), loss_fn, logits, targets)
    assert_close(scores, slow_losses(loss_fn, logits, targets, batch))
    assert torch.equal(scores, loss_fn(logits, targets))


def test_any_outputs() -> None:
    outputs = {"count": torch.tensor(2), "x": normal(0, 4, 3)}
    scores = Loss().of_outputs(lambda z, y: (z["x"] - y).abs().sum(1), outputs, normal(1, 4, 3))
    assert_close(scores, (outputs["x"] - normal(1, 4, 3)).abs().sum(1))


def test_low_precision_outputs_are_scored_in_float32() -> None:
    logits, targets = normal(0, 3, 4).bfloat16(), torch.arange(3)
    scores = Loss().of_outputs(
        lambda z, y: F.cross_entropy(z, y, reduction="none"), logits, targets
    )
    assert torch.equal(scores, F.cross_entropy(logits.float(), targets, reduction="none"))


def test_the_training_step_keeps_its_graph_and_its_outputs() -> None:
    weight = normal(0, 3, 2).requires_grad_()
    outputs = normal(1, 4, 3) @ weight
    before = outputs.detach().clone()
    scores = Loss().of_outputs(lambda z, y: z.mul_(z).sum(1), outputs, None)
    assert not scores.requires_grad
    assert torch.equal(outputs, before)
    outputs.square().sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("loss_fn", "found"),
    [
        (nn.MSELoss(), r"a scalar, expected \[4\]: use reduction='none'"),
        (nn.MSELoss(reduction="none"), r"shape \[4, 2\], expected \[4\]: reduce every other"),
    ],
)
def test_anything_but_one_loss_per_example_is_refused(loss_fn: Any, found: str) -> None:
    with pytest.raises(UsageError, match=f"loss_fn returned {found}"):
        Loss()(nn.Identity(), loss_fn, normal(0, 4, 2), normal(1, 4, 2))
