"""Weights changed after the draw, for less variance at the price of a stated bias."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from gradsift.errors import UsageError


class AbstractCorrection(ABC):
    """A rule that changes the weights of a draw.

    Attributes:
        biased: whether the expectation of the estimator moves.
    """

    biased: ClassVar[bool]

    @abstractmethod
    def apply(self, weights: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """The corrected weights, in the same order."""


@dataclass(frozen=True)
class Clip(AbstractCorrection):
    """``w -> min(w, limit)``. **Biased**: examples with small probabilities count too little.

    Exactly, for every example ``i`` of a draw with replacement with probabilities ``p``:
    ``E[Σ_j 1{i_j = i} w_j] = (b/N) · min(1, limit · N · p_i)``, where the unbiased value is
    ``b/N``. Without replacement ``N p_i`` becomes ``N π_i / b``. So examples with weights up to
    the limit count fully, and the others are shrunk by ``limit / w_i``. A floor in the
    distribution (`Mixed`) bounds the weights too, without bias. Ionides, "Truncated importance
    sampling" (2008).

    Args:
        limit: the largest weight, dimensionless, > 0. Infinity clips nothing.

    Raises:
        UsageError: when the limit is not above zero.

    Example:
        >>> import torch
        >>> Clip(2.0).apply(torch.tensor([0.5, 8.0], dtype=torch.float64)).tolist()
        [0.5, 2.0]
    """

    biased: ClassVar[bool] = True

    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise UsageError(
                f"Clip received limit {self.limit}, expected a weight above 0: "
                "weights have mean 1, so a useful limit is well above 1"
            )

    def apply(self, weights: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """The smaller of each weight and the limit."""
        return weights.clamp(max=self.limit)


@dataclass(frozen=True)
class Unweighted(AbstractCorrection):
    """``w -> 1``: what is drawn counts as it comes. **Biased** towards what is drawn often.

    For every example ``i``: ``E[Σ_j 1{i_j = i} w_j] = b p_i`` with replacement, ``π_i`` without,
    where the unbiased value is ``b/N``: the objective becomes ``Σ p_i ℓ_i`` with the probabilities
    of the moment. Published methods that select examples and forget the weights are this.

    Example:
        >>> import torch
        >>> Unweighted().apply(torch.tensor([0.5, 8.0], dtype=torch.float64)).tolist()
        [1.0, 1.0]
    """

    biased: ClassVar[bool] = True

    def apply(self, weights: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Ones."""
        return weights.new_ones(len(weights))
