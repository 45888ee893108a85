"""Data sets over tensors, which fetch a whole batch at once, and the problems that they pose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from gradsift.data.problem import Problem, Task, pose

STATISTICS_CHUNK = 1024
"""Images that are looked at together."""


class Rows(Dataset[Any]):
    """Rows of numbers with their targets, ``(inputs[i], targets[i])``.

    ``__getitems__`` is what PyTorch's loader asks for a batch: one indexing operation instead of
    one per example.

    Args:
        inputs: ``[examples, …]``.
        targets: int64 classes ``[examples]``, or float32 ``[examples]`` or ``[examples, outputs]``.

    Example:
        >>> data = Rows(torch.eye(3), torch.tensor([0, 1, 0]))
        >>> data[1], data.__getitems__([2, 0])
        ((tensor([0., 1., 0.]), 1), [(tensor([0., 0., 1.]), 0), (tensor([1., 0., 0.]), 0)])
    """

    def __init__(self, inputs: Shaped[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]) -> None:
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Any]]:
        """The examples of a batch, in the order of ``indices``."""
        chosen = torch.as_tensor(indices)
        targets = self.targets[chosen]
        # Whole numbers collate to int64 faster than tensors do; floats would become float64.
        listed = targets.unbind() if targets.is_floating_point() else targets.tolist()
        return list(zip(self.fetch(chosen).unbind(), listed, strict=True))

    def fetch(self, chosen: Tensor) -> Tensor:
        """The inputs at some positions, as the model takes them."""
        return self.inputs[chosen]


@dataclass(frozen=True, eq=False)
class Standard:
    """Mean and standard deviation, one pair per channel or column; a constant one counts as 1."""

    mean: Float[Tensor, " channels"]
    deviation: Float[Tensor, " channels"]

    @classmethod
    def of_images(cls, images: UInt8[Tensor, "n channels height width"]) -> "Standard":
        """Of all the pixels of each channel, on the scale of 0 to 1; summed in float64.

        Example:
            >>> images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
            >>> Standard.of_images(images)
            Standard(mean=tensor([0.5000]), deviation=tensor([0.5000]))
        """
        channels = images.shape[1]
        total, square = np.zeros(channels), np.zeros(channels)
        for part in images.split(STATISTICS_CHUNK):
            pixels = part.transpose(0, 1).flatten(start_dim=1).double() / 255
            total += pixels.sum(dim=1).numpy()
            square += pixels.square().sum(dim=1).numpy()
        count = images.numel() / channels
        mean = total / count
        return cls.of(mean, np.sqrt(np.maximum(square / count - mean**2, 0)))

    @classmethod
    def of(cls, mean: Any, deviation: Any) -> "Standard":
        """From float64 arrays; a deviation that rounding could have made counts as none."""
        constant = deviation <= 1e-9 * np.maximum(np.abs(mean), 1e-30)
        spread = np.where(constant, 1.0, deviation)
        return cls(*(torch.tensor(part, dtype=torch.float32) for part in (mean, spread)))


class Images(Rows):
    """Images that are kept as bytes, and become float32 when they are fetched.

    A pixel p of channel c becomes ``(p/255 − mean_c)/deviation_c``.

    Args:
        images: ``[examples, channels, height, width]``.
        targets: as of `Rows`.
        standard: mean and deviation of the training images, channel by channel.

    Example:
        >>> images = torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)
        >>> images[0] = 0
        >>> data = Images(images, torch.tensor([0, 1]), Standard.of_images(images))
        >>> data[0][0].flatten(), data[1][0].flatten()
        (tensor([-1., -1., -1., -1.]), tensor([1., 1., 1., 1.]))
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n channels height width"],
        targets: Shaped[Tensor, "n ..."],
        standard: Standard,
    ) -> None:
        super().__init__(images, targets)
        self._scale = (1 / (255 * standard.deviation))[:, None, None]
        self._shift = (standard.mean / standard.deviation)[:, None, None]

    def fetch(self, chosen: Tensor) -> Tensor:
        """Float32 images."""
        return self.inputs[chosen].float().mul_(self._scale).sub_(self._shift)


def pose_images(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    outputs: int,
    task: Task = "classification",
) -> Problem:
    """The problem of uint8 images ``[n, channels, height, width]`` with their targets."""
    standard = Standard.of_images(train[0])
    shape = tuple(train[0].shape[1:])
    return pose(name, Images(*train, standard), Images(*test, standard), shape, outputs, task)
