"""Normalisation, lookups, and modules without a rule: against a loop over examples."""

import inspect
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from gradsift.errors import UsageError
from gradsift.scores import GradientNorm, register_rule
from gradsift.scores.gradient_loop import gradient_norms
from gradsift.scores.gradient_norm import Outer, Use, Whole, units
from gradsift.scores.gradient_norm.embedding import Rows
from gradsift.scores.gradient_norm.rules import find_rule
from norms import Mean, agrees, filled, normal, squares
from twins import assert_close

SMALL = st.integers(1, 3)


@given(
    kind=st.sampled_from(["layer", "rms", "pair"]),
    batch=SMALL,
    steps=st.lists(SMALL, max_size=2),
    width=st.integers(2, 4),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_normalisation_over_features(
    kind: str, batch: int, steps: list[int], width: int, bias: bool, seed: int
) -> None:
    layer: nn.Module = nn.RMSNorm(width) if kind == "rms" else nn.LayerNorm(width, bias=bias)
    if kind == "pair" and steps:
        layer = nn.LayerNorm([steps[-1], width], eps=0.1, bias=bias)
    agrees(nn.Sequential(layer, nn.Tanh(), Mean()), normal(seed, batch, *steps, width), seed)


KINDS = {
    "group": lambda channels, dims: nn.GroupNorm(channels // 2, channels),
    "instance": lambda channels, dims: [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d][
        dims - 1
    ](channels, affine=True),
    "running instance": lambda channels, dims: [
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
    ][dims - 1](channels, affine=True, track_running_stats=True),
    "batch": lambda channels, dims: [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims - 1](
        channels
    ),
}


@given(
    kind=st.sampled_from(sorted(KINDS)),
    batch=SMALL,
    channels=st.sampled_from([2, 4]),
    size=st.lists(st.integers(2, 3), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_normalisation_by_channel(
    kind: str, batch: int, channels: int, size: list[int], seed: int
) -> None:
    layer = KINDS[kind](channels, len(size))
    for name, buffer in layer.named_buffers():
        if name in ("running_mean", "running_var"):
            buffer.copy_(torch.linspace(0.5, 2, channels))
    agrees(nn.Sequential(layer, nn.Tanh()), normal(seed, batch, channels, *size), seed)


def test_normalisation_of_vectors_by_channel() -> None:
    for layer in (nn.GroupNorm(2, 4), nn.BatchNorm1d(4)):
        agrees(nn.Sequential(layer, nn.Tanh()), normal(1, 3, 4))


@pytest.mark.parametrize("place", ["mode", "no statistics"])
def test_batch_statistics_are_refused(place: str) -> None:
    norm = nn.BatchNorm1d(4, track_running_stats=place == "mode")
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 3)).double()
    score = GradientNorm(mode="train" if place == "mode" else "eval")
    model.train()
    with pytest.raises(UsageError, match=r"layer '1' \(BatchNorm1d\) normalises by the statistics"):
        score(model, squares, normal(0, 5, 4), normal(1, 5))
    with pytest.raises(UsageError, match="layer '1'"):
        score.watch(model, 5)


def test_a_layer_that_is_frozen_in_eval_is_fine() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    model[1].eval()
    x, y = normal(0, 5, 4), normal(1, 5)
    found = GradientNorm(mode="train")(model, squares, x, y)
    assert_close(found, gradient_norms(model, squares, x, y))


@given(
    batch=SMALL,
    steps=st.integers(1, 6),
    tokens=st.integers(1, 4),
    padding=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_lookups(batch: int, steps: int, tokens: int, padding: bool, seed: int) -> None:
    layer = nn.Embedding(tokens, 3, padding_idx=0 if padding else None)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(tokens, (batch, steps), generator=generator)
    agrees(nn.Sequential(layer, nn.Tanh(), Mean()), ids, seed)


def test_lookups_of_single_tokens_and_by_frequency() -> None:
    agrees(nn.Embedding(3, 2), torch.tensor([2, 0, 2, 1]))
    ids = torch.tensor([[0, 1, 1], [2, 2, 2]])
    agrees(nn.Sequential(nn.Embedding(3, 2, scale_grad_by_freq=True), nn.Tanh(), Mean()), ids)


def test_rows_are_those_of_the_table() -> None:
    tokens, values = torch.tensor([[0, 2, 2], [1, 1, 1]]), normal(0, 2, 3, 2)
    rows = Rows(tokens, values, 4)
    table = torch.zeros(2, 4, 2, dtype=torch.float64)
    for example in range(2):
        for place in range(3):
            table[example, tokens[example, place]] += values[example, place]
    assert_close(rows.gradients(slice(0, 2)), table.flatten(1))
    assert_close(rows.squared_norms(), table.square().sum((1, 2)))
    scale = normal(1, 8)
    assert_close(rows.scaled_squared_norms(scale), (table.flatten(1) * scale).square().sum(1))


class LanguageModel(nn.Module):
    """Tokens in, tokens out, with one table for both, and learned positions."""

    def __init__(self, tied: str) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(5, 4), nn.Embedding(7, 4)
        self.head = nn.Linear(4, 5, bias=False)
        if tied == "attribute":
            self.head.weight = self.tokens.weight
        self.tied = tied

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])
        x = torch.tanh(self.tokens(ids) + self.positions(places.expand_as(ids)))
        return F.linear(x, self.tokens.weight) if self.tied == "function" else self.head(x)


def token_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").sum(1)


@pytest.mark.parametrize("tied", ["no", "attribute", "function"])
def test_tied_embeddings(tied: str) -> None:
    model = filled(LanguageModel(tied))
    ids = torch.tensor([[0, 1, 1], [2, 2, 2], [4, 3, 0]])
    targets = ids.roll(1, 1)
    score = GradientNorm()
    for _ in range(2):
        found = score(model, token_losses, ids, targets)
        assert_close(found, gradient_norms(model, token_losses, ids, targets), 1e-10)


class Custom(nn.Module):
    """Parameters of its own around layers with rules."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.start = nn.Parameter(torch.ones(1, 1, 3))
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1)
        return torch.tanh(self.layer(x * self.scale)) * self.scale


def test_parameters_of_a_module_of_the_users() -> None:
    agrees(nn.Sequential(nn.Linear(2, 3), Custom(), Mean()), normal(0, 3, 4, 2))


class Stubborn(Custom):
    """Breaks under `torch.func`: it looks at a value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if float(x.detach().abs().sum()) > 0 else 3)


