"""What the tests of gradient norms share: models with fixed parameters, and the comparison."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.scores import GradientNorm
from gradsift.scores.base import call_model
from gradsift.scores.gradient_loop import gradient_norms
from twins import LossFunction

LOSS = nn.CrossEntropyLoss(reduction="none")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(model: Any, seed: int = 0) -> Any:
    """The model in float64 and eval mode, with parameters that do not depend on global state."""
    model = model.double().eval()
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(1000 * seed + place, *parameter.shape) / 2)
    return model


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance of the outputs to ``targets``, one number for each example."""
    return (outputs.flatten(1) - targets.view(-1, 1)).square().sum(1) / 2


class Mean(nn.Module):
    """The mean over everything between the first and the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.dim() == 2 else x.flatten(1, -2).mean(1)


def agrees(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    seed: int = 0,
    loss_fn: LossFunction = squares,
    score: GradientNorm | None = None,
) -> None:
    """The norms are those of the loop over examples: to 1e-10 in float64, 1e-4 in float32.

    So are those of a training step, seen as it goes by.
    """
    model = filled(model, seed)
    first = inputs if isinstance(inputs, Tensor) else inputs[0]
    targets = normal(seed + 1, first.shape[0])
    exact = gradient_norms(model, loss_fn, inputs, targets)
    score = GradientNorm() if score is None else score
    found = score(model, loss_fn, inputs, targets)
    scale = exact.abs().max()
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12 * float(scale))
    with score.watch(model, first.shape[0]) as seen:
        loss_fn(call_model(model, inputs), targets).mean().backward()
    model.zero_grad()
    stepped = seen.norms()
    torch.testing.assert_close(stepped, exact, rtol=1e-10, atol=1e-12 * float(scale))
    single = copy.deepcopy(model).float()
    low = tuple(x.float() if x.is_floating_point() else x for x in _tuple(inputs))
    rough = score(single, loss_fn, low if isinstance(inputs, tuple) else low[0], targets.float())
    torch.testing.assert_close(rough.double(), exact, rtol=1e-4, atol=2e-6 * float(scale))


def _tuple(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else inputs
