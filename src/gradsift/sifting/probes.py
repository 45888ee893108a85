"""Small measurements on a batch that is there anyway: seconds to score it, signal against noise.

They leave no trace in the model, in any gradient or in any random state.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gradsift.scores.base import losses_of
from gradsift.scores.untouched import untouched
from gradsift.sifting.candidates import Candidates
from gradsift.sifting.setup import Setup
from gradsift.sifting.wrapped import eagerly, sharded


def half_gradients(setup: Setup, batch: Candidates) -> tuple[list[Tensor], list[Tensor]] | None:
    """The mean gradients of the two halves of a batch, at the same parameters, in eval mode.

    Two halves of a shuffled batch are two (almost) independent batches. Their inner product
    estimates ``‖μ‖²``, and their squared distance the noise.

    Returns:
        None where there is nothing to differentiate: a model that is no module, no parameter that
        learns, or fewer than two examples.
    """
    parameters = trainable(setup.model)
    if not parameters or batch.count < 2:
        return None
    half = batch.count // 2
    with untouched(setup.model), eagerly(), torch.enable_grad():
        first, second = (
            _mean_gradient(setup, batch.take(torch.arange(start, start + half)), parameters)
            for start in (0, half)
        )
    return first, second


def trainable(model: Any) -> list[nn.Parameter]:
    """The parameters that learn and are whole; none of a callable that is no module.

    Of parameters that processes hold parts of, a gradient is more than autograd returns.
    """
    values = model.parameters() if isinstance(model, nn.Module) and not sharded(model) else ()
    return [value for value in values if value.requires_grad]


def _mean_gradient(setup: Setup, batch: Candidates, parameters: list[nn.Parameter]) -> list[Tensor]:
    losses = losses_of(setup.loss_fn, setup.forward(setup.model, batch.inputs), batch.targets)
    found = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
    return [part for part in found if part is not None]