def test_a_loop_where_torch_func_fails() -> None:
    agrees(nn.Sequential(nn.Linear(2, 3), Stubborn(), Mean()), normal(0, 3, 4, 2))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_layers_whose_weight_is_computed(norm: Any) -> None:
    model = filled(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), norm(nn.Linear(3, 2))))
    x, y = normal(0, 4, 2), normal(1, 4)
    found = GradientNorm()(model, squares, x, y)
    assert_close(found, gradient_norms(model, squares, x, y), 1e-10)


def test_one_notice_for_each_kind_of_module(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_NOTICED", set())
    model = filled(nn.Sequential(Custom(), Custom(), Mean()))
    with caplog.at_level(logging.INFO, "gradsift"):
        for _ in range(2):
            GradientNorm()(model, squares, normal(0, 3, 4, 3), normal(1, 3))
    (record,) = caplog.records
    assert "0 (Custom) has no rule for per-example gradients" in record.getMessage()
    assert "register_rule makes them cheap" in record.getMessage()


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * torch.rand_like(x)


@pytest.mark.parametrize("layer", ["random", "dropout"])
def test_a_module_that_draws_cannot_be_repeated(layer: str) -> None:
    model = Noisy() if layer == "random" else Custom()
    if layer == "dropout":
        model.layer = nn.Sequential(nn.Linear(3, 3), nn.Dropout())  # pyright: ignore[reportAttributeAccessIssue]
    model = nn.Sequential(model, Mean()).double()
    state = torch.get_rng_state()
    with pytest.raises(UsageError, match="has no rule and draws random numbers"):
        GradientNorm(mode="train", check=False)(model, squares, normal(0, 3, 4, 3), normal(1, 3))
    assert torch.equal(torch.get_rng_state(), state)


class Diagonal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Doubled(Diagonal):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_rule_of_the_users() -> None:
    used: list[Use] = []

    @register_rule(Diagonal)
    def diagonal(use: Use) -> dict[str, Whole]:
        used.append(use)
        return {"factor": Whole((use.gradient * use.input).flatten(1, -2).sum(1))}

    agrees(nn.Sequential(nn.Linear(2, 3), Diagonal(), nn.Tanh(), Mean()), normal(0, 3, 4, 2))
    assert [use.name for use in used] == ["1", "1", "1"]
    assert find_rule(Diagonal()) is diagonal
    assert find_rule(Doubled()) is None
    agrees(nn.Sequential(Doubled(), nn.Tanh(), Mean()), normal(0, 3, 4, 3))
    assert len(used) == 3

    register_rule(Diagonal)(lambda use: {})
    with pytest.raises(UsageError, match=r"returned \[\], expected a contribution for 'factor'"):
        GradientNorm()(filled(Diagonal()), squares, normal(0, 3, 3), normal(1, 3))
    with pytest.raises(UsageError, match="register_rule received 'Linear', expected a module cl"):
        inspect.unwrap(register_rule)("Linear")


@given(
    terms=st.integers(1, 6),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    seed=st.integers(0, 9),
)
@settings(max_examples=30)
def test_forms_of_an_outer_product_agree(terms: int, rows: int, columns: int, seed: int) -> None:
    outer = Outer(normal(seed, 3, terms, rows), normal(seed + 1, 3, terms, columns))
    gradients = torch.einsum("nto,nti->noi", outer.left, outer.right).flatten(1)
    exact = gradients.square().sum(1)
    scale = normal(seed + 2, rows * columns)
    assert_close(outer.gradients(slice(0, 3)), gradients)
    assert_close(outer.gram(), exact, 1e-11)
    assert_close(outer.squared_norms(), exact, 1e-11)
    assert_close(outer.scaled_squared_norms(scale), (gradients * scale).square().sum(1), 1e-11)


def test_the_cheaper_form_of_an_outer_product_is_taken() -> None:
    def prefers(terms: int, rows: int, columns: int) -> bool:
        left, right = (torch.empty(2, terms, size, device="meta") for size in (rows, columns))
        return Outer(left, right).prefers_gram

    assert prefers(64, 512, 512)
    assert not prefers(512, 16, 16)


def test_the_page_runs_as_written() -> None:
    page = Path(__file__).parents[1] / "docs" / "gradient-norms.md"
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, page.name, "exec"), names)
        names["norms"] = names["norms"].clone()
    assert names["norms"].shape == (32,)
