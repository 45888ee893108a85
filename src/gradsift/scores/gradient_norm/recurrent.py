"""LSTM, GRU and RNN: the steps are repeated, and every matrix is a linear map of a sequence.

The fused layers show neither their gates nor the layers in between. The rule repeats them step by
step from the layer's inputs, with the gates' inputs as leaves, and takes the gradients of those.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from gradsift.errors import UsageError
from gradsift.scores.gradient_norm.contributions import AbstractContribution, Outer, Whole, gram
from gradsift.scores.gradient_norm.lstm import Direction, gate_gradients, layer_outputs
from gradsift.scores.gradient_norm.repeat import check_repeated, with_random_state
from gradsift.scores.gradient_norm.rules import Use, register_rule, widened


@dataclass(frozen=True, eq=False)
class Trace:
    """One direction of one layer, step by step in the order of time.

    Attributes:
        suffix: of its parameters' names.
        inputs: ``[steps, batch, features]``.
        gates: inputs of the gates from ``inputs``, a leaf, ``[steps, batch, gates]``.
        before: the state that each step started from.
        reset: what a GRU's last gate multiplies its hidden part by.
        projected: leaves added to the projected state, and the states before projection.
    """

    suffix: str
    inputs: Tensor
    gates: Tensor
    before: list[Tensor] = field(default_factory=list)
    reset: list[Tensor] = field(default_factory=list)
    projected: list[tuple[Tensor, Tensor]] = field(default_factory=list)


State = tuple[Tensor, ...]
Cell = Callable[[Trace, Mapping[str, Tensor], Tensor, State], State]
"""One step: from the gates' inputs and the state to the next state."""


def _lstm(trace: Trace, weights: Mapping[str, Tensor], gates: Tensor, state: State) -> State:
    hidden, memory = state
    parts = torch.addmm(gates, hidden, weights["weight_hh"].T).chunk(4, 1)
    enter, forget, leave = (torch.sigmoid(parts[place]) for place in (0, 1, 3))
    memory = forget * memory + enter * torch.tanh(parts[2])
    hidden = leave * torch.tanh(memory)
    if "weight_hr" in weights:
        projection = weights["weight_hr"]
        added = hidden.new_zeros(len(hidden), len(projection)).requires_grad_()
        trace.projected.append((added, hidden.detach()))
        hidden = hidden @ projection.T + added
    return hidden, memory


def _gru(trace: Trace, weights: Mapping[str, Tensor], gates: Tensor, state: State) -> State:
    (hidden,) = state
    bias = weights.get("bias_hh")
    inner = F.linear(hidden, weights["weight_hh"], bias).chunk(3, 1)
    parts = gates.chunk(3, 1)
    reset, keep = (torch.sigmoid(parts[place] + inner[place]) for place in (0, 1))
    trace.reset.append(reset.detach())
    new = torch.tanh(parts[2] + reset * inner[2])
    return (new + keep * (hidden - new),)


def _plain(activate: Callable[[Tensor], Tensor]) -> Cell:
    def step(trace: Trace, weights: Mapping[str, Tensor], gates: Tensor, state: State) -> State:
        del trace
        return (activate(torch.addmm(gates, state[0], weights["weight_hh"].T)),)

    return step


_CELLS: dict[str, Cell] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _plain(torch.tanh),
    "RNN_RELU": _plain(torch.relu),
}


@register_rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(use: Use) -> Mapping[str, AbstractContribution]:
    """Any number of layers, both directions, projections, packed sequences, dropout in between."""
    layer = use.layer
    inputs, active = _sequence(use)
    if layer.mode == "LSTM" and active is None and not (layer.proj_size or _draws(layer)):
        return _of_lstm(use, inputs)
    with torch.enable_grad():
        outputs, final, traces = _run(use, inputs, active)
    gradients = [None if part is None else widened(part) for part in use.gradients]
    upper = gradients[0]
    if upper is not None:
        upper = _as_steps(use, upper)
    lower = gradients[-len(final) :]
    pairs = [
        (value, part)
        for value, part in zip((outputs, *final), (upper, *lower), strict=True)
        if part is not None
    ]
    sources, backs = zip(*pairs, strict=True)
    leaves = [leaf for t in traces for leaf in (t.gates, *(added for added, _ in t.projected))]
    if _draws(layer):
        check_repeated(use, _as_steps(use, use.outputs[0]), outputs)
    found = iter(torch.autograd.grad(sources, leaves, backs, allow_unused=True))
    named: dict[str, AbstractContribution] = {}
    for trace in traces:
        named |= _contributions(trace, found)
    return {name: part for name, part in named.items() if name in use.wanted}


