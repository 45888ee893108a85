"""Attention and recurrent layers, against a loop over examples."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gradsift.errors import UsageError
from gradsift.scores import GradientNorm
from gradsift.scores.gradient_loop import gradient_norms
from norms import Mean, agrees, filled, normal, squares
from twins import assert_close

SMALL = st.integers(1, 3)


class Attends(nn.Module):
    """Attention of one sequence to itself, or to another one."""

    def __init__(self, other: bool, masks: str, weights: bool, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **options)
        self.other, self.masks, self.weights = other, masks, weights

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first = self.attention.batch_first
        source = y if self.other else x[..., : self.attention.kdim]
        if not self.other and self.attention._qkv_same_embed_dim:
            source = x
        query, key = (z if first else z.transpose(0, 1) for z in (x, source))
        key = query if source is x else key
        options = self.options(x, source)
        found, weights = self.attention(query, key, key, **options)
        found = (found if first else found.transpose(0, 1)).flatten(1)
        return found if weights is None else torch.cat([found, weights.flatten(1)], 1)

    def options(self, x: Tensor, source: Tensor) -> dict[str, Any]:
        """Masks: additive where there are two, so that they have one type; boolean otherwise."""
        options: dict[str, Any] = {"need_weights": self.weights}
        padding = torch.zeros(source.shape[:2], dtype=torch.bool)
        padding[:, 1:] = source[:, 1:, 0] > 0.5
        causal = torch.ones(x.shape[1], source.shape[1], dtype=torch.bool).triu(1)
        if self.masks == "heads":
            ramp = torch.arange(2.0, dtype=x.dtype).view(2, 1, 1)
            options["attn_mask"] = ramp.expand(2, *causal.shape).repeat(len(x), 1, 1)
        for name, key, mask in (
            ("padding", "key_padding_mask", padding),
            ("causal", "attn_mask", causal),
        ):
            if name in self.masks:
                low = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(mask, -torch.inf)
                options[key] = low if " " in self.masks else mask
        return options


@given(
    other=st.booleans(),
    masks=st.sampled_from(["", "padding", "causal", "heads", "padding causal"]),
    weights=st.booleans(),
    first=st.booleans(),
    bias=st.booleans(),
    extra=st.booleans(),
    zero=st.booleans(),
    sizes=st.tuples(SMALL, SMALL, SMALL),
    width=st.sampled_from([None, 3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_attention(
    other: bool,
    masks: str,
    weights: bool,
    first: bool,
    bias: bool,
    extra: bool,
    zero: bool,
    sizes: tuple[int, int, int],
    width: int | None,
    seed: int,
) -> None:
    options: dict[str, Any] = {"batch_first": first, "bias": bias, "add_bias_kv": extra}
    options |= {"add_zero_attn": zero, "kdim": width, "vdim": width}
    count, steps, others = sizes
    x, y = normal(seed, count, steps, 4), normal(seed + 1, count, others, width or 4)
    agrees(Attends(other, masks, weights, **options), (x, y), seed)


def test_a_transformer() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), Mean())
    agrees(model, normal(0, 3, 5, 4))
    decoder = nn.TransformerDecoderLayer(4, 2, 6, batch_first=True)
    x, y = normal(0, 3, 5, 4), normal(1, 3, 2, 4)
    agrees(decoder, (x, y))


class Recurrent(nn.Module):
    """A recurrent layer whose outputs and final states are read, from a given start or zero."""

    def __init__(self, kind: Any, start: bool, read: str, **options: Any) -> None:
        super().__init__()
        self.layer = kind(3, 4, **options)
        self.start, self.read = start, read

    def forward(self, x: Tensor) -> Tensor:
        first = self.layer.batch_first
        places = self.layer.num_layers * (2 if self.layer.bidirectional else 1)
        states = None
        if self.start:
            width = self.layer.proj_size or 4
            hidden = x[:, 0, :1].expand(places, -1, -1).repeat(1, 1, width)
            states = hidden
            if isinstance(self.layer, nn.LSTM):
                states = hidden, x[:, 0, :1].expand(places, -1, -1).repeat(1, 1, 4)
        outputs, final = self.layer(x if first else x.transpose(0, 1), states)
        final = final if isinstance(final, tuple) else (final,)
        parts = [outputs if first else outputs.transpose(0, 1)] if "out" in self.read else []
        if "state" in self.read:
            parts += [state.transpose(0, 1) for state in final]
        return torch.cat([part.flatten(1) for part in parts], 1)


@given(
    kind=st.sampled_from(["lstm", "gru", "tanh", "relu", "projected"]),
    layers=st.integers(1, 2),
    both=st.booleans(),
    first=st.booleans(),
    bias=st.booleans(),
    start=st.booleans(),
    read=st.sampled_from(["out", "state", "out state"]),
    sizes=st.tuples(SMALL, SMALL),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_recurrent_layers(
    kind: str,
    layers: int,
    both: bool,
    first: bool,
    bias: bool,
    start: bool,
    read: str,
    sizes: tuple[int, int],
    seed: int,
) -> None:
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": both, "batch_first": first}
    options["bias"] = bias
    if kind in ("tanh", "relu"):
        options["nonlinearity"] = kind
    if kind == "projected":
        options["proj_size"] = 2
    made = {"lstm": nn.LSTM, "projected": nn.LSTM, "gru": nn.GRU}.get(kind, nn.RNN)
    agrees(Recurrent(made, start, read, **options), normal(seed, *sizes, 3), seed)


class Packed(nn.Module):
    """Sequences of their own lengths: the number of leading steps whose first feature is not 0."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.layer = kind(3, 4, **options)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x[:, :, 0] != 0).sum(1)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        outputs, final = self.layer(packed)
        padded, _ = pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])
        state = final[0] if isinstance(final, tuple) else final
        return torch.cat([padded.flatten(1), state.transpose(0, 1).flatten(1)], 1)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_packed_sequences(kind: Any, both: bool) -> None:
    x = normal(0, 4, 5, 3)
    for place, length in enumerate((2, 5, 1, 3)):
        x[place, length:] = 0
    agrees(Packed(kind, num_layers=2, bidirectional=both), x)


def test_a_recurrent_layer_without_a_batch_is_refused() -> None:
    model = filled(nn.Sequential(nn.RNN(3, 4), First()))
    with pytest.raises(UsageError, match=r"layer '0' \(RNN\) received shape \[5, 3\]"):
        GradientNorm()(model, squares, normal(0, 5, 3), normal(1, 5))


class First(nn.Module):
    def forward(self, x: tuple[Tensor, ...]) -> Tensor:
        return x[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_memory_of_a_classifier(kind: Any) -> None:
    class Last(nn.Module):
        def forward(self, x: tuple[Tensor, Any]) -> Tensor:
            return x[0][:, -1]

    model = nn.Sequential(
        nn.Embedding(6, 3), kind(3, 4, 2, batch_first=True), Last(), nn.Linear(4, 3)
    )
    agrees(model, torch.arange(12).view(3, 4) % 6)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_cells_take_the_fallback(kind: Any) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return state[0] if isinstance(state, tuple) else state  # pyright: ignore[reportReturnType]

    model = filled(Steps())
    x, y = normal(0, 3, 4, 3), normal(1, 3)
    found = GradientNorm()(model, squares, x, y)
    assert_close(found, gradient_norms(model, squares, x, y), 1e-10)
