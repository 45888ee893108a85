"""Per-example gradients of a convolution's weight, by the library's own kernel.

One convolution whose groups are the examples has a weight for each of them, and its weight gradient
is that of every example. For small weights oneDNN is faster at this than one matrix product per
kernel position; for large ones its blocks no longer fit a cache.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

MOST = 2**15
"""Numbers of one example's weight up to which groups are faster: 18,432 were, 36,864 were not."""

LANES = 8
"""Rows come in multiples of this where the library computes on whole vectors."""


def suits_groups(left: Tensor, columns: int, kernel: Sequence[int]) -> bool:
    """Whether the library's kernel is the faster one: float32 on a CPU, a small weight.

    Example:
        >>> left = torch.zeros(2, 16, 9, 9)
        >>> suits_groups(left, 8, (3, 3)), suits_groups(left, 8, (1, 1))
        (True, False)
    """
    rows, places = left.shape[1], prod(kernel)
    return (
        left.device.type == "cpu"
        and left.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and places > 1
        and rows % LANES == 0
        and rows * columns * places <= MOST
    )


def weight_gradients(
    left: Float[Tensor, "batch rows *positions"],
    image: Float[Tensor, "batch columns *pixels"],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    before: Sequence[int],
) -> Float[Tensor, "batch rows columns *kernel"]:
    """``G[o, c, k] = Σ_p left[o, p] · image[c, s·p + d·k − before]`` for every example.

    Args:
        left: the output gradient of a plain convolution.
        image: its input.
        kernel: sizes.
        stride: s.
        dilation: d.
        before: zeros in front of the image; behind it there are as many as are needed.

    Example:
        >>> left, image = torch.ones(1, 1, 2), torch.arange(4.0).view(1, 1, 4)
        >>> weight_gradients(left, image, (3,), (1,), (1,), (0,))
        tensor([[[[1., 3., 5.]]]])
    """
    batch, rows, *positions = left.shape
    columns, pixels = image.shape[1], image.shape[2:]
    each = list(zip(positions, kernel, stride, dilation, before, pixels, strict=True))
    padding = list(before)
    if any((size + 2 * p - d * (k - 1) - 1) // s + 1 != n for n, k, s, d, p, size in each):
        behind = [(n - 1) * s + (k - 1) * d + 1 - p - size for n, k, s, d, p, size in each]
        pairs = reversed(list(zip(before, behind, strict=True)))
        image = F.pad(image, [width for pair in pairs for width in pair])
        padding = [0] * len(padding)
    found = torch.ops.aten.convolution_backward(
        left.reshape(1, batch * rows, *positions),
        image.reshape(1, batch * columns, *image.shape[2:]),
        left.new_empty(batch * rows, columns, *kernel),
        None,
        list(stride),
        padding,
        list(dilation),
        False,
        [0] * len(padding),
        batch,
        [False, True, False],
    )[1]
    return found.view(batch, rows, columns, *kernel)
