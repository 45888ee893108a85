"""A grid of proposals, and what one batch says about each of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.sampling.distributions import Mixed, Power


@dataclass(frozen=True)
class Proposal:
    """``q = (1 − λ) s^a/mean(s^a) + λ``: probability ``p = q/N``, weight ``1/q``, at most ``1/λ``.

    Args:
        exponent: ``a``, finite and >= 0, dimensionless.
        uniform: the share ``λ`` of uniform draws, in (0, 1].

    Raises:
        UsageError: for numbers out of range.

    Example:
        >>> proposal = Proposal(exponent=0.5, uniform=0.2)
        >>> proposal.bound, proposal.distribution
        (5.0, Mixed(inner=Power(exponent=0.5), uniform=0.2))
    """

    exponent: float
    uniform: float

    def __post_init__(self) -> None:
        _ = self.distribution

    @property
    def bound(self) -> float:
        """The largest weight there can be: ``1/λ``."""
        return 1 / self.uniform

    @property
    def distribution(self) -> Mixed:
        """The same as a distribution."""
        return Mixed(Power(self.exponent), uniform=self.uniform)


@dataclass(frozen=True, eq=False)
class BatchPrices:
    """Unbiased second moments from one batch, in the unit of the squared scores.

    Attributes:
        uniform: ``A = E[w g²]``.
        drawn: ``D = E[w² g²]``.
        mean: ``E[w g]``, in the unit of the scores.
        proposals: ``D_c = E[w w'_c g²]`` for every candidate ``c``.
        quarantined: how many fresh scores were not finite.
    """

    uniform: float
    drawn: float
    mean: float
    proposals: Float64[np.ndarray, " candidates"]
    quarantined: int


class ProposalGrid:
    """Every exponent with every share of uniform draws.

    Args:
        exponents: rising.
        uniforms: rising, in (0, 1].

    Attributes:
        proposals: all of them, flattest first.

    Raises:
        UsageError: for an axis that is empty or not rising, or numbers out of range.

    Example:
        >>> grid = ProposalGrid((0.5, 1.0), (0.2, 1.0))
        >>> [(proposal.uniform, proposal.exponent) for proposal in grid.proposals]
        [(1.0, 0.5), (1.0, 1.0), (0.2, 0.5), (0.2, 1.0)]
    """

    def __init__(self, exponents: Sequence[float], uniforms: Sequence[float]) -> None:
        for name, axis in (("exponents", exponents), ("uniforms", uniforms)):
            if not axis or list(axis) != sorted(set(axis)):
                raise UsageError(f"received {name} {axis}, expected at least one number, rising")
        self.proposals = tuple(Proposal(a, u) for u in reversed(uniforms) for a in exponents)
        self._places = {proposal: place for place, proposal in enumerate(self.proposals)}
        self._exponents = np.array(exponents, np.float64)[:, None]
        self._uniforms = np.array(uniforms[::-1], np.float64)[:, None, None]
        self._sharpness = 1 - self._uniforms

    def __len__(self) -> int:
        return len(self.proposals)

    def place(self, proposal: Proposal) -> int:
        """The proposal's number in `proposals`.

        Raises:
            UsageError: for one that is not there.
        """
        if proposal not in self._places:
            raise UsageError(f"received {proposal}, expected one of the grid: {self.proposals}")
        return self._places[proposal]

    def near(self, proposal: Proposal, steps: int) -> Bool[np.ndarray, " candidates"]:
        """Which proposals are at most ``steps`` grid steps away on each axis."""
        row, column = divmod(self.place(proposal), len(self._exponents))
        rows, columns = np.divmod(np.arange(len(self)), len(self._exponents))
        return (abs(rows - row) <= steps) & (abs(columns - column) <= steps)

    def price(
        self,
        fresh: Float[Tensor, " drawn"],
        stale: Float[Tensor, " drawn"],
        weights: Float[Tensor, " drawn"],
        size: int,
        mean_powers: Sequence[float],
    ) -> BatchPrices:
        """The second moments of one batch.

        Args:
            fresh: ``g``, the scores that the training step computed. One that is not finite
                counts as ``sqrt(Σ w g²/Σ w)`` of the others; with no other, everything is nan.
            stale: ``s``, the relative scores that the table held for these examples when they
                were drawn.
            weights: ``w``, those that they were drawn with; ones for the user's own order.
            size: the nominal size of the draw, which divides the sums.
            mean_powers: ``mean(s^a)`` over the whole table, for each exponent of the grid; where
                it is zero, that power is uniform.

        Raises:
            UsageError: for shapes that do not fit.
        """
        if not fresh.shape == stale.shape == weights.shape or size < 1:
            raise UsageError(
                f"received {len(fresh)} fresh scores, {len(stale)} stale ones, {len(weights)} "
                f"weights and size {size}, expected as many of each and a nominal size of 1 or more"
            )
        if len(mean_powers) != len(self._exponents):
            raise UsageError(
                f"received {len(mean_powers)} mean powers, expected {len(self._exponents)}: one "
                "for each exponent of the grid"
            )
        g, s, w = (_numbers(values) for values in (fresh, stale, weights))
        with np.errstate(over="ignore", invalid="ignore"):
            weighted, quarantined = w * g, 0
            mean = float(weighted.sum()) / size
            if not math.isfinite(mean):
                g, quarantined = _neutral(g, w)
                weighted = w * g
                mean = float(weighted.sum()) / size
            squares = weighted * g / size
            return BatchPrices(
                uniform=float(squares.sum()),
                drawn=float(weighted @ weighted) / size,
                mean=mean,
                proposals=self._weights(s, mean_powers) @ squares,
                quarantined=quarantined,
            )

    def _weights(
        self, stale: Float64[np.ndarray, " drawn"], mean_powers: Sequence[float]
    ) -> Float64[np.ndarray, "candidates drawn"]:
        """``1/q`` of every candidate for every example."""
        powers = stale**self._exponents
        means = np.array(mean_powers, np.float64)[:, None]
        if min(mean_powers) > 0:
            powers /= means
        else:
            powers = np.where(means > 0, powers / np.where(means > 0, means, 1.0), 1.0)
        q = self._sharpness * powers
        q += self._uniforms
        return np.reciprocal(q, out=q).reshape(len(self), len(stale))


def _numbers(values: Tensor) -> Float64[np.ndarray, " drawn"]:
    values = values.detach().cpu()
    if values.dtype is torch.bfloat16:  # NumPy has none
        values = values.float()
    return values.numpy().astype(np.float64, copy=False)


def _neutral(
    fresh: Float64[np.ndarray, " drawn"], weights: Float64[np.ndarray, " drawn"]
) -> tuple[Float64[np.ndarray, " drawn"], int]:
    """Fresh scores with the neutral score where they are not finite, and how many were not."""
    finite = np.isfinite(fresh)
    known, shares = fresh[finite], weights[finite]
    broken = len(fresh) - len(known)
    if broken == 0 or not shares.sum() > 0:
        return fresh, broken
    neutral = math.sqrt((shares @ known**2) / shares.sum())
    return np.where(finite, fresh, neutral), broken
