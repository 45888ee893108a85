"""How much of the possible gain a stale or approximate proposal recovers, over checkpoints."""

import math

import numpy as np
from jaxtyping import Float64

from gradsift.errors import UsageError
from gradsift.monitors.averages import Estimate
from gradsift.monitors.sampled import jackknife

SMALLEST_GAP = 0.05
"""Of the uniform trace: with less to gain a checkpoint says nothing about a proposal."""


class RecoveredShare:
    """``Σ(uniform − drawn)/Σ(uniform − ideal)`` over checkpoints, in variance units.

    One where the proposal is ideal, zero where it does as uniform draws do, below zero where it is
    worse. ``‖μ‖²`` cancels in both differences, so traces and second moments give the same. A ratio
    of sums, because a checkpoint with a small gap says little; one whose gap is below 5 % of its
    uniform trace is left out. The standard error is the jackknife's over checkpoints.

    Shares read off curves of ``sqrt(trace)``, as the drafts of 2015 show them, are smaller.

    Attributes:
        left_out: checkpoints with too small a gap, or without a finite trace.

    Example:
        >>> share = RecoveredShare()
        >>> for uniform, drawn, ideal in [(4.0, 2.5, 2.0), (2.0, 1.75, 1.5), (1.0, 0.5, 0.99)]:
        ...     share.add(uniform, drawn, ideal)
        >>> share.estimate
        Estimate(value=0.7, standard_error=0.125)
        >>> share.checkpoints, share.left_out
        (2, 1)
    """

    def __init__(self) -> None:
        self.left_out = 0
        self._rows: list[list[float]] = []

    @property
    def checkpoints(self) -> int:
        """How many count."""
        return len(self._rows)

    def add(self, uniform: float, drawn: float, ideal: float) -> None:
        """Takes the traces of one checkpoint.

        Raises:
            UsageError: for an ideal trace above the uniform one, which cannot be.
        """
        if ideal > uniform * (1 + 1e-9):
            raise UsageError(
                f"received an ideal trace {ideal:g} above the uniform one {uniform:g}, expected "
                "traces of the same gradients"
            )
        gap = uniform - ideal
        if not math.isfinite(uniform - drawn) or gap < SMALLEST_GAP * uniform or gap <= 0:
            self.left_out += 1
            return
        self._rows.append([uniform - drawn, gap])

    @property
    def estimate(self) -> Estimate:
        """The share; nan without a checkpoint that counts."""
        if not self._rows:
            return Estimate(math.nan, math.inf)
        return jackknife(np.array(self._rows, np.float64), _ratio)


def recovered(drawn: float, ideal: float) -> float:
    """The share at one moment, from ratios of second moments: uniform over drawn, over ideal.

    Args:
        drawn: R of the proposal that is drawn by.
        ideal: R of fresh norms as the proposal.

    Returns:
        ``(1 − 1/R) / (1 − 1/R_ideal)``; nan where less than 5 % of the uniform moment is to gain.

    Example:
        >>> recovered(2.0, 4.0), recovered(1.0, 1.01)
        (0.666..., nan)
    """
    gap = 1 - 1 / ideal if ideal > 0 else math.nan
    return (1 - 1 / drawn) / gap if gap >= SMALLEST_GAP and drawn > 0 else math.nan


def _ratio(means: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    return means[:, 0] / means[:, 1]
