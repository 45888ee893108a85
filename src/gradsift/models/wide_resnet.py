"""Wide residual networks, ``wrn-D-K`` (Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146).

``D = 6n + 4`` layers deep, ``K`` times as wide as the thin network: one convolution to 16
channels, three groups of n blocks with 16K, 32K and 64K channels, the last two of which halve the
image, then normalisation, rectifier, the mean over the image, and one linear layer. A block is
normalisation, rectifier, 3 x 3 convolution, twice, added to its input.

Deviations: group normalisation is the default (see `normalisation`); no dropout.
"""

import re

from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.errors import UsageError
from gradsift.models.convolutional import check_image
from gradsift.models.normalisation import Normalise

_NAME = re.compile(r"wrn-(\d+)-(\d+)", re.ASCII)


def parse_wide(name: str) -> tuple[int, int]:
    """The depth and the width factor in a name such as ``wrn-28-10``.

    Raises:
        UsageError: when the depth is not ``6n + 4`` with n ≥ 1, or the width factor is 0.

    Example:
        >>> parse_wide("wrn-28-10")
        (28, 10)
    """
    match = _NAME.fullmatch(name)
    depth, factor = (int(match[1]), int(match[2])) if match else (0, 0)
    if depth < 10 or (depth - 4) % 6 != 0 or factor < 1:
        raise UsageError(
            f"model {name!r} is not a wide residual network: write wrn-DEPTH-WIDTH with a depth "
            "of 10, 16, 22, 28, … and a width factor of at least 1, such as wrn-16-4"
        )
    return depth, factor


class WideBlock(nn.Module):
    """``x + f(x)``, where f normalises, rectifies and convolves twice.

    Where the shape changes, the sum starts from a 1 x 1 convolution of the normalised and
    rectified input instead of the input, as in the authors' code.

    Args:
        channels: of the input.
        width: channels of the output.
        stride: 2 halves the image.
        normalise: from channels to a normalisation layer.
    """

    def __init__(self, channels: int, width: int, stride: int, normalise: Normalise) -> None:
        super().__init__()
        self.norm1 = normalise(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = normalise(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = channels == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """From ``[batch, channels, h, w]`` to ``[batch, width, h/stride, w/stride]``."""
        active = F.relu(self.norm1(inputs))
        kept = inputs if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(active))))


def wide_resnet(
    input_shape: tuple[int, ...], outputs: int, depth: int, factor: int, normalise: Normalise
) -> nn.Module:
    """The network ``WRN-depth-factor``.

    Takes ``[batch, channels, height, width]`` and returns ``[batch, outputs]``.

    Args:
        input_shape: ``(channels, height, width)``.
        outputs: numbers per example.
        depth: ``6n + 4``, as checked by `parse_wide`.
        factor: how many times wider than 16, 32 and 64 channels.
        normalise: from channels to a normalisation layer.

    Raises:
        UsageError: for inputs that are not images.

    Example:
        >>> from gradsift.models.normalisation import by_batch
        >>> network = wide_resnet((3, 32, 32), 10, 10, 1, by_batch)
        >>> sum(parameter.numel() for parameter in network.parameters())
        77850
    """
    check_image(f"wrn-{depth}-{factor}", input_shape)
    blocks = (depth - 4) // 6
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)]
    channels = 16
    for group, thin in enumerate((16, 32, 64)):
        for block in range(blocks):
            stride = 2 if group > 0 and block == 0 else 1
            layers.append(WideBlock(channels, thin * factor, stride, normalise))
            channels = thin * factor
    return nn.Sequential(
        *layers,
        normalise(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, outputs),
    )
