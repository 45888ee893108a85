"""The output gradient against autograd on one example at a time, for every kind of loss."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.errors import UsageError
from gradsift.scores import OutputGradient
from gradsift.scores.precision import check_precision
from gradsift.scores.untouched import check_mode
from twins import (
    assert_close,
    assert_within_one_percent,
    binary_gap_truth,
    gap_logits,
    gap_truth,
    slow_norms,
)

SCORE = OutputGradient()
NONE: dict[str, Any] = {"reduction": "none"}
few = settings(derandomize=True, max_examples=80, deadline=None)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def labels(seed: int, classes: int, *shape: int) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 6),
    classes=st.integers(1, 6),
    kind=st.sampled_from(["hard", "byte", "soft", "unnormalised"]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    weighted=st.booleans(),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
)
@few
def test_cross_entropy_in_closed_form(
    seed: int,
    batch: int,
    classes: int,
    kind: str,
    smoothing: float,
    weighted: bool,
    spread: float,
) -> None:
    logits = spread * normal(seed, batch, classes)
    if kind in ("hard", "byte"):
        targets = labels(seed, classes, batch).to(torch.uint8 if kind == "byte" else torch.int64)
    else:
        targets = normal(seed + 1, batch, classes).exp()
        targets = targets / targets.sum(1, keepdim=True) if kind == "soft" else targets
    weight = normal(seed + 2, classes).exp() if weighted else None
    loss_fn = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing, **NONE)
    slow = slow_norms(loss_fn, logits, targets, batch)
    assert_close(SCORE.of_outputs(loss_fn, logits, targets), slow)
    assert_close(SCORE.of_outputs(lambda z, y: loss_fn(z, y), logits, targets), slow)


@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_ignored_examples_score_zero(ignored: int, smoothing: float) -> None:
    logits, targets = normal(0, 5, 4), torch.tensor([0, ignored, 1, 3, ignored])
    loss_fn = nn.CrossEntropyLoss(
        weight=normal(1, 4).exp(), ignore_index=ignored, label_smoothing=smoothing, **NONE
    )
    scores = SCORE.of_outputs(loss_fn, logits, targets)
    assert_close(scores, slow_norms(loss_fn, logits, targets, 5))
    assert scores[1] == scores[4] == 0.0


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_large_logits_stay_finite(size: float) -> None:
    logits = torch.tensor([[size, 0.0, -size], [0.0, size, size]])
    scores = SCORE.of_outputs(nn.CrossEntropyLoss(**NONE), logits, torch.tensor([1, 1]))
    torch.testing.assert_close(scores, torch.tensor([2**0.5, 0.5**0.5]))


def test_smoothing_and_weights_are_not_confused() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    weight = torch.tensor([5.0, 0.1, 1.0], dtype=torch.float64)
    loss_fn = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2, **NONE)
    # −Σ_k c_k log p_k with c = a·(0.8·y + 0.2/3), by hand
    c = weight * torch.tensor([0.2 / 3, 0.2 / 3 + 0.8, 0.2 / 3], dtype=torch.float64)
    expected = (c.sum() * logits[0].softmax(0) - c).norm().reshape(1)
    assert_close(SCORE.of_outputs(loss_fn, logits, torch.tensor([1])), expected)


def masked_token_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=-1, **NONE)
    return losses.sum(1) / (targets != -1).sum(1)


def flat_token_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-1, **NONE)
    return losses.view(targets.shape).sum(1) / (targets != -1).sum(1)


def loop(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(z, y) for z, y in zip(outputs, targets, strict=True)])


def by_hand(log_softmax: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: -log_softmax(z).gather(1, y.unsqueeze(1)).squeeze(1)


def keyword(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(input=outputs, target=targets, label_smoothing=0.0, reduction="none")


SOFTMAX_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "functional": lambda z, y: F.cross_entropy(z, y, **NONE),
    "keyword": keyword,
    "partial": functools.partial(F.cross_entropy, **NONE),
    "module in a lambda": lambda z, y: nn.CrossEntropyLoss(**NONE)(z, y),
    "weighted": lambda z, y: F.cross_entropy(z, y, torch.ones_like(z[0]), **NONE),
    "nll of LogSoftmax": lambda z, y: nn.NLLLoss(**NONE)(nn.LogSoftmax(1)(z), y),
    "F.log_softmax": by_hand(lambda z: F.log_softmax(z, dim=-1)),
    "F.log_softmax dtype": by_hand(lambda z: F.log_softmax(z, 1, dtype=z.dtype)),
    "torch.log_softmax": by_hand(lambda z: torch.log_softmax(input=z, dim=1)),
    "torch.log_softmax dtype": by_hand(lambda z: torch.log_softmax(z, 1, z.dtype)),
    "torch.special": by_hand(lambda z: torch.special.log_softmax(z, -1)),
    "method": by_hand(lambda z: z.log_softmax(-1)),
    "method, keyword": by_hand(lambda z: z.log_softmax(dim=1)),
    "transposed": by_hand(lambda z: z.t().log_softmax(0).t()),
    "loop": loop,
    "loop by hand": lambda z, y: torch.stack(
        [-a.log_softmax(0)[b] for a, b in zip(z, y, strict=True)]
    ),
    "soft": lambda z, y: F.cross_entropy(z, F.one_hot(y, z.shape[1]).to(z), **NONE),
    "dense": lambda z, y: F.cross_entropy(
        z[:, :, None].expand(-1, -1, 4), y[:, None].expand(-1, 4), **NONE
    ).mean(1),
}


@pytest.mark.parametrize("name", SOFTMAX_LOSSES)
def test_every_way_to_write_cross_entropy(name: str) -> None:
    loss_fn = SOFTMAX_LOSSES[name]
    logits, targets = 2 * normal(3, 6, 5), labels(3, 5, 6)
    assert_close(
        SCORE.of_outputs(loss_fn, logits, targets), slow_norms(loss_fn, logits, targets, 6)
    )
    fitted = torch.zeros(41, dtype=torch.int64)
    assert_within_one_percent(SCORE.of_outputs(loss_fn, gap_logits(3), fitted), gap_truth(3))


BINARY_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "instance": nn.BCEWithLogitsLoss(**NONE),
    "functional": lambda z, y: F.binary_cross_entropy_with_logits(z, y, **NONE),
    "keyword": lambda z, y: F.binary_cross_entropy_with_logits(input=z, target=y, **NONE),
    "pos_weight": nn.BCEWithLogitsLoss(pos_weight=torch.tensor(1.0), **NONE),
    "weight": nn.BCEWithLogitsLoss(weight=torch.tensor([1.0]), **NONE),
    "logsigmoid": lambda z, y: -y * F.logsigmoid(z) - (1 - y) * F.logsigmoid(-z),
    "softplus": lambda z, y: y * F.softplus(-z) + (1 - y) * F.softplus(z),
    "one column": lambda z, y: F.binary_cross_entropy_with_logits(
        z.unsqueeze(1), y.unsqueeze(1), **NONE
    ).squeeze(1),
}


@pytest.mark.parametrize("name", BINARY_LOSSES)
def test_every_way_to_write_binary_cross_entropy(name: str) -> None:
    loss_fn = BINARY_LOSSES[name]
    logits, targets = 2 * normal(4, 7), normal(5, 7).sigmoid()
    assert_close(
        SCORE.of_outputs(loss_fn, logits, targets), slow_norms(loss_fn, logits, targets, 7)
    )
    for sign in (1.0, -1.0):
        fitted = torch.full((41,), max(sign, 0.0))
        scores = SCORE.of_outputs(loss_fn, sign * torch.arange(41.0), fitted)
        assert_within_one_percent(scores, binary_gap_truth())


GENERAL: dict[str, tuple[Callable[[Any, Any], Tensor], Any, Any]] = {
    "mse": (nn.MSELoss(**NONE), normal(0, 6), normal(1, 6)),
    "mse of rows": (lambda z, y: (z - y).square().mean(1), normal(0, 6, 3), normal(1, 6, 3)),
    "huber": (nn.HuberLoss(**NONE), 3 * normal(0, 6), normal(1, 6)),
    "l1": (lambda z, y: F.l1_loss(z, y, **NONE).sum(1), normal(0, 6, 3), normal(1, 6, 3)),
    "nll": (nn.NLLLoss(**NONE), normal(0, 6, 4).log_softmax(1), labels(0, 4, 6)),
    "poisson": (nn.PoissonNLLLoss(**NONE), normal(0, 6), normal(1, 6).exp()),
    "many labels": (
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, **NONE).mean(1),
        normal(0, 6, 3),
        normal(1, 6, 3).sigmoid(),
    ),
    "many labels, pos_weight": (
        lambda z, y: nn.BCEWithLogitsLoss(pos_weight=normal(2, 3).exp(), **NONE)(z, y).mean(1),
        normal(0, 6, 3),
        normal(1, 6, 3).sigmoid(),
    ),
    "tokens": (
        masked_token_mean,
        normal(0, 6, 5, 4),
        labels(0, 4, 6, 5).index_fill(1, torch.tensor([4]), -1),
    ),
    "tokens, flat": (
        flat_token_mean,
        normal(0, 6, 5, 4),
        labels(0, 4, 6, 5).index_fill(1, torch.tensor([0, 1]), -1),
    ),
    "dense map": (
        lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1, **NONE).mean((1, 2)),
        normal(0, 6, 4, 3, 2),
        labels(0, 4, 6, 3, 2),
    ),
    "dense soft weighted": (
        lambda z, y: F.cross_entropy(z, y, weight=normal(2, 4).exp(), **NONE).sum((1, 2)),
        normal(0, 6, 4, 3, 2),
        normal(1, 6, 4, 3, 2).softmax(1),
    ),
    "dictionary": (
        lambda z, y: F.cross_entropy(z["class"], y, **NONE) + z["box"].square().sum(1),
        {"class": normal(0, 6, 4), "box": normal(1, 6, 2), "unused": normal(2, 6, 3)},
        labels(0, 4, 6),
    ),
    "tuple with a count and an ignored scalar": (
        lambda z, y: (z[0] * y).sum(1),
        (normal(0, 6, 4), torch.arange(6), torch.tensor(3.0)),
        normal(1, 6, 4),
    ),
    "hidden state first": (
        lambda z, y: (z[1] - y).square(),
        [normal(0, 2, 6, 3), normal(1, 6)],
        normal(2, 6),
    ),
}


@pytest.mark.parametrize("name", GENERAL)
def test_any_loss_on_any_outputs(name: str) -> None:
    loss_fn, outputs, targets = GENERAL[name]
    if name == "hidden state first":
        slow = 2 * (outputs[1] - targets).abs()
    else:
        slow = slow_norms(loss_fn, outputs, targets, 6)
    assert_close(SCORE.of_outputs(loss_fn, outputs, targets), slow)


@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 5),
    rest=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
@few
def test_any_shape(seed: int, batch: int, rest: list[int]) -> None:
    outputs, targets = normal(seed, batch, *rest), normal(seed + 1, batch, *rest)

    def loss_fn(z: Tensor, y: Tensor) -> Tensor:
        return (z * y).sin().flatten(1).mean(1)

    assert_close(
        SCORE.of_outputs(loss_fn, outputs, targets), slow_norms(loss_fn, outputs, targets, batch)
    )


def test_the_score_scales_with_the_loss() -> None:
    logits, targets = normal(0, 5, 3), labels(0, 3, 5)
    plain = nn.CrossEntropyLoss(**NONE)
    twice = SCORE.of_outputs(lambda z, y: 2 * plain(z, y), logits, targets)
    assert_close(twice, 2 * SCORE.of_outputs(plain, logits, targets))


def test_a_loss_of_a_shared_output_is_refused() -> None:
    outputs = {"logits": normal(0, 4, 3), "balance": torch.tensor(1.0)}
    with pytest.raises(UsageError, match=r"shape \[\], which belongs to no single example.*of 4"):
        SCORE.of_outputs(lambda z, _: z["logits"].sum(1) + z["balance"], outputs, None)


@pytest.mark.parametrize(
    ("loss_fn", "found"),
    [
        (nn.CrossEntropyLoss(), r"a scalar, expected \[4\]: use reduction='none'"),
        (nn.BCEWithLogitsLoss(**NONE), r"shape \[4, 3\], expected \[4\]"),
        (lambda z, y: z.sum(0), r"shape \[3\], expected \[4\]"),
    ],
)
def test_anything_but_one_loss_per_example_is_refused(loss_fn: Any, found: str) -> None:
    targets = labels(0, 3, 4) if isinstance(loss_fn, nn.CrossEntropyLoss) else normal(1, 4, 3)
    with pytest.raises(UsageError, match=f"loss_fn returned {found}"):
        SCORE.of_outputs(loss_fn, normal(0, 4, 3), targets)


def test_a_loss_that_ignores_all_outputs_scores_zero() -> None:
    scale = nn.Parameter(torch.ones(3))
    assert SCORE.of_outputs(lambda z, _: scale * 2, normal(0, 3, 2), None).tolist() == [0, 0, 0]
    assert SCORE.of_outputs(lambda z, y: y, normal(0, 3, 2), torch.ones(3)).tolist() == [0, 0, 0]
    assert SCORE.of_outputs(lambda z, _: scale, torch.arange(3), None).tolist() == [0, 0, 0]
    assert scale.grad is None


def test_a_loss_may_work_in_place() -> None:
    outputs = normal(0, 5, 3)
    before = outputs.clone()
    scores = SCORE.of_outputs(lambda z, _: z.clamp_(min=0).sum(1), outputs, None)
    assert_close(scores, (before > 0).sum(1).double().sqrt())
    assert torch.equal(outputs, before)


@pytest.mark.parametrize("wrap", [False, True])
def test_scores_of_a_training_step_leave_its_graph_alone(wrap: bool) -> None:
    plain = nn.CrossEntropyLoss(**NONE)
    loss_fn = (lambda z, y: plain(z, y)) if wrap else plain
    gradients = []
    for scored in (False, True):
        weight = normal(0, 3, 4).requires_grad_()
        outputs = normal(1, 5, 3) @ weight
        loss = plain(outputs, labels(0, 4, 5)).mean()
        if scored:
            scores = SCORE.of_outputs(loss_fn, outputs, labels(0, 4, 5))
            assert not scores.requires_grad
            assert outputs.grad_fn is not None
            assert weight.grad is None
        loss.backward()
        assert weight.grad is not None
        gradients.append(weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("wrap", [False, True])
def test_labels_out_of_range_are_refused_as_pytorch_does(wrap: bool) -> None:
    plain = nn.CrossEntropyLoss(**NONE)
    loss_fn = (lambda z, y: plain(z, y)) if wrap else plain
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        SCORE.of_outputs(loss_fn, normal(0, 2, 3), torch.tensor([0, 3]))
    with pytest.raises(RuntimeError, match="target"):
        SCORE.of_outputs(loss_fn, normal(0, 3, 3), normal(0, 3))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match="mode 'Train' is unknown: use one of eval, train"):
        check_mode("Train")
    with pytest.raises(UsageError, match="precision 'half' is unknown: use one of auto, float32"):
        check_precision("half")
