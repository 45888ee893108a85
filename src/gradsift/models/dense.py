"""Models that see an input as one row of numbers: ``linear`` and ``mlp``."""

import math

from torch import nn

from gradsift.models.sparse import SparseLinear


def linear(input_shape: tuple[int, ...], outputs: int, *, sparse: bool = False) -> nn.Module:
    """One affine map of the flattened input: logistic or linear regression.

    Takes ``[batch, *input_shape]``, or pairs where the input is sparse, and returns
    ``[batch, outputs]``.

    Example:
        >>> sum(parameter.numel() for parameter in linear((1, 8, 8), 10).parameters())
        650
    """
    return nn.Sequential(*_first(math.prod(input_shape), outputs, sparse))


def mlp(
    input_shape: tuple[int, ...], outputs: int, width: int = 256, *, sparse: bool = False
) -> nn.Module:
    """Two hidden layers of ``width`` rectified units on the flattened input.

    Takes ``[batch, *input_shape]``, or pairs where the input is sparse, and returns
    ``[batch, outputs]``.

    Example:
        >>> mlp((1, 8, 8), 10)[1]
        Linear(in_features=64, out_features=256, bias=True)
    """
    return nn.Sequential(
        *_first(math.prod(input_shape), width, sparse),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


def _first(features: int, width: int, sparse: bool) -> list[nn.Module]:
    if sparse:
        return [SparseLinear(features, width)]
    return [nn.Flatten(), nn.Linear(features, width)]
