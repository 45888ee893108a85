"""A small convolutional network for images of 8 pixels and more: ``cnn``."""

import math

from torch import nn

from gradsift.errors import UsageError

SMALLEST = 8


def check_image(model: str, input_shape: tuple[int, ...]) -> None:
    """Raises a `UsageError` unless the shape is ``[channels, height, width]`` of 8 pixels up.

    Example:
        >>> check_image("cnn", (64,))
        Traceback (most recent call last):
        gradsift.errors.UsageError: model 'cnn' received inputs of shape [64], expected images ...
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST:
        raise UsageError(
            f"model {model!r} received inputs of shape {list(input_shape)}, expected images "
            f"[channels, height, width] of at least {SMALLEST} x {SMALLEST} pixels: "
            "choose mlp, which takes any shape"
        )


def cnn(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Three convolutions, two of which halve the image, and two linear layers; no normalisation.

    Takes ``[batch, channels, height, width]`` and returns ``[batch, outputs]``. Channels 16, 32
    and 32, hidden units 128: small enough for many epochs on a CPU.

    Raises:
        UsageError: for inputs that are not images.

    Example:
        >>> cnn((1, 28, 28), 10)[-3]
        Linear(in_features=1568, out_features=128, bias=True)
    """
    check_image("cnn", input_shape)
    channels, height, width = input_shape
    pixels = math.ceil(height / 4) * math.ceil(width / 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * pixels, 128),
        nn.ReLU(),
        nn.Linear(128, outputs),
    )
