"""All layers and directions of `torch.nn.LSTM`: repeated for a rule, or run in place of the layer.

The fused kernel shows no gates, so a rule has to compute them again. Where the forward pass is
gradsift's own, `LstmStandin` takes the layer's place for that pass: it computes the same and keeps
the gates, and its backward pass keeps their gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.scores.gradient_norm.contributions import AbstractContribution
from gradsift.scores.gradient_norm.lstm import Walked, gate_gradients, rewalk, walk
from gradsift.scores.gradient_norm.rules import Use, widened
from gradsift.scores.gradient_norm.steps import (
    as_steps,
    contributions,
    draws,
    given_state,
    starts,
    suffixes,
    weights_of,
)


@dataclass(frozen=True, eq=False)
class Stack:
    """What every direction of every layer computed, and the gates' gradients once they are known.

    Attributes:
        layer: the module.
        walked: for each layer, one or two directions.
        gates: gradients of the gates' inputs, by suffix; empty before `back`.
        edges: where a backward pass has to arrive: nowhere.
    """

    layer: Any
    walked: list[list[Walked]]
    gates: dict[str, Tensor] = field(default_factory=dict)
    edges: tuple[Any, ...] = ()

    def back(
        self,
        upper: Tensor | None,
        final: tuple[Tensor | None, Tensor | None],
        to_inputs: bool = True,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """From gradients of the outputs and final states to those of inputs and starts."""
        width, sides = self.layer.hidden_size, len(self.walked[0])
        begun: list[tuple[Tensor, Tensor]] = []
        for depth, endings in reversed(list(enumerate(suffixes(self.layer)))):
            lower: Tensor | None = None
            for number, (walked, suffix) in reversed(
                list(enumerate(zip(self.walked[depth], endings, strict=True)))
            ):
                place = depth * sides + number
                ends = (_at(final[0], place), _at(final[1], place))
                part = None if upper is None else upper[..., number * width : (number + 1) * width]
                part = None if part is None else _turned(part, number)
                gates, start = gate_gradients(walked, part, ends)
                self.gates[suffix] = gates
                begun.insert(0, start)
                if depth == 0 and not to_inputs:
                    continue
                down = _turned(gates @ walked.weights["weight_ih"], number)
                lower = down if lower is None else lower + down
            upper = lower
        hidden, memory = (torch.stack(states) for states in zip(*begun, strict=True))
        return upper, hidden, memory

    def contributions(self) -> Mapping[str, AbstractContribution]:
        """All parameters, from the gates' gradients."""
        named: dict[str, AbstractContribution] = {}
        for endings, sides in zip(suffixes(self.layer), self.walked, strict=True):
            for suffix, walked in zip(endings, sides, strict=True):
                gates = self.gates[suffix]
                named |= contributions(suffix, gates, gates, walked.inputs, walked.before)
        return named


def _at(values: Tensor | None, place: int) -> Tensor | None:
    return None if values is None else values[place]


def _turned(values: Tensor, number: int) -> Tensor:
    """The second direction runs against time."""
    return values.flip(0) if number else values


def stacked(
    layer: Any, inputs: Tensor, start: tuple[Tensor, ...], known: Tensor | None = None
) -> tuple[Stack, Tensor]:
    """Runs all layers; the outputs of the last one may be known. ``[steps, batch, features]``."""
    walked: list[list[Walked]] = []
    for depth, endings in enumerate(suffixes(layer)):
        sides: list[Walked] = []
        for number, suffix in enumerate(endings):
            place = depth * len(endings) + number
            begin, turned = (start[0][place], start[1][place]), _turned(inputs, number)
            weights = weights_of(layer, suffix, inputs)
            if known is None or depth < layer.num_layers - 1:
                sides.append(walk(turned, begin, weights))
            else:
                part = known[..., number * layer.hidden_size : (number + 1) * layer.hidden_size]
                sides.append(rewalk(turned, _turned(part, number), begin, weights))
        walked.append(sides)
        outputs = [_turned(side.outputs, number) for number, side in enumerate(sides)]
        inputs = torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]
    return Stack(layer, walked), inputs


def lstm(use: Use, inputs: Tensor) -> Mapping[str, AbstractContribution]:
    """The rule: with the gates of the stand-in, or computed again."""
    stack = use.record
    if stack is None:
        known = as_steps(use, widened(use.outputs[0]))
        start = starts(use.layer, given_state(use), inputs)
        stack, _ = stacked(use.layer, inputs, start, known)
    if not stack.gates:
        upper, *final = (None if part is None else widened(part) for part in use.gradients)
        stack.back(None if upper is None else as_steps(use, upper), (final[0], final[1]), False)
    return stack.contributions()


class _Run(torch.autograd.Function):
    """The layer as one node of the graph, whose backward pass fills its stack."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, stacks: list[Stack], layer: Any, inputs: Tensor, hidden: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.stack, outputs = stacked(layer, inputs, (hidden, memory))
        stacks.append(ctx.stack)
        every = [side for sides in ctx.stack.walked for side in sides]
        ctx.set_materialize_grads(False)
        return (
            outputs.clone(),
            torch.stack([side.outputs[-1] for side in every]),
            torch.stack([side.memory[-1] for side in every]),
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        upper, hidden, memory = gradients
        return None, None, *ctx.stack.back(upper, (hidden, memory))


@dataclass(frozen=True, eq=False)
class LstmStandin:
    """The forward pass of an LSTM while gradsift scores; what it kept is taken by `taken`.

    Example:
        >>> layer, x = nn.LSTM(2, 3), torch.ones(4, 1, 2)
        >>> standin = LstmStandin(layer)
        >>> torch.testing.assert_close(standin(x)[0], layer(x)[0])
    """

    layer: nn.LSTM
    stacks: list[Stack] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `torch.nn.LSTM.forward`; what it cannot do goes there."""
        inputs: Any = args[0] if args else kwargs.get("input")
        given = args[1] if len(args) > 1 else kwargs.get("hx")
        if not self._can(inputs):
            return nn.LSTM.forward(self.layer, *args, **kwargs)
        steps = inputs.transpose(0, 1) if self.layer.batch_first else inputs
        hidden, memory = starts(self.layer, given, steps)
        anchor = steps if steps.requires_grad else steps.detach().requires_grad_()
        outputs, *final = _Run.apply(self.stacks, self.layer, anchor, hidden, memory)  # pyright: ignore[reportGeneralTypeIssues]
        return outputs.transpose(0, 1) if self.layer.batch_first else outputs, tuple(final)

    def _can(self, inputs: Any) -> bool:
        layer = self.layer
        return (
            isinstance(inputs, Tensor)
            and inputs.dim() == 3
            and inputs.itemsize >= 4
            and not (layer.proj_size or draws(layer))
            and not torch.is_autocast_enabled(inputs.device.type)
        )

    def taken(self) -> Stack | None:
        """What the last call kept, if the stand-in made it."""
        return self.stacks.pop() if self.stacks else None