def _draws(layer: Any) -> bool:
    return layer.training and layer.dropout > 0 and layer.num_layers > 1


def _of_lstm(use: Use, inputs: Tensor) -> Mapping[str, AbstractContribution]:
    """From the last layer down: the gates' gradients give those of the layer's inputs."""
    layer, sides = use.layer, ("", "_reverse")[: 2 if use.layer.bidirectional else 1]
    starts, sequences = _starts(use, inputs), [inputs]
    weights = [
        [_weights(layer, f"_l{depth}{side}", inputs) for side in sides]
        for depth in range(layer.num_layers)
    ]
    for depth in range(layer.num_layers - 1):
        span = slice(depth * len(sides), (depth + 1) * len(sides))
        start = starts[0][span].contiguous(), starts[1][span].contiguous()
        sequences.append(layer_outputs(sequences[-1], start, weights[depth]))
    sequences.append(_as_steps(use, widened(use.outputs[0])))
    upper, *final = (None if part is None else widened(part) for part in use.gradients)
    upper = None if upper is None else _as_steps(use, upper)
    named: dict[str, AbstractContribution] = {}
    for depth in reversed(range(layer.num_layers)):
        lower: Tensor | None = None
        for number, side in enumerate(sides):
            place, turn = depth * len(sides) + number, (lambda x: x.flip(0)) if number else _same
            part = slice(number * layer.hidden_size, (number + 1) * layer.hidden_size)
            given = Direction(
                inputs=turn(sequences[depth]),
                outputs=turn(sequences[depth + 1][..., part]),
                start=(starts[0][place], starts[1][place]),
                weights=weights[depth][number],
            )
            ends = tuple(None if end is None else end[place] for end in final)
            back = None if upper is None else turn(upper[..., part])
            gates = gate_gradients(given, back, (ends[0], ends[1]))
            named |= _named(f"_l{depth}{side}", gates, gates, given.inputs, given.before)
            if depth:
                down = turn(gates @ given.weights["weight_ih"])
                lower = down if lower is None else lower + down
        upper = lower
    return {name: part for name, part in named.items() if name in use.wanted}


def _same(values: Tensor) -> Tensor:
    return values


def _named(
    suffix: str, gates: Tensor, inner: Tensor, inputs: Tensor, before: Tensor
) -> dict[str, AbstractContribution]:
    """The parameters of one direction: inputs to ``gates``, states before to ``inner``."""
    outer, hidden = gates.transpose(0, 1), inner.transpose(0, 1)
    shared = cache(lambda: gram(outer)) if inner is gates else None
    found: dict[str, AbstractContribution] = {
        "weight_ih": Outer(outer, inputs.transpose(0, 1), shared),
        "weight_hh": Outer(hidden, before.transpose(0, 1), shared),
        "bias_ih": Whole(outer.sum(1)),
        "bias_hh": Whole(hidden.sum(1)),
    }
    return {name + suffix: part for name, part in found.items()}


def _as_steps(use: Use, values: Tensor) -> Tensor:
    """``[steps, batch, features]`` of an output, or of its gradient."""
    given = use.input
    if isinstance(given, PackedSequence):
        packed = PackedSequence(values, *given[1:])
        return pad_packed_sequence(packed)[0]
    return values.transpose(0, 1) if use.layer.batch_first else values


def _sequence(use: Use) -> tuple[Tensor, Tensor | None]:
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
    return _as_steps(use, given), None


