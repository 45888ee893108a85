"""The precision that was asked for is the one in force, and low precision keeps small scores."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.errors import UsageError
from gradsift.scores import Loss, OutputGradient, score_examples
from gradsift.scores import precision as module
from gradsift.scores.precision import (
    Precision,
    autocast,
    check_precision,
    computes_in_bfloat16,
)
from twins import (
    GAPS,
    assert_within_one_percent,
    binary_gap_truth,
    gap_logits,
    gap_truth,
)

NONE: dict[str, Any] = {"reduction": "none"}


class Spy(nn.Module):
    """A layer that remembers in which type it computed."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=dtype)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        self.seen.append(out.dtype)
        return out


class Gap(nn.Module):
    """One number in, the logits ``(x, 0, 0)`` or the logit ``x`` out, through a matrix."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(1, outputs, bias=False)
        nn.init.zeros_(self.layer.weight)
        with torch.no_grad():
            self.layer.weight[0, 0] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze(1)


@pytest.mark.parametrize("outer", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [OutputGradient, Loss])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_the_surroundings_do_not_matter(
    asked: Precision, expected: torch.dtype, kind: Any, outer: torch.dtype | None
) -> None:
    model, score = Spy(), kind(precision=asked)
    x, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    with torch.autocast("cpu", outer or torch.bfloat16, enabled=outer is not None):
        scores = score(model, nn.CrossEntropyLoss(**NONE), x, y)
        again = score_examples(score, model, nn.CrossEntropyLoss(**NONE), x, y, count=4)
    assert model.seen == [expected, expected]
    assert scores.dtype == again.dtype == torch.float32


@pytest.mark.parametrize("kind", [OutputGradient, Loss])
def test_a_loss_with_a_matrix_is_computed_in_full_precision(kind: Any) -> None:
    outputs, table = torch.randn(5, 7), torch.randn(7, 4)

    def loss_fn(z: Tensor, y: Tensor) -> Tensor:
        return (z @ table).square().sum(1)

    outside = kind(precision="bfloat16").of_outputs(loss_fn, outputs, None)
    with torch.autocast("cpu", torch.bfloat16):
        inside = kind(precision="bfloat16").of_outputs(loss_fn, outputs, None)
    assert torch.equal(inside, outside)
    assert inside.dtype == torch.float32


@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16"])
def test_float64_stays_float64(asked: Precision) -> None:
    model = Spy(torch.float64)
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        scores = OutputGradient(precision=asked)(model, nn.CrossEntropyLoss(**NONE), x, y)
    assert model.seen == [torch.float64]
    assert scores.dtype == torch.float64
    expected = OutputGradient().of_outputs(nn.CrossEntropyLoss(**NONE), model(x), y)
    assert torch.equal(scores, expected)


@pytest.mark.parametrize(("low", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_follows_the_device(
    monkeypatch: pytest.MonkeyPatch, low: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(module, "computes_in_bfloat16", lambda device_type: low)
    model = Spy()
    y = torch.zeros(2, dtype=torch.int64)
    OutputGradient()(model, nn.CrossEntropyLoss(**NONE), torch.randn(2, 3), y)
    assert model.seen == [expected]


def test_auto_keeps_full_precision_where_an_input_is_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "computes_in_bfloat16", lambda device_type: True)
    single = torch.ones(1, 1)
    for inputs, expected in (
        ([single], torch.bfloat16),
        ([single, single.double()], torch.float32),
    ):
        with autocast(inputs, "auto"):
            assert (single @ single).dtype == expected


def test_inputs_without_floating_tensors_have_a_precision_too() -> None:
    with autocast({"ids": torch.arange(3)}, "bfloat16"):
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16
    with autocast("no tensor at all", "float32"):
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32


def test_the_surrounding_cache_survives() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with autocast(torch.ones(1), "bfloat16"):
            assert not torch.is_autocast_cache_enabled()
        assert torch.is_autocast_cache_enabled()


def test_a_weight_converted_while_scoring_is_not_used_in_training() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad(), autocast(x, "bfloat16"):
            model(x)
        loss = model(x).sum()
    loss.backward()
    assert model.weight.grad is not None
    assert bool((model.weight.grad != 0).all())


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_model_with_a_region_of_its_own_keeps_its_gradients(asked: Precision) -> None:
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)

    def model(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(inputs)

    score, labels = OutputGradient(precision=asked), torch.zeros(4, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        score(model, nn.CrossEntropyLoss(**NONE), x, labels)
        loss = model(x).sum()
    loss.backward()
    assert layer.weight.grad is not None
    assert bool((layer.weight.grad != 0).all())


def test_unknown_precision() -> None:
    with pytest.raises(UsageError, match="precision 'fp8' is unknown: use one of auto, float32"):
        check_precision("fp8")
    assert not computes_in_bfloat16("no such device")


LOSSES = {
    "closed": nn.CrossEntropyLoss(**NONE),
    "autograd": lambda z, y: F.cross_entropy(z, y, **NONE),
    "by hand": lambda z, y: -z.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1),
}
BINARY = {
    "closed": nn.BCEWithLogitsLoss(**NONE),
    "autograd": lambda z, y: F.binary_cross_entropy_with_logits(z, y, **NONE),
}
GAP = torch.tensor(GAPS, dtype=torch.float32)


@pytest.mark.parametrize("name", LOSSES)
def test_fitted_classes_under_bfloat16(name: str) -> None:
    score, labels = OutputGradient(precision="bfloat16"), torch.zeros(41, dtype=torch.int64)
    outputs = gap_logits(3, torch.bfloat16)
    assert outputs[:, 0].float().equal(GAP)
    with torch.autocast("cpu", torch.bfloat16):
        inside = score.of_outputs(LOSSES[name], outputs, labels)
        from_model = score(Gap(3), LOSSES[name], GAP.unsqueeze(1), labels)
    for scores in (inside, from_model, score(Gap(3), LOSSES[name], GAP.unsqueeze(1), labels)):
        assert_within_one_percent(scores, gap_truth(3))


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_fitted_binary_examples_under_bfloat16(name: str, sign: float) -> None:
    score, labels = OutputGradient(precision="bfloat16"), torch.full((41,), max(sign, 0.0))
    inputs = sign * GAP.unsqueeze(1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = score.of_outputs(BINARY[name], sign * GAP.bfloat16(), labels)
        from_model = score(Gap(1), BINARY[name], inputs, labels)
    for scores in (inside, from_model, score(Gap(1), BINARY[name], inputs, labels)):
        assert_within_one_percent(scores, binary_gap_truth())


def test_the_loss_of_fitted_examples_under_bfloat16() -> None:
    labels = torch.zeros(41, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        scores = Loss(precision="bfloat16")(Gap(3), LOSSES["closed"], GAP.unsqueeze(1), labels)
    exact = nn.CrossEntropyLoss(**NONE)(gap_logits(3, torch.float64), labels)
    torch.testing.assert_close(scores.double()[:15], exact[:15], rtol=0.05, atol=1e-7)
