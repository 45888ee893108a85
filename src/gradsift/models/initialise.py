"""Initial parameters as a function of one generator: no global random state is read.

PyTorch's layers draw their parameters from the global generator when they are made. So a model is
made without any storage first, and every parameter is then drawn here.
"""

import math

import torch
from torch import nn

from gradsift.errors import UsageError
from gradsift.models.sparse import SparseLinear


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draws every parameter of a model anew, in the order of its layers.

    * Convolutions: He et al. (2015), normal with variance ``2/(width · area)``, as in the wide
      residual networks' own code.
    * Linear layers, sparse ones too: uniform in ``±1/√inputs``, PyTorch's default. Biases of all
      of these are zero.
    * Embeddings: standard normal, PyTorch's default.
    * LSTM: uniform in ``±1/√width``, PyTorch's default.
    * Normalisation: scale one, shift zero, empty statistics.

    Args:
        model: of these layers only; changed in place.
        generator: on the CPU, where the parameters must be.

    Raises:
        UsageError: for a layer with parameters of another kind.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> initialise(model, torch.Generator().manual_seed(0))
        >>> bool((model.bias == 0).all()), bool((model.weight.abs() <= 0.5).all())
        (True, True)
    """
    for layer in model.modules():
        _initialise_layer(layer, generator)


@torch.no_grad()
def _initialise_layer(layer: nn.Module, generator: torch.Generator) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(
            layer.weight, mode="fan_out", nonlinearity="relu", generator=generator
        )
        _zero(layer.bias)
    elif isinstance(layer, nn.Embedding):
        layer.weight.normal_(generator=generator)
    elif isinstance(layer, nn.Linear | SparseLinear):
        inputs = layer.in_features if isinstance(layer, nn.Linear) else len(layer.weight)
        bound = 1 / math.sqrt(inputs)
        layer.weight.uniform_(-bound, bound, generator=generator)
        _zero(layer.bias)
    elif isinstance(layer, nn.LSTM):
        bound = 1 / math.sqrt(layer.hidden_size)
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    elif isinstance(layer, nn.GroupNorm | nn.BatchNorm2d):
        layer.reset_parameters()
    elif next(layer.parameters(recurse=False), None) is not None:
        raise UsageError(
            f"{type(layer).__name__} is not a layer that gradsift.models initialises: "
            "initialise your own models yourself"
        )


def _zero(bias: torch.Tensor | None) -> None:
    if bias is not None:
        bias.zero_()
