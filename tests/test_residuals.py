"""Norms of residuals: equal to loops where those are accurate, and right where they are not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradsift.scores.residuals import (
    balanced,
    binary_norm,
    hard_label_norm,
    row_norm,
    soft_label_norm,
)
from twins import (
    assert_close,
    assert_within_one_percent,
    binary_gap_truth,
    gap_logits,
    gap_truth,
)

seeds = st.integers(0, 10_000)
few = settings(derandomize=True, max_examples=60, deadline=None)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def slow_softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / math.fsum(powers) for power in powers]


def slow_norm(values: list[float]) -> float:
    return math.sqrt(math.fsum(value**2 for value in values))


@given(seed=seeds, batch=st.integers(1, 5), rest=st.lists(st.integers(1, 4), max_size=3))
@few
def test_row_norm_is_a_loop(seed: int, batch: int, rest: list[int]) -> None:
    values = normal(seed, batch, *rest)
    slow = [slow_norm(values[i].flatten().tolist()) for i in range(batch)]
    assert_close(row_norm(values), torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 1e38])
def test_row_norm_at_the_ends_of_float32(scale: float) -> None:
    values = torch.tensor([[0.6, 0.8]]) * scale
    torch.testing.assert_close(row_norm(values), torch.tensor([scale]), rtol=1e-6, atol=0)


def test_row_norm_of_nothing_and_of_zeros_is_zero() -> None:
    assert row_norm(torch.zeros(3, 0)).tolist() == [0.0, 0.0, 0.0]
    assert row_norm(torch.zeros(2, 4)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_row_norm_does_not_hide_what_is_not_finite(bad: float) -> None:
    norms = row_norm(torch.tensor([[1.0, bad], [3.0, 4.0]]))
    assert not bool(norms[0].isfinite())
    assert norms[1] == 5.0


@given(seed=seeds, batch=st.integers(1, 4), classes=st.integers(1, 6), extra=st.booleans())
@few
def test_balanced_keeps_a_gradient_that_sums_to_zero(
    seed: int, batch: int, classes: int, extra: bool
) -> None:
    shape = (batch, classes, 3) if extra else (batch, classes)
    gradient = normal(seed, *shape)
    gradient = gradient - gradient.mean(1, keepdim=True)
    before = gradient.clone()
    probability = normal(seed + 1, *shape).softmax(1)
    assert_close(balanced(gradient, probability), gradient)
    assert torch.equal(gradient, before)


def test_balanced_writes_the_largest_entry_alone() -> None:
    gradient, probability = torch.tensor([[5.0, 1.0, 2.0]]), torch.tensor([[0.1, 0.7, 0.2]])
    assert balanced(gradient, probability).tolist() == [[5.0, -7.0, 2.0]]


@given(seed=seeds, batch=st.integers(1, 5), classes=st.integers(1, 7), spread=st.floats(0.1, 4))
@few
def test_hard_label_norm_is_the_textbook_formula(
    seed: int, batch: int, classes: int, spread: float
) -> None:
    logits = spread * normal(seed, batch, classes)
    labels = torch.arange(batch) % classes
    slow = []
    for i in range(batch):
        residual = slow_softmax(logits[i].tolist())
        residual[int(labels[i])] -= 1
        slow.append(slow_norm(residual))
    norms = hard_label_norm(logits, labels)
    assert_close(norms, torch.tensor(slow, dtype=torch.float64))
    assert bool((norms < math.sqrt(2)).all())


@given(seed=seeds, batch=st.integers(1, 5), classes=st.integers(1, 7), scale=st.floats(0.0, 5.0))
@few
def test_soft_label_norm_is_the_textbook_formula(
    seed: int, batch: int, classes: int, scale: float
) -> None:
    logits, coefficients = normal(seed, batch, classes), scale * normal(seed + 1, batch, classes)
    slow = []
    for i in range(batch):
        weights = coefficients[i].tolist()
        total = math.fsum(weights)
        softmax = slow_softmax(logits[i].tolist())
        slow.append(slow_norm([total * p - c for p, c in zip(softmax, weights, strict=True)]))
    assert_close(soft_label_norm(logits, coefficients), torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_fitted_examples_keep_a_correct_score(classes: int, dtype: torch.dtype) -> None:
    logits = gap_logits(classes, dtype)
    labels = torch.zeros(len(logits), dtype=torch.int64)
    one_hot = torch.zeros_like(logits)
    one_hot[:, 0] = 1
    truth = gap_truth(classes)
    assert_within_one_percent(hard_label_norm(logits, labels), truth)
    assert_within_one_percent(soft_label_norm(logits, one_hot), truth)
    assert_within_one_percent(soft_label_norm(logits, 3 * one_hot), 3 * truth)


def test_a_shift_of_all_logits_changes_nothing() -> None:
    logits, labels = gap_logits(3, torch.float64), torch.zeros(41, dtype=torch.int64)
    for shift in (-1e4, 1e4):
        torch.testing.assert_close(
            hard_label_norm(logits + shift, labels),
            hard_label_norm(logits, labels),
            rtol=1e-10,
            atol=0,
        )


def test_a_class_that_is_ruled_out_is_no_trouble() -> None:
    logits, labels = torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([0])
    expected = torch.tensor([math.sqrt(0.5)])
    assert_close(hard_label_norm(logits, labels), expected, 1e-6)
    assert_close(soft_label_norm(logits, torch.tensor([[1.0, 0.0, 0.0]])), expected, 1e-6)


@given(seed=seeds, batch=st.integers(1, 5), rest=st.lists(st.integers(1, 3), max_size=2))
@few
def test_binary_norm_is_the_textbook_formula(seed: int, batch: int, rest: list[int]) -> None:
    logits, labels = 3 * normal(seed, batch, *rest), normal(seed + 1, batch, *rest)
    slow = [
        slow_norm(
            [
                1 / (1 + math.exp(-z)) - y
                for z, y in zip(
                    logits[i].flatten().tolist(), labels[i].flatten().tolist(), strict=True
                )
            ]
        )
        for i in range(batch)
    ]
    assert_close(binary_norm(logits, labels), torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
def test_fitted_binary_examples_keep_a_correct_score(sign: int, kind: torch.dtype) -> None:
    labels = torch.full((41,), sign > 0).to(kind)
    assert_within_one_percent(binary_norm(sign * torch.arange(41.0), labels), binary_gap_truth())