def _run(use: Use, inputs: Tensor, active: Tensor | None) -> tuple[Tensor, State, list[Trace]]:
    """The whole layer again: its outputs, its final states, and a trace of every direction."""
    layer, directions = use.layer, 2 if use.layer.bidirectional else 1
    cell, starts = _CELLS[layer.mode], _starts(use, inputs)
    traces: list[Trace] = []
    ends: list[State] = []
    with with_random_state(use.random_state):
        for depth in range(layer.num_layers):
            parts: list[Tensor] = []
            for direction in range(directions):
                suffix = f"_l{depth}" + ("_reverse" if direction else "")
                start = tuple(part[depth * directions + direction] for part in starts)
                weights = _weights(layer, suffix, inputs)
                trace = Trace(suffix, inputs.detach(), _gates(layer.mode, weights, inputs))
                output, end = _walk(cell, trace, weights, start, (bool(direction), active), inputs)
                traces.append(trace)
                parts.append(output)
                ends.append(end)
            inputs = torch.cat(parts, 2) if directions > 1 else parts[0]
            if _draws(layer) and depth < layer.num_layers - 1:
                inputs = F.dropout(inputs, layer.dropout)
    final = tuple(torch.stack(states) for states in zip(*ends, strict=True))
    return inputs, final, traces


def _weights(layer: Any, suffix: str, inputs: Tensor) -> dict[str, Tensor]:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return {
        name: getattr(layer, name + suffix).detach().to(inputs)
        for name in names
        if hasattr(layer, name + suffix)
    }


def _gates(mode: str, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    bias = weights.get("bias_ih")
    if bias is not None and mode != "GRU":
        bias = bias + weights["bias_hh"]
    found = F.linear(inputs, weights["weight_ih"], bias)
    return found if found.requires_grad else found.requires_grad_()


def _starts(use: Use, inputs: Tensor) -> State:
    given = use.args[1] if len(use.args) > 1 else use.kwargs.get("hx")
    layer = use.layer
    if given is not None:
        return tuple(map(widened, given if isinstance(given, tuple | list) else (given,)))
    places = layer.num_layers * (2 if layer.bidirectional else 1)
    width = layer.proj_size or layer.hidden_size
    start = inputs.new_zeros(places, inputs.shape[1], width)
    if layer.mode != "LSTM":
        return (start,)
    return start, inputs.new_zeros(places, inputs.shape[1], layer.hidden_size)


def _walk(
    cell: Cell,
    trace: Trace,
    weights: Mapping[str, Tensor],
    state: State,
    order: tuple[bool, Tensor | None],
    inputs: Tensor,
) -> tuple[Tensor, State]:
    """All steps of one direction; a sequence that is over keeps its state."""
    backwards, active = order
    outputs: list[Tensor] = []
    steps = trace.gates.unbind(0)
    places = range(len(inputs))
    for place in reversed(places) if backwards else places:
        trace.before.append(state[0].detach())
        new = cell(trace, weights, steps[place], state)
        if active is None:
            outputs.append(new[0])
        else:
            on = active[place]
            new = tuple(torch.where(on, part, old) for part, old in zip(new, state, strict=True))
            outputs.append(torch.where(on, new[0], 0.0))
        state = new
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _contributions(trace: Trace, found: Iterator[Tensor | None]) -> dict[str, AbstractContribution]:
    """The four or five parameters of one direction; the traces are in the order of walking."""
    gates = _filled(next(found), trace.gates)
    backwards = trace.suffix.endswith("reverse")
    before, reset = trace.before, trace.reset
    if backwards:
        before, reset = before[::-1], reset[::-1]
    inner = gates
    if reset:
        last = gates.shape[2] // 3
        inner = torch.cat([gates[..., : 2 * last], gates[..., 2 * last :] * torch.stack(reset)], 2)
    named = _named(trace.suffix, gates, inner, trace.inputs, torch.stack(before))
    if trace.projected:
        parts = [_filled(next(found), added) for added, _ in trace.projected]
        states = [state for _, state in trace.projected]
        projection = Outer(torch.stack(parts, 1), torch.stack(states, 1))
        named[f"weight_hr{trace.suffix}"] = projection
    return named


def _filled(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
