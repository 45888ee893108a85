"""Recurrent layers as PyTorch lays them out: steps first, parameters by layer and direction."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from gradsift.errors import UsageError
from gradsift.scores.gradient_norm.contributions import AbstractContribution, Outer, Whole, gram
from gradsift.scores.gradient_norm.rules import Use, widened

State = tuple[Tensor, ...]
"""The hidden state, and the memory of an LSTM."""

Weights = Mapping[str, Tensor]
"""``weight_ih``, ``weight_hh`` and possibly ``bias_ih``, ``bias_hh``, ``weight_hr``."""


def suffixes(layer: Any) -> list[tuple[str, ...]]:
    """Endings of the parameters' names: for each layer, one or two directions.

    Example:
        >>> suffixes(torch.nn.GRU(1, 1, 2, bidirectional=True))[1]
        ('_l1', '_l1_reverse')
    """
    sides = ("", "_reverse") if layer.bidirectional else ("",)
    return [tuple(f"_l{depth}{side}" for side in sides) for depth in range(layer.num_layers)]


def draws(layer: Any) -> bool:
    """Whether there is dropout between the layers."""
    return layer.training and layer.dropout > 0 and layer.num_layers > 1


def as_steps(use: Use, values: Tensor) -> Tensor:
    """``[steps, batch, features]`` of an input or output, or of its gradient."""
    given = use.input
    if isinstance(given, PackedSequence):
        packed = PackedSequence(values, *given[1:])
        return pad_packed_sequence(packed)[0]
    return values.transpose(0, 1) if use.layer.batch_first else values


def sequence(use: Use) -> tuple[Tensor, Tensor | None]:
    """``[steps, batch, features]``, and which steps belong to a sequence of its own length."""
    given = use.input
    if isinstance(given, PackedSequence):
        inputs, lengths = pad_packed_sequence(given)
        steps = torch.arange(len(inputs)).unsqueeze(1)
        return widened(inputs), (steps < lengths).to(inputs.device).unsqueeze(2)
    if given.dim() != 3 or given.shape[0 if use.layer.batch_first else 1] != use.count:
        raise UsageError(
            f"layer {use.name!r} ({type(use.layer).__name__}) received shape {list(given.shape)} "
            f"with batch_first={use.layer.batch_first}, expected {use.count} examples in a batch: "
            "give it three dimensions, or change batch_first"
        )
    return as_steps(use, given), None


def starts(layer: Any, given: Any, inputs: Tensor) -> State:
    """The states before the first step, ``[layers·directions, batch, width]``; zero by default."""
    if given is not None:
        return tuple(map(widened, given if isinstance(given, tuple | list) else (given,)))
    places = layer.num_layers * (2 if layer.bidirectional else 1)
    start = inputs.new_zeros(places, inputs.shape[1], layer.proj_size or layer.hidden_size)
    if layer.mode != "LSTM":
        return (start,)
    return start, inputs.new_zeros(places, inputs.shape[1], layer.hidden_size)


def given_state(use: Use) -> Any:
    """The second argument of the call, or None."""
    return use.args[1] if len(use.args) > 1 else use.kwargs.get("hx")


def weights_of(layer: Any, suffix: str, like: Tensor) -> Weights:
    """The parameters of one direction, detached, in the type of ``like``."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return {
        name: getattr(layer, name + suffix).detach().to(like)
        for name in names
        if hasattr(layer, name + suffix)
    }


def contributions(
    suffix: str, gates: Tensor, inner: Tensor, inputs: Tensor, before: Tensor
) -> dict[str, AbstractContribution]:
    """The parameters of one direction: ``inputs`` lead to ``gates``, states before to ``inner``."""
    outer, hidden = gates.transpose(0, 1), inner.transpose(0, 1)
    shared = cache(lambda: gram(outer)) if inner is gates else None
    found: dict[str, AbstractContribution] = {
        "weight_ih": Outer(outer, inputs.transpose(0, 1), shared),
        "weight_hh": Outer(hidden, before.transpose(0, 1), shared),
        "bias_ih": Whole(outer.sum(1)),
        "bias_hh": Whole(hidden.sum(1)),
    }
    return {name + suffix: part for name, part in found.items()}
