"""Gradients of an LSTM's gates, in the operations that the fused layer does.

The outputs of a layer are all the states that its steps started from, so the gates' inputs are one
matrix product over the whole sequence. What is left for a loop is the memory on the way forward,
and one product with the hidden matrix for each step on the way back.

With ``c' = f·c + i·g`` and ``h = o·tanh(c')`` the gradients of the gates' inputs are
``(∂c'·g·i(1−i), ∂c'·c·f(1−f), ∂c'·i·(1−g²), ∂h·tanh(c')·o(1−o))``, and before a step
``∂c = ∂c'·f`` and ``∂h`` comes from the hidden matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]
"""``weight_ih``, ``weight_hh`` and possibly ``bias_ih``, ``bias_hh`` of one direction."""


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction of one layer; a backward one is turned round, so that time runs forwards.

    Attributes:
        inputs: ``[steps, batch, features]``.
        outputs: ``[steps, batch, width]``.
        start: hidden state and memory before the first step, ``[batch, width]`` each.
        weights: of this direction.
    """

    inputs: Tensor
    outputs: Tensor
    start: tuple[Tensor, Tensor]
    weights: Weights

    @property
    def before(self) -> Tensor:
        """The hidden state that each step started from."""
        return torch.cat([self.start[0].unsqueeze(0), self.outputs[:-1]])


def layer_outputs(inputs: Tensor, starts: tuple[Tensor, Tensor], weights: list[Weights]) -> Tensor:
    """The outputs of one layer, both directions side by side, by PyTorch's own kernel.

    Example:
        >>> weights = {"weight_ih": torch.zeros(4, 1), "weight_hh": torch.zeros(4, 1)}
        >>> start = torch.zeros(1, 1, 1)
        >>> layer_outputs(torch.ones(2, 1, 1), (start, start), [weights])
        tensor([[[0.]],
                [[0.]]])
    """
    flat = [part for direction in weights for part in direction.values()]
    biased, both = "bias_ih" in weights[0], len(weights) > 1
    with torch.no_grad():
        return torch._VF.lstm(inputs, starts, flat, biased, 1, 0.0, False, both, False)[0]


def gate_gradients(
    given: Direction, upper: Tensor | None, final: tuple[Tensor | None, Tensor | None]
) -> Tensor:
    """Gradients of the gates' inputs, ``[steps, batch, 4·width]``.

    Args:
        given: the direction.
        upper: gradient of its outputs.
        final: gradients of the last hidden state and of the last memory.
    """
    steps, count, width = given.outputs.shape
    opened, memory = _forward(given)
    enter, forget, new, leave = opened.unbind(2)
    shown = torch.tanh(memory[1:])
    factors = torch.stack(
        [
            new * enter * (1 - enter),
            memory[:-1] * forget * (1 - forget),
            enter * (1 - new.square()),
            shown * leave * (1 - leave),
        ],
        2,
    )
    through = leave * (1 - shown.square())
    hidden, kept = (given.outputs.new_zeros(count, width) if f is None else f for f in final)
    upper = torch.zeros_like(given.outputs) if upper is None else upper
    matrix, found = given.weights["weight_hh"], torch.empty_like(factors)
    for step in reversed(range(steps)):
        hidden = hidden + upper[step]
        kept = torch.addcmul(kept, hidden, through[step])
        torch.mul(factors[step, :, :3], kept.unsqueeze(1), out=found[step, :, :3])
        torch.mul(factors[step, :, 3], hidden, out=found[step, :, 3])
        hidden, kept = found[step].view(count, -1) @ matrix, kept * forget[step]
    return found.flatten(2)


def _forward(given: Direction) -> tuple[Tensor, Tensor]:
    """The opened gates ``[steps, batch, 4, width]``, and the memory before and after each step."""
    weights = given.weights
    gates = F.linear(given.inputs, weights["weight_ih"], weights.get("bias_ih"))
    gates = gates.add_(F.linear(given.before, weights["weight_hh"], weights.get("bias_hh")))
    gates = gates.unflatten(2, (4, -1))
    new = torch.tanh(gates[:, :, 2])
    opened = gates.sigmoid_()
    opened[:, :, 2] = new
    added = opened[:, :, 0] * new
    memory = torch.empty(len(added) + 1, *added.shape[1:], dtype=added.dtype, device=added.device)
    memory[0] = given.start[1]
    for step in range(len(added)):
        torch.addcmul(added[step], opened[step, :, 1], memory[step], out=memory[step + 1])
    return opened, memory
