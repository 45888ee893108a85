"""Scores made flatter before they are drawn by, as the 2017 paper's library does in three ways.

Scores of one forward pass are noisy (dropout, BatchNorm, a predictor's errors), and a score that is
far too small gives a weight that is far too large. Weights belong to the smoothed scores, so an
unbiased draw stays unbiased.

Katharopoulos & Fleuret, "Biased importance sampling for deep neural network training" (2017),
arXiv:1706.00043, and the authors' library.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from gradsift.errors import UsageError


class AbstractSmoothing(ABC):
    """A rule that flattens scores before they are drawn by; weights belong to what it returns."""

    @abstractmethod
    def smooth(self, scores: Float64[Tensor, " n"], level: float) -> Float64[Tensor, " n"]:
        """The flattened scores.

        Args:
            scores: finite and >= 0.
            level: moving average of the mean scores of earlier presamples, in their unit.
        """


@dataclass(frozen=True)
class AddConstant(AbstractSmoothing):
    """``s + a`` with a fixed ``a``, in the unit of the scores: the published additive smoothing.

    Args:
        constant: a, finite and >= 0.

    Raises:
        UsageError: for any other constant.

    Example:
        >>> import torch
        >>> AddConstant(0.5).smooth(torch.tensor([0.0, 1.0], dtype=torch.float64), 9.0).tolist()
        [0.5, 1.5]
    """

    constant: float

    def __post_init__(self) -> None:
        _check_number("AddConstant", self.constant, "a finite constant >= 0 in the scores' unit")

    def smooth(self, scores: Float64[Tensor, " n"], level: float) -> Float64[Tensor, " n"]:
        """Adds the constant."""
        del level
        return scores + self.constant


@dataclass(frozen=True)
class AddShare(AbstractSmoothing):
    """``s + share · μ`` with the moving average μ of mean scores: the published adaptive smoothing.

    μ starts at 1 with momentum 0.9, as published. Deviation: it is that of earlier presamples
    only, so that what is added does not depend on what is drawn from.

    Args:
        share: dimensionless, finite and >= 0. The authors recommend 0.5.

    Raises:
        UsageError: for any other share.

    Example:
        >>> import torch
        >>> AddShare(0.5).smooth(torch.tensor([0.0, 1.0], dtype=torch.float64), 2.0).tolist()
        [1.0, 2.0]
    """

    share: float

    def __post_init__(self) -> None:
        _check_number("AddShare", self.share, "a finite share >= 0 of the average score")

    def smooth(self, scores: Float64[Tensor, " n"], level: float) -> Float64[Tensor, " n"]:
        """Adds the share of the average."""
        return scores + self.share * level


@dataclass(frozen=True)
class TakePower(AbstractSmoothing):
    """``s^α``: the published power smoothing.

    Args:
        exponent: α, in [0, 1]; 0 is uniform.

    Raises:
        UsageError: for any other exponent.

    Example:
        >>> import torch
        >>> TakePower(0.5).smooth(torch.tensor([4.0, 9.0], dtype=torch.float64), 1.0).tolist()
        [2.0, 3.0]
    """

    exponent: float

    def __post_init__(self) -> None:
        if not 0 <= self.exponent <= 1:
            raise UsageError(
                f"TakePower received exponent {self.exponent}, expected 0 to 1: "
                "0 is uniform, 1 leaves the scores as they are"
            )

    def smooth(self, scores: Float64[Tensor, " n"], level: float) -> Float64[Tensor, " n"]:
        """Takes the power."""
        del level
        return scores**self.exponent


def _check_number(name: str, value: float, expected: str) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{name} received {value}, expected {expected}")
