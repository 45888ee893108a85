"""One direction of an LSTM layer, in the operations that the fused layer does.

With ``c' = f·c + i·g`` and ``h = o·tanh(c')`` the gradients of the gates' inputs are
``(∂c'·g·i(1−i), ∂c'·c·f(1−f), ∂c'·i·(1−g²), ∂h·tanh(c')·o(1−o))``, and before a step
``∂c = ∂c'·f``, while ``∂h`` comes from the hidden matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gradsift.scores.gradient_norm.steps import Weights

ENTER, FORGET, NEW, LEAVE = range(4)
"""PyTorch's order of the gates."""


@dataclass(frozen=True, eq=False)
class Walked:
    """What a direction computed; a backward one is turned round, so that time runs forwards.

    Attributes:
        inputs: ``[steps, batch, features]``.
        outputs: ``[steps, batch, width]``.
        before: the hidden state that each step started from.
        gates: opened, ``[steps, batch, 4, width]``.
        memory: before each step and after the last, ``[steps + 1, batch, width]``.
        weights: of this direction.
    """

    inputs: Tensor
    outputs: Tensor
    before: Tensor
    gates: Tensor
    memory: Tensor
    weights: Weights


def walk(inputs: Tensor, start: tuple[Tensor, Tensor], weights: Weights) -> Walked:
    """One direction, step by step.

    Example:
        >>> weights = {"weight_ih": torch.zeros(4, 1), "weight_hh": torch.zeros(4, 1)}
        >>> start = torch.zeros(1, 1), torch.ones(1, 1)
        >>> walk(torch.ones(1, 1, 1), start, weights).memory.flatten()
        tensor([1.0000, 0.5000])
    """
    bias = weights["bias_ih"] + weights["bias_hh"] if "bias_ih" in weights else None
    gates = F.linear(inputs, weights["weight_ih"], bias)
    steps, count, width = len(inputs), inputs.shape[1], start[0].shape[-1]
    hidden = inputs.new_empty(steps + 1, count, width)
    memory = torch.empty_like(hidden)
    hidden[0], memory[0] = start
    matrix = weights["weight_hh"].T
    for step in range(steps):
        flat = gates[step].addmm_(hidden[step], matrix)
        opened = _open(flat.view(count, 4, width), 1)
        added = opened[:, ENTER] * opened[:, NEW]
        torch.addcmul(added, opened[:, FORGET], memory[step], out=memory[step + 1])
        torch.mul(opened[:, LEAVE], torch.tanh(memory[step + 1]), out=hidden[step + 1])
    gates = gates.view(steps, count, 4, width)
    return Walked(inputs, hidden[1:], hidden[:-1], gates, memory, weights)


def rewalk(
    inputs: Tensor, outputs: Tensor, start: tuple[Tensor, Tensor], weights: Weights
) -> Walked:
    """The same from known outputs: they are the states that the steps started from.

    All gates are then one product, and only the memory needs a loop.
    """
    before = torch.cat([start[0].unsqueeze(0), outputs[:-1]])
    gates = F.linear(inputs, weights["weight_ih"], weights.get("bias_ih"))
    gates = gates.add_(F.linear(before, weights["weight_hh"], weights.get("bias_hh")))
    gates = _open(gates.unflatten(2, (4, -1)), 2)
    added = gates[:, :, ENTER] * gates[:, :, NEW]
    memory = added.new_empty(len(added) + 1, *added.shape[1:])
    memory[0] = start[1]
    for step in range(len(added)):
        torch.addcmul(added[step], gates[step, :, FORGET], memory[step], out=memory[step + 1])
    return Walked(inputs, outputs, before, gates, memory, weights)


def _open(values: Tensor, dim: int) -> Tensor:
    """Three sigmoids and one hyperbolic tangent, in place."""
    new = torch.tanh(values.select(dim, NEW))
    values.sigmoid_()
    values.select(dim, NEW).copy_(new)
    return values


def gate_gradients(
    walked: Walked, upper: Tensor | None, final: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Gradients of the gates' inputs ``[steps, batch, 4·width]``, and of the start.

    Args:
        walked: the direction.
        upper: gradient of its outputs.
        final: gradients of the last hidden state and of the last memory.
    """
    steps, count, width = walked.outputs.shape
    enter, forget, new, leave = walked.gates.unbind(2)
    shown = torch.tanh(walked.memory[1:])
    through = leave * (1 - shown.square())
    hidden, kept = (walked.outputs.new_zeros(count, width) if f is None else f for f in final)
    matrix, found = walked.weights["weight_hh"], torch.empty_like(walked.gates)
    torch.mul(new * enter, 1 - enter, out=found[:, :, ENTER])
    torch.mul(walked.memory[:-1] * forget, 1 - forget, out=found[:, :, FORGET])
    torch.mul(enter, 1 - new.square(), out=found[:, :, NEW])
    torch.mul(shown * leave, 1 - leave, out=found[:, :, LEAVE])
    for step in reversed(range(steps)):
        hidden = hidden if upper is None else hidden + upper[step]
        kept = torch.addcmul(kept, hidden, through[step])
        found[step, :, :LEAVE].mul_(kept.unsqueeze(1))
        found[step, :, LEAVE].mul_(hidden)
        hidden, kept = found[step].view(count, -1) @ matrix, kept * forget[step]
    return found.flatten(2), (hidden, kept)
