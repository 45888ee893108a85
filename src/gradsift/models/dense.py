"""Models that see an input as one row of numbers: ``linear`` and ``mlp``."""

import math

from torch import nn


def linear(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """One affine map of the flattened input: logistic or linear regression.

    Takes ``[batch, *input_shape]`` and returns ``[batch, outputs]``.

    Example:
        >>> sum(parameter.numel() for parameter in linear((1, 8, 8), 10).parameters())
        650
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), outputs))


def mlp(input_shape: tuple[int, ...], outputs: int, width: int = 256) -> nn.Module:
    """Two hidden layers of ``width`` rectified units on the flattened input.

    Takes ``[batch, *input_shape]`` and returns ``[batch, outputs]``.

    Example:
        >>> mlp((1, 8, 8), 10)[1]
        Linear(in_features=64, out_features=256, bias=True)
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )
