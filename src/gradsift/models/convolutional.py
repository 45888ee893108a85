"""A small convolutional network for images of 8 pixels and more: ``cnn``."""

from torch import nn

from gradsift.errors import UsageError
from gradsift.models.normalisation import Normalise

SMALLEST = 8
WIDTHS = (32, 64)


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


def cnn(input_shape: tuple[int, ...], outputs: int, normalise: Normalise) -> nn.Module:
    """Two blocks of convolution, normalisation, rectifier and pooling, then one linear layer.

    Takes ``[batch, channels, height, width]`` and returns ``[batch, outputs]``. The blocks have 32
    and 64 channels, and each halves the image.

    Raises:
        UsageError: for inputs that are not images.

    Example:
        >>> from gradsift.models.normalisation import by_group
        >>> cnn((1, 28, 28), 10, by_group)[-1]
        Linear(in_features=3136, out_features=10, bias=True)
    """
    check_image("cnn", input_shape)
    channels, height, width = input_shape
    first, second = WIDTHS
    return nn.Sequential(
        nn.Conv2d(channels, first, kernel_size=3, padding=1),
        normalise(first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, kernel_size=3, padding=1),
        normalise(second),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), outputs),
    )
