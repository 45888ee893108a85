"""Parameters on their way out: rounded where asked, off the device beside the training."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16"]

PEEK = 512
"""Words that are compared first: what has changed mostly shows at once."""


def encoded(value: Tensor, precision: str) -> Tensor:
    """A tensor as it is sent: its own memory, or a rounded copy.

    "bfloat16" rounds float32 tensors of two or more dimensions: these are nearly all bytes of a
    model, while biases and the statistics of its normalisation keep their precision.

    Example:
        >>> encoded(torch.ones(2, 2), "bfloat16").dtype, encoded(torch.ones(2), "bfloat16").dtype
        (torch.bfloat16, torch.float32)
    """
    rounded = precision == "bfloat16" and value.dtype == torch.float32 and value.dim() >= 2
    return value.detach().to(torch.bfloat16) if rounded else value.detach()


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors on the CPU, of one type and shape, hold the same bits.

    Example:
        >>> nan = torch.tensor([torch.nan, 0.0])
        >>> same_bits(nan, nan.clone()), same_bits(torch.tensor(0.0), torch.tensor(-0.0))
        (True, False)
    """
    left, right = _words(first), _words(second)
    return np.array_equal(left[:PEEK], right[:PEEK]) and np.array_equal(left[PEEK:], right[PEEK:])


def bytes_of(values: Mapping[str, Tensor]) -> int:
    """Of all tensors.

    Example:
        >>> bytes_of({"weight": torch.zeros(2, 3), "steps": torch.tensor(0)})
        32
    """
    return sum(value.numel() * value.element_size() for value in values.values())


class Outbox:
    """Takes whole sets; gives them back encoded and on the CPU, once they are there.

    On the CPU that is at once, and nothing is copied that is not rounded. From a CUDA device a set
    is copied within it, behind the work that is queued there, and then to pinned memory on a stream
    of its own, so that neither the trainer nor its device waits. A set that is overtaken by the
    next one is dropped.

    Args:
        precision: of what is sent.

    Example:
        >>> outbox = Outbox()
        >>> outbox.take() is None
        True
        >>> outbox.put({"weight": torch.ones(1)}, version=3)
        >>> outbox.take()
        ({'weight': tensor([1.])}, 3)
    """

    def __init__(self, precision: str = "float32") -> None:
        self._precision = precision
        self._waiting: tuple[dict[str, Tensor], int] | None = None
        self._copied: Any = None
        self._stream: Any = None
        self._pinned: dict[str, Tensor] = {}

    def put(self, parameters: Mapping[str, Tensor], version: int) -> None:
        """Takes a set; it may change as soon as `take` has returned it, or at once on CUDA."""
        values = {name: encoded(value, self._precision) for name, value in parameters.items()}
        devices = {value.device for value in values.values() if value.device.type == "cuda"}
        self._copied = None
        if len(devices) == 1:
            values = self._leaving(values, devices.pop())
        elif any(value.device.type != "cpu" for value in values.values()):
            values = {name: value.cpu() for name, value in values.items()}
        self._waiting = (values, version)

    def take(self) -> tuple[dict[str, Tensor], int] | None:
        """The newest set and its version, once; None while there is none, or it is on its way.

        Tensors that were on the CPU are the sender's own: use them before they change.
        """
        if self._waiting is None or (self._copied is not None and not self._copied.query()):
            return None
        taken, self._waiting = self._waiting, None
        return taken

    def _leaving(self, values: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
            self._pinned = {
                name: torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                for name, value in values.items()
            }
        # Rounded tensors are copies already; of the others the optimiser owns the memory.
        copies = {name: value.clone() for name, value in values.items()}
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            for name, copy in copies.items():
                self._pinned[name].copy_(copy, non_blocking=True)
                if copy.device.type == "cuda":
                    copy.record_stream(self._stream)
            self._copied = self._stream.record_event()
        return self._pinned


class Changes:
    """Splits sets into what never changed since the first one, and what did.

    The first set is sent whole. Of later ones the tensors are sent that have ever differed from
    it: frozen ones are not sent again, and a set is the first one with these put over it.

    Example:
        >>> changes = Changes()
        >>> first, moved = changes.split({"frozen": torch.zeros(1), "weight": torch.zeros(1)})
        >>> sorted(first), moved
        (['frozen', 'weight'], {})
        >>> changes.split({"frozen": torch.zeros(1), "weight": torch.ones(1)})
        (None, {'weight': tensor([1.])})
    """

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}
        self._moving: set[str] = set()

    def split(
        self, values: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
        """Copies of what is to be sent.

        Args:
            values: a whole set on the CPU, always with the same names, shapes and types.

        Returns:
            The first set, None after the first call; and what is put over it.
        """
        if not self._first:
            self._first = {name: value.clone() for name, value in values.items()}
            return self._first, {}
        for name in self._first.keys() - self._moving:
            if not same_bits(self._first[name], values[name]):
                self._moving.add(name)
        return None, {name: value.clone() for name, value in values.items() if name in self._moving}


def _words(value: Tensor) -> np.ndarray:
    """The memory of a tensor, as long words where it has whole ones."""
    content = value.detach().contiguous().flatten().view(torch.uint8).numpy()
    return content.view(np.int64) if len(content) and len(content) % 8 == 0 else content
