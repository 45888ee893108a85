"""Exact gradient norms, against a loop over examples: linear layers, sharing, and the contract."""

import copy
import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.errors import UsageError
from gradsift.scores import GradientNorm, score_examples
from gradsift.scores.gradient_loop import gradient_norms
from norms import LOSS, Mean, agrees, filled, normal, squares
from twins import assert_close

WIDTHS = st.integers(1, 5)


@given(
    sizes=st.tuples(WIDTHS, WIDTHS, WIDTHS, WIDTHS),
    steps=st.lists(st.integers(1, 4), max_size=2),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_linear_layers_of_vectors_and_sequences(
    sizes: tuple[int, ...], steps: list[int], bias: bool, seed: int
) -> None:
    batch, inputs, hidden, outputs = sizes
    model = nn.Sequential(
        nn.Linear(inputs, hidden, bias=bias), nn.Tanh(), nn.Linear(hidden, outputs), Mean()
    )
    agrees(model, normal(seed, batch, *steps, inputs), seed)


class Shared(nn.Module):
    """One layer three times, a second layer with the same weight, and a frozen parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.often = nn.Linear(width, width)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.often.weight
        self.frozen = nn.Linear(width, width)
        self.frozen.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.often(torch.tanh(self.often(x))))
        return self.frozen(torch.tanh(self.tied(self.often(x[..., :1, :])))).squeeze(-2)


@given(batch=st.integers(1, 4), width=WIDTHS, steps=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_parameters_used_several_times_count_once(
    batch: int, width: int, steps: int, seed: int
) -> None:
    agrees(Shared(width), normal(seed, batch, steps, width), seed)


def network() -> nn.Sequential:
    return filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


X, Y = normal(9, 6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


def only(model: nn.Module, names: list[str]) -> Tensor:
    """The loop over examples, with every other parameter frozen."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return gradient_norms(model, LOSS, X, Y)


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ("last", ["2.weight", "2.bias"]),
        (["2"], ["2.weight", "2.bias"]),
        (["0.weight", "2.bias"], ["0.weight", "2.bias"]),
        (["0"], ["0.weight", "0.bias"]),
    ],
)
def test_a_subset_of_the_parameters(params: Any, names: list[str]) -> None:
    model = network()
    assert_close(GradientNorm(params=params)(model, LOSS, X, Y), only(model, names))


