"""A loss whose examples depend on each other is refused; one with a meaning of its own is told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.errors import UsageError
from gradsift.scores.objective import examine

NONE: dict[str, Any] = {"reduction": "none"}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LOGITS, LABELS = normal(0, 8, 5), torch.arange(8) % 5
TOKENS, WORDS = normal(1, 8, 6, 5), torch.arange(48).view(8, 6) % 5
MASK = torch.arange(6) < torch.arange(1, 9).unsqueeze(1).clamp(max=6)
MASKED = WORDS.masked_fill(~MASK, -100)


def token_losses(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(outputs.transpose(1, 2), targets, **NONE), targets != -100


def example_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    losses, mask = token_losses(outputs, targets)
    return losses.sum(1) / mask.sum(1)


def constant_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    losses, _ = token_losses(outputs, targets)
    return losses.sum(1) / 4.0


def batch_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    losses, mask = token_losses(outputs, targets)
    return losses.sum(1) / mask.sum()


def batch_mean_rescaled(outputs: Tensor, targets: Tensor) -> Tensor:
    losses, mask = token_losses(outputs, targets)
    return losses.sum(1) * len(losses) / mask.sum()


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs @ outputs.t(), torch.arange(len(outputs)), **NONE)


def centred(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - outputs.mean(0)).square().sum(1)


def hardest(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs, targets, **NONE)
    return losses / losses.max()


@pytest.mark.parametrize(
    ("loss_fn", "outputs", "targets"),
    [
        (batch_mean, TOKENS, MASKED),
        (batch_mean_rescaled, TOKENS, MASKED),
        (contrastive, LOGITS, LABELS),
        (centred, LOGITS, LABELS),
        (hardest, LOGITS, LABELS),
    ],
)
def test_losses_that_depend_on_their_batch_are_refused(
    loss_fn: Any, outputs: Tensor, targets: Tensor
) -> None:
    with pytest.raises(UsageError, match="another loss when the rest of its batch changes"):
        examine(loss_fn, outputs, targets)
    with pytest.raises(UsageError, match="divide by a constant"):
        examine(loss_fn, outputs[:2], targets[:2])


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    with pytest.raises(UsageError, match="another loss when the rest of its batch changes"):
        examine(lambda z, y: scale * centred(z, y), LOGITS, LABELS)
    table = normal(2, 5, 64)
    assert examine(lambda z, y: scale * (z @ table).square().sum(1), LOGITS, LABELS) == []


ACCEPTED: dict[str, tuple[Callable[[Any, Any], Tensor], Any, Any]] = {
    "cross-entropy": (nn.CrossEntropyLoss(**NONE), LOGITS, LABELS),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1, **NONE), LOGITS, LABELS),
    "binary": (nn.BCEWithLogitsLoss(**NONE), LOGITS[:, 0], LABELS.float() / 5),
    "mse": (lambda z, y: F.mse_loss(z, y, **NONE).mean(1), LOGITS, LOGITS + 1),
    "mean over the tokens of an example": (example_mean, TOKENS, MASKED),
    "constant denominator": (constant_mean, TOKENS, MASKED),
    "dictionary": (
        lambda z, y: z["x"].square().sum(1),
        {"x": LOGITS, "balance": torch.tensor(1.0), "table": torch.ones(3, 2)},
        {"y": LABELS, "names": list("abcdefgh")},
    ),
    "no targets": (lambda z, y: z.square().sum(1), LOGITS, None),
    "low precision": (nn.CrossEntropyLoss(**NONE), LOGITS.bfloat16(), LABELS),
    "always zero": (lambda z, y: 0 * z.sum(1), LOGITS, LABELS),
    "not finite": (lambda z, y: z.sum(1) / 0, LOGITS, LABELS),
    "in place": (lambda z, y: z.mul_(2).sum(1), LOGITS, LABELS),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_losses_of_their_own_are_accepted(name: str) -> None:
    loss_fn, outputs, targets = ACCEPTED[name]
    assert examine(loss_fn, outputs, targets) == []


@given(seed=st.integers(0, 1000), count=st.integers(1, 9), weighted=st.booleans())
@settings(derandomize=True, max_examples=40, deadline=None)
def test_no_false_alarm_at_any_size(seed: int, count: int, weighted: bool) -> None:
    logits = 10 * normal(seed, count, 3)
    weight = normal(seed + 1, 3).exp() if weighted else None

    def loss_fn(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y, weight, **NONE)

    assert examine(loss_fn, logits, torch.arange(count) % 3) == []


def test_one_example_has_no_rest_of_the_batch() -> None:
    assert examine(batch_mean, TOKENS[:1], MASKED[:1]) == []


@pytest.mark.parametrize(
    ("loss_fn", "count", "found"),
    [
        (nn.CrossEntropyLoss(), 8, r"a scalar, expected \[8\]: use reduction='none'"),
        (nn.CrossEntropyLoss(reduction="sum"), 1, r"a scalar, expected \[1\]"),
        (lambda z, y: z, 8, r"shape \[8, 5\], expected \[8\]"),
        (lambda z, y: z.sum(0), 8, r"shape \[5\], expected \[8\]"),
    ],
)
def test_anything_but_one_loss_per_example_is_refused(loss_fn: Any, count: int, found: str) -> None:
    with pytest.raises(UsageError, match=f"loss_fn returned {found}"):
        examine(loss_fn, LOGITS[:count], LABELS[:count])


def test_a_stochastic_loss_is_not_refused() -> None:
    generator = torch.Generator().manual_seed(0)

    def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.square().sum(1) * torch.rand(len(outputs), generator=generator)

    assert examine(noisy, LOGITS, LABELS) == []


def test_class_weights_are_told() -> None:
    (notice,) = examine(nn.CrossEntropyLoss(torch.arange(1.0, 6.0), **NONE), LOGITS, LABELS)
    assert "class weights: the objective is the mean of a_y·loss" in notice


def test_ignored_targets_are_told_when_there_are_any() -> None:
    loss_fn = nn.CrossEntropyLoss(ignore_index=4, **NONE)
    (notice,) = examine(loss_fn, LOGITS, LABELS)
    assert "ignore_index=4: the objective is the mean over all examples" in notice
    assert examine(loss_fn, LOGITS[:4], LABELS[:4]) == []
    assert examine(nn.CrossEntropyLoss(**NONE), LOGITS, LOGITS.softmax(1)) == []


def test_both_are_told() -> None:
    loss_fn = nn.CrossEntropyLoss(torch.ones(5), ignore_index=0, **NONE)
    assert len(examine(loss_fn, LOGITS, LABELS)) == 2


def test_the_outputs_are_left_alone() -> None:
    outputs = LOGITS.clone().requires_grad_()
    examine(lambda z, y: z.mul_(2).sum(1), outputs, LABELS)
    assert torch.equal(outputs, LOGITS)
    assert outputs.grad is None


def test_a_part_whose_loss_is_undefined_alone_depends_on_the_rest() -> None:
    """The first third divides zero by zero on its own, and nothing else changes."""

    def shared(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0] * targets / targets.sum()

    targets = torch.tensor([0.0, 0.0, 1.0, 2.0, 1.0, 1.0])
    with pytest.raises(UsageError, match="when the rest of its batch changes"):
        examine(shared, torch.ones(6, 1), targets)
