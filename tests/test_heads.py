"""PyTorch's functions and their twins: the same values, gradients and refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.scores.heads import AccurateHeads
from twins import assert_close

few = settings(derandomize=True, max_examples=120, deadline=None)
REDUCTIONS = st.sampled_from(["none", "sum", "mean"])
EXTRA = st.lists(st.integers(1, 3), max_size=2)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def both(function: Callable[[Tensor], Tensor], logits: Tensor) -> None:
    """Values and gradients with and without the twins."""
    results = []
    for context in (torch.enable_grad(), AccurateHeads()):
        inputs = logits.clone().requires_grad_()
        with context:
            value = function(inputs)
        upstream = normal(99, *value.shape) if value.dim() else torch.tensor(1.5).double()
        (gradient,) = torch.autograd.grad(value, inputs, upstream)
        results.append((value.detach(), gradient))
    (value, gradient), (twin, twin_gradient) = results
    assert_close(twin, value)
    assert_close(twin_gradient, gradient)


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 4),
    classes=st.integers(1, 5),
    extra=EXTRA,
    soft=st.booleans(),
    weighted=st.booleans(),
    ignored=st.sampled_from([-100, 0, 1]),
    smoothing=st.sampled_from([0.0, 0.0, 0.2]),
    reduction=REDUCTIONS,
)
@few
def test_cross_entropy(
    seed: int,
    batch: int,
    classes: int,
    extra: list[int],
    soft: bool,
    weighted: bool,
    ignored: int,
    smoothing: float,
    reduction: str,
) -> None:
    logits = 2 * normal(seed, batch, classes, *extra)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (batch, *extra), generator=generator)
    if soft:
        target, ignored = normal(seed + 1, batch, classes, *extra).exp(), -100
    elif reduction == "mean":
        target.view(-1)[0], ignored = 0, ignored if ignored else -100  # 0/0 is nan in both
    both(
        lambda z: F.cross_entropy(
            z,
            target,
            normal(seed + 2, classes).exp() if weighted else None,
            ignore_index=ignored,
            reduction=reduction,
            label_smoothing=smoothing,
        ),
        logits,
    )


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_one_example(soft: bool, weighted: bool, reduction: str) -> None:
    target = normal(1, 4).softmax(0) if soft else torch.tensor(2)
    weight = normal(2, 4).exp() if weighted else None
    both(lambda z: F.cross_entropy(z, target, weight, reduction=reduction), normal(0, 4))


@given(
    seed=st.integers(0, 10_000),
    shape=st.lists(st.integers(1, 4), max_size=3),
    weighted=st.booleans(),
    positive=st.booleans(),
    spread=st.sampled_from([1.0, 20.0]),
    reduction=REDUCTIONS,
)
@few
def test_binary_cross_entropy(
    seed: int, shape: list[int], weighted: bool, positive: bool, spread: float, reduction: str
) -> None:
    target = normal(seed + 1, *shape).sigmoid()
    last = shape[-1:] or [1]
    pos_weight = normal(seed + 2, *last).exp() if positive and shape else None
    weight = normal(seed + 3, *last).exp() if weighted and shape else None
    both(
        lambda z: F.binary_cross_entropy_with_logits(
            z, target, weight, reduction=reduction, pos_weight=pos_weight
        ),
        spread * normal(seed, *shape),
    )


@given(
    seed=st.integers(0, 10_000),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    place=st.integers(0, 3),
    negative=st.booleans(),
)
@few
def test_log_softmax(seed: int, shape: list[int], place: int, negative: bool) -> None:
    dim = place % len(shape)
    dim = dim - len(shape) if negative else dim
    logits = normal(seed, *shape)
    both(lambda z: F.log_softmax(z, dim), logits)
    both(lambda z: torch.log_softmax(z, dim, torch.float64), logits)
    both(lambda z: z.log_softmax(dim=dim), logits)
    both(lambda z: nn.LogSoftmax(dim)(z), logits)
    both(lambda z: torch.special.log_softmax(z, dim), logits)


def test_the_type_that_was_asked_for() -> None:
    half = torch.randn(2, 3, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    with AccurateHeads():
        assert F.log_softmax(half, 1).dtype == torch.bfloat16
        assert F.log_softmax(half, 1, dtype=torch.float32).dtype == torch.float32
        assert torch.log_softmax(half, 1, torch.float64).dtype == torch.float64


def test_gradients_of_fitted_examples_are_accurate() -> None:
    logits = torch.tensor([[40.0, 0.0], [0.0, 40.0]], requires_grad=True)
    with AccurateHeads():
        loss = F.cross_entropy(logits, torch.tensor([0, 1]), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    tiny = 4.248354255291589e-18
    torch.testing.assert_close(gradient, torch.tensor([[-tiny, tiny], [tiny, -tiny]]))
    plain = F.cross_entropy(logits, torch.tensor([0, 1]), reduction="sum")
    assert torch.autograd.grad(plain, logits)[0][0, 0] == 0.0


Z = normal(0, 4, 4)
HARD = torch.tensor([0, 1, 2, 3])
REFUSED: dict[str, Callable[[], Any]] = {
    "float labels": lambda: F.cross_entropy(Z, normal(1, 4)),
    "soft labels that would broadcast": lambda: F.cross_entropy(Z, normal(1, 1, 4)),
    "soft labels with ignore_index": lambda: F.cross_entropy(Z, Z, ignore_index=1),
    "one weight for soft labels": lambda: F.cross_entropy(Z, Z, weight=normal(1, 1)),
    "one weight for hard labels": lambda: F.cross_entropy(Z, HARD, weight=normal(1, 1)),
    "too few labels": lambda: F.cross_entropy(Z, HARD[:3]),
    "labels of two dimensions": lambda: F.cross_entropy(Z, HARD.expand(4, 4)),
    "label out of range": lambda: F.cross_entropy(Z, HARD + 1),
    "labels of int32": lambda: F.cross_entropy(Z, HARD.int()),
    "unknown reduction, hard": lambda: F.cross_entropy(Z, HARD, reduction="average"),
    "unknown reduction, soft": lambda: F.cross_entropy(Z, Z, reduction="average"),
    "binary: shape": lambda: F.binary_cross_entropy_with_logits(Z, Z[0]),
    "binary: whole numbers": lambda: F.binary_cross_entropy_with_logits(Z, Z.long()),
    "binary: unknown reduction": lambda: F.binary_cross_entropy_with_logits(
        Z, Z, reduction="average"
    ),
    "log-softmax: no such dimension": lambda: F.log_softmax(Z, 3),
    "log-softmax: whole numbers": lambda: F.log_softmax(HARD, 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_pytorch_refuses_stays_refused(name: str) -> None:
    with pytest.raises((RuntimeError, ValueError, IndexError)) as plain:
        REFUSED[name]()
    with AccurateHeads(), pytest.raises(plain.type) as twin:
        REFUSED[name]()
    assert str(twin.value) == str(plain.value)


def test_other_functions_pass_through() -> None:
    with AccurateHeads():
        assert torch.equal(torch.add(Z, 1), Z + 1)
        assert torch.equal(F.softplus(input=Z, beta=2), F.softplus(Z, 2))


def named() -> tuple[Any, ...]:
    return (
        F.cross_entropy,
        F.log_softmax,
        F.binary_cross_entropy_with_logits,
        torch.log_softmax,
        torch.special.log_softmax,
        Tensor.log_softmax,
    )


def test_nothing_stays_patched() -> None:
    before = named()
    with AccurateHeads():
        assert named() == before
    with pytest.raises(ZeroDivisionError), AccurateHeads():
        raise ZeroDivisionError
    assert named() == before
    logits = torch.tensor([[40.0, 0.0]], requires_grad=True)
    F.cross_entropy(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] == 0.0