def test_frozen_parameters_do_not_count() -> None:
    model = network()
    model[0].requires_grad_(False)
    assert_close(GradientNorm()(model, LOSS, X, Y), only(model, ["2.weight", "2.bias"]))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("first", "params 'first' is unknown: use 'all', 'last' or a list of names"),
        (["3.weight"], "params names '3.weight', expected parameters or modules of the model"),
        ([], "a model without a parameter that requires a gradient"),
    ],
)
def test_subsets_that_do_not_exist(params: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GradientNorm(params=params)(network(), LOSS, X, Y)


def test_no_parameter_and_no_dependence() -> None:
    for model in (nn.Identity(), network().requires_grad_(False)):
        with pytest.raises(UsageError, match="a model without a parameter that requires a grad"):
            GradientNorm()(model, LOSS, X, Y)
    model = network()

    def constant(outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.double()

    assert GradientNorm()(model, constant, X, Y).tolist() == [0.0] * 6
    expected = GradientNorm()(model, LOSS, X, Y)
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    assert_close(GradientNorm()(model, LOSS, X, Y), expected)


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="mode 'test' is unknown"):
        inspect.unwrap(GradientNorm.__post_init__)(SimpleNamespace(mode="test"))
    with pytest.raises(UsageError, match="precision 'fp8' is unknown"):
        inspect.unwrap(GradientNorm.__post_init__)(SimpleNamespace(mode="eval", precision="fp8"))


def test_a_scalar_loss_is_refused() -> None:
    with pytest.raises(UsageError, match=r"loss_fn returned a scalar, expected \[6\]"):
        GradientNorm()(network(), nn.CrossEntropyLoss(), X, Y)


def test_it_is_a_score_like_any_other() -> None:
    model = network()
    found = score_examples(GradientNorm(), model, LOSS, X, Y, count=6, chunk=4)
    assert_close(found, gradient_norms(model, LOSS, X, Y))
    assert_close(found, GradientNorm()(model, LOSS, X, Y))


class Nested(nn.Module):
    """Several inputs by name, and outputs in a dictionary; one of them is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.unused = nn.Linear(4, 3), nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, left: Tensor, *, right: Tensor) -> dict[str, Any]:
        last = self.unused(right)
        return {"sum": (self.left(left), [self.right(input=right)]), "other": last}


def test_nested_inputs_and_outputs() -> None:
    model = filled(Nested())

    def loss_fn(outputs: dict[str, Any], targets: Tensor) -> Tensor:
        left, (right,) = outputs["sum"]
        return LOSS(left * right, targets)

    inputs = {"left": X, "right": normal(3, 6, 2)}
    found = GradientNorm()(model, loss_fn, inputs, Y)
    assert_close(found, gradient_norms(model, loss_fn, inputs, Y))


def test_another_way_to_call_the_model() -> None:
    def forward(model: Any, inputs: Any) -> Tensor:
        return model(2 * inputs["x"])

    model = network()
    found = GradientNorm().norms(model, LOSS, {"x": X / 2}, Y, forward)
    assert_close(found, gradient_norms(model, LOSS, X, Y))


def test_operations_in_place_after_a_layer() -> None:
    model = filled(nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)))
    assert_close(GradientNorm()(model, LOSS, X, Y), gradient_norms(model, LOSS, X, Y))


class Overwrites(nn.Module):
    """Changes the input of a frozen-input layer after the layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        out = self.layer(x)
        x.zero_()
        return out


def test_an_input_that_is_overwritten_is_refused() -> None:
    with pytest.raises(UsageError, match="an input of layer 'layer' was changed in place"):
        GradientNorm()(filled(Overwrites()), LOSS, X, Y)


def test_hooks_of_the_user_are_respected() -> None:
    model = network()
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    model[0].register_forward_hook(lambda module, args, output: output.mul(2))
    assert_close(GradientNorm()(model, LOSS, X, Y), gradient_norms(model, LOSS, X, Y))


def test_fitted_examples_keep_their_norm() -> None:
    """The gradient of ``−log p_y`` is ``(p − y) xᵀ``: at a gap of 40 plain float32 says zero."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0.0], [40.0, 0.0], [80.0, 0.0]])
    found = GradientNorm(precision="float32")(model, LOSS, x, torch.zeros(3, dtype=torch.int64))
    expected = [g * math.sqrt(2) * math.exp(-g) / (1 + math.exp(-g)) for g in (1.0, 40.0, 80.0)]
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_low_precision(precision: Any) -> None:
    model, x = network().float(), X.float()
    found = GradientNorm(precision=precision)(model, LOSS, x, Y)
    assert found.dtype == torch.float32
    exact = gradient_norms(model, LOSS, x, Y)
    low = {"bfloat16": 0.05, "float16": 0.01, "float32": 1e-5}[precision]
    torch.testing.assert_close(found, exact, rtol=low, atol=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GradientNorm(precision=precision)(model, LOSS, x, Y), found)


def test_a_model_in_bfloat16() -> None:
    model, x = network().bfloat16(), X.bfloat16()
    found = GradientNorm()(model, LOSS, x, Y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gradient_norms(model, LOSS, x, Y), rtol=0.05, atol=0)


class Mixes(nn.Module):
    """Normalises over the batch, out of sight of every check by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


def test_examples_that_mix_are_noticed() -> None:
    model = filled(Mixes())
    with pytest.raises(UsageError, match="the model mixes examples, or a layer's first dimension"):
        GradientNorm()(model, LOSS, X, Y)
    assert GradientNorm(check=False)(model, LOSS, X, Y).shape == (6,)


def test_folded_examples_are_refused() -> None:
    model = filled(nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 3), nn.Unflatten(0, (5, 2))))
    model.append(nn.Flatten(1))
    with pytest.raises(UsageError, match="expected a first or second dimension of 5 examples"):
        GradientNorm()(model, squares, normal(1, 5, 2, 4), normal(2, 5))


class StepsFirst(nn.Module):
    """Layers whose examples are in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(0, 1)).transpose(0, 1)


def test_sequences_with_the_batch_in_the_second_dimension() -> None:
    agrees(StepsFirst(), normal(1, 7, 5, 4))


def test_losses_with_a_sum_over_positions() -> None:
    model = filled(nn.Linear(4, 3))
    x, y = normal(1, 5, 7, 4), torch.arange(35).view(5, 7) % 3

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)

    assert_close(GradientNorm()(model, loss_fn, x, y), gradient_norms(model, loss_fn, x, y))
