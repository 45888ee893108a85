"""LSTM, GRU and RNN: the steps are repeated, and every matrix is a linear map of a sequence.

The fused layers show neither their gates nor the layers in between. The rule repeats them step by
step from the layer's inputs, with the gates' inputs as leaves, and takes the gradients of those.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.scores.gradient_norm.contributions import AbstractContribution, Outer
from gradsift.scores.gradient_norm.lstm_stack import lstm
from gradsift.scores.gradient_norm.repeat import check_repeated, with_random_state
from gradsift.scores.gradient_norm.rules import Use, register_rule, widened
from gradsift.scores.gradient_norm.steps import (
    State,
    Weights,
    as_steps,
    contributions,
    draws,
    given_state,
    sequence,
    starts,
    weights_of,
)


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


Cell = Callable[[Trace, Weights, Tensor, State], State]
"""One step: from the gates' inputs and the state to the next state."""


def _lstm(trace: Trace, weights: Weights, gates: Tensor, state: State) -> State:
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


def _gru(trace: Trace, weights: Weights, gates: Tensor, state: State) -> State:
    (hidden,) = state
    bias = weights.get("bias_hh")
    inner = F.linear(hidden, weights["weight_hh"], bias).chunk(3, 1)
    parts = gates.chunk(3, 1)
    reset, keep = (torch.sigmoid(parts[place] + inner[place]) for place in (0, 1))
    trace.reset.append(reset.detach())
    new = torch.tanh(parts[2] + reset * inner[2])
    return (new + keep * (hidden - new),)


def _plain(activate: Callable[[Tensor], Tensor]) -> Cell:
    def step(trace: Trace, weights: Weights, gates: Tensor, state: State) -> State:
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
    inputs, active = sequence(use)
    if layer.mode == "LSTM" and active is None and not (layer.proj_size or draws(layer)):
        named = lstm(use, inputs)
        return {name: part for name, part in named.items() if name in use.wanted}
    with torch.enable_grad():
        outputs, final, traces = _run(use, inputs, active)
    gradients = [None if part is None else widened(part) for part in use.gradients]
    upper = gradients[0]
    if upper is not None:
        upper = as_steps(use, upper)
    lower = gradients[-len(final) :]
    pairs = [
        (value, part)
        for value, part in zip((outputs, *final), (upper, *lower), strict=True)
        if part is not None
    ]
    sources, backs = zip(*pairs, strict=True)
    leaves = [leaf for t in traces for leaf in (t.gates, *(added for added, _ in t.projected))]
    if draws(layer):
        check_repeated(use, as_steps(use, use.outputs[0]), outputs)
    found = iter(torch.autograd.grad(sources, leaves, backs, allow_unused=True))
    parts: dict[str, AbstractContribution] = {}
    for trace in traces:
        parts |= _contributions(trace, found)
    return {name: part for name, part in parts.items() if name in use.wanted}


def _run(use: Use, inputs: Tensor, active: Tensor | None) -> tuple[Tensor, State, list[Trace]]:
    """The whole layer again: its outputs, its final states, and a trace of every direction."""
    layer, directions = use.layer, 2 if use.layer.bidirectional else 1
    cell, begun = _CELLS[layer.mode], starts(layer, given_state(use), inputs)
    traces: list[Trace] = []
    ends: list[State] = []
    with with_random_state(use.random_state):
        for depth in range(layer.num_layers):
            parts: list[Tensor] = []
            for direction in range(directions):
                suffix = f"_l{depth}" + ("_reverse" if direction else "")
                start = tuple(part[depth * directions + direction] for part in begun)
                weights = weights_of(layer, suffix, inputs)
                trace = Trace(suffix, inputs.detach(), _gates(layer.mode, weights, inputs))
                output, end = _walk(cell, trace, weights, start, (bool(direction), active), inputs)
                traces.append(trace)
                parts.append(output)
                ends.append(end)
            inputs = torch.cat(parts, 2) if directions > 1 else parts[0]
            if draws(layer) and depth < layer.num_layers - 1:
                inputs = F.dropout(inputs, layer.dropout)
    final = tuple(torch.stack(states) for states in zip(*ends, strict=True))
    return inputs, final, traces


def _gates(mode: str, weights: Weights, inputs: Tensor) -> Tensor:
    bias = weights.get("bias_ih")
    if bias is not None and mode != "GRU":
        bias = bias + weights["bias_hh"]
    found = F.linear(inputs, weights["weight_ih"], bias)
    return found if found.requires_grad else found.requires_grad_()


def _walk(
    cell: Cell,
    trace: Trace,
    weights: Weights,
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
    named = contributions(trace.suffix, gates, inner, trace.inputs, torch.stack(before))
    if trace.projected:
        parts = [_filled(next(found), added) for added, _ in trace.projected]
        states = [state for _, state in trace.projected]
        projection = Outer(torch.stack(parts, 1), torch.stack(states, 1))
        named[f"weight_hr{trace.suffix}"] = projection
    return named


def _filled(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
