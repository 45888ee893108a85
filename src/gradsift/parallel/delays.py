"""How late things are: seeded schedules of numbers that are at least 0.

One schedule serves two simulations (`gradsift.parallel.arrivals`): the age of every gradient, in
updates, or the seconds that every gradient takes to compute.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from gradsift.errors import DataError, UsageError


class AbstractDelay(ABC):
    """A distribution, or a recording, of delays."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
        """The next delays, all finite and at least 0."""


@final
@dataclass(frozen=True)
class ConstantDelay(AbstractDelay):
    """Always the same: c workers in lockstep have c − 1.

    Example:
        >>> ConstantDelay(9).draw(3, torch.Generator())
        tensor([9., 9., 9.], dtype=torch.float64)
    """

    delay: float

    def __post_init__(self) -> None:
        _check("delay", self.delay)

    def draw(self, count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
        """The constant; no random number is drawn."""
        del generator
        return torch.full((count,), float(self.delay), dtype=torch.float64)


@final
@dataclass(frozen=True)
class UniformDelay(AbstractDelay):
    """Uniform on ``[low, high]``; as an age, the whole numbers of it with equal probability.

    Example:
        >>> bool((UniformDelay(2, 4).draw(50, torch.Generator()) >= 2).all())
        True
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check("low", self.low)
        _check("high", self.high)
        if self.high < self.low:
            raise UsageError(
                f"a delay from {self.low} to {self.high} received: give the smaller number first"
            )

    def draw(self, count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
        """``low + (high − low + 1)·u``, cut to whole numbers where both ends are whole."""
        uniforms = torch.rand(count, dtype=torch.float64, generator=generator)
        if float(self.low).is_integer() and float(self.high).is_integer():
            return self.low + torch.floor(uniforms * (self.high - self.low + 1))
        return self.low + uniforms * (self.high - self.low)


@final
@dataclass(frozen=True)
class ParetoDelay(AbstractDelay):
    """Heavy-tailed: ``scale·u^(−1/shape)``, capped; few gradients are very late (stragglers).

    Args:
        shape: the tail index; below 2 the variance, and at most 1 the mean, is infinite uncapped.
        scale: the smallest delay.
        cap: the largest, because a gradient that never arrives trains nothing.

    Example:
        >>> delays = ParetoDelay(1.1, scale=2, cap=100).draw(1000, torch.Generator())
        >>> bool((delays >= 2).all() and (delays <= 100).all())
        True
    """

    shape: float
    scale: float
    cap: float

    def __post_init__(self) -> None:
        _check("scale", self.scale)
        _check("cap", self.cap)
        if not (math.isfinite(self.shape) and self.shape > 0 and self.cap >= self.scale > 0):
            raise UsageError(
                f"a Pareto delay of shape {self.shape}, scale {self.scale} and cap {self.cap} "
                "received, expected a positive shape and 0 < scale <= cap"
            )

    def draw(self, count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
        """By the inverse of the distribution function."""
        uniforms = 1.0 - torch.rand(count, dtype=torch.float64, generator=generator)
        return (self.scale * uniforms.pow(-1.0 / self.shape)).clamp(max=self.cap)


@final
class TraceDelay(AbstractDelay):
    """Measured delays in their order, from the start again when they are used up.

    Args:
        delays: as many as were measured.

    Raises:
        DataError: when there is none, or one is negative or not finite.

    Example:
        >>> trace = TraceDelay([0.0, 3.0])
        >>> trace.draw(3, torch.Generator()), trace.draw(2, torch.Generator())
        (tensor([0., 3., 0.], dtype=torch.float64), tensor([3., 0.], dtype=torch.float64))
    """

    def __init__(self, delays: list[float]) -> None:
        if not delays:
            raise DataError("a trace of delays is empty: it needs at least one number")
        for place, delay in enumerate(delays, 1):
            if not (math.isfinite(delay) and delay >= 0):
                raise DataError(f"delay {place} of the trace is {delay}, expected a number >= 0")
        self._delays = torch.tensor(delays, dtype=torch.float64)
        self._next = 0

    def draw(self, count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
        """The next of the recording; no random number is drawn."""
        del generator
        places = (self._next + torch.arange(count)) % len(self._delays)
        self._next = (self._next + count) % len(self._delays)
        return self._delays[places]


def read_trace(path: Path) -> TraceDelay:
    """The delays in a text file, one number per line.

    Raises:
        DataError: when the file cannot be read, or a line is no delay.
    """
    try:
        lines = path.read_text(encoding="utf-8").split()
        return TraceDelay([float(line) for line in lines])
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({type(error).__name__})") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r} is no trace of delays: {error}") from error


_MAKERS: Mapping[str, tuple[int, Callable[..., AbstractDelay]]] = MappingProxyType(
    {"constant": (1, ConstantDelay), "uniform": (2, UniformDelay), "pareto": (3, ParetoDelay)}
)


def parse_delay(text: str) -> AbstractDelay:
    """Reads ``constant:9``, ``uniform:0:9``, ``pareto:SHAPE:SCALE:CAP`` or ``trace:FILE``.

    Raises:
        UsageError: for anything else, and for a delay that would never end.
        DataError: for a broken trace.

    Example:
        >>> parse_delay("uniform:0:9")
        UniformDelay(low=0.0, high=9.0)
        >>> parse_delay("constant:inf")
        Traceback (most recent call last):
        gradsift.errors.UsageError: delay inf received, expected a finite number >= 0: a gradient...
    """
    kind, _, rest = text.partition(":")
    if kind == "trace" and rest:
        return read_trace(Path(rest))
    expected = "write constant:9, uniform:0:9, pareto:SHAPE:SCALE:CAP or trace:FILE"
    if kind not in _MAKERS:
        raise UsageError(f"delay {text!r} is unknown: {expected}")
    count, make = _MAKERS[kind]
    try:
        numbers = [float(word) for word in rest.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise UsageError(f"delay {text!r} received, expected {count} numbers: {expected}")
    return make(*numbers)


def _check(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(
            f"{name} {value} received, expected a finite number >= 0: a gradient that never "
            "arrives trains nothing"
        )
