"""Scores made safe to draw by: finite, positive, counted.

Whatever a model returns, a draw needs a probability above zero for every candidate. Otherwise the
weighted mean is unbiased only for quantities that vanish where the probability does.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gradsift.errors import UsageError

FLOOR = 1e-6
"""The smallest cleaned score, as a share of the mean cleaned score."""

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class CleanScores:
    """Scores that are finite, and how many of them were not.

    Attributes:
        values: float64 on the CPU, in the unit of the scores.
        quarantined: how many scores were not finite and were replaced.
    """

    values: Float64[Tensor, " n"]
    quarantined: int


def neutralise(scores: Float[Tensor, " n"]) -> CleanScores:
    """Replaces scores that are not finite by the neutral score, and counts them.

    The neutral score is the root mean square of the finite ones. With nothing known about an
    example, the best proposal is ``q ∝ sqrt(E[g²])``: the mean would draw it too rarely. Where
    nothing is finite, or everything is zero, all scores become one: a uniform draw.

    Args:
        scores: at least one score, each >= 0, on any device, of any floating type.

    Raises:
        UsageError: when there is no score, or a finite score below zero.

    Example:
        >>> import torch
        >>> neutralise(torch.tensor([3.0, torch.nan, 4.0, 0.0, 0.0])).values.tolist()
        [3.0, 2.5, 4.0, 0.0, 0.0]
    """
    values = scores.detach().to("cpu", torch.float64)
    if values.numel() == 0:
        raise UsageError("received no scores, expected at least one: pass one score per candidate")
    low, high = (float(end) for end in values.aminmax())
    if low >= 0 and 0 < high < math.inf:
        return CleanScores(values, 0)
    finite = torch.isfinite(values)
    _refuse_negative(values, finite)
    known = values[finite]
    broken = len(values) - len(known)
    largest = float(known.max()) if len(known) else 0.0
    if largest == 0.0:
        return CleanScores(torch.ones_like(values), broken)
    if broken:
        # Relative to the largest, squares of 1e300 stay finite.
        neutral = largest * float((known / largest).square().mean().sqrt())
        values = torch.where(finite, values, neutral)
    return CleanScores(values, broken)


def clean(scores: Float[Tensor, " n"]) -> CleanScores:
    """Scores that every draw can use: finite, and at least `FLOOR` of their mean.

    First `neutralise`, then the floor ``f = FLOOR · mean(max(s, f))``. A score of exactly zero is
    more often a rounding accident than a fact. The floor keeps ``E[(1/b) Σ w v] = mean(v)`` for
    **every** ``v``, bounds the weights of a proportional draw by ``1/FLOOR``, and keeps the order
    of the scores. Cleaning twice changes nothing beyond rounding.

    Args:
        scores: at least one score, each >= 0, on any device, of any floating type. Their scale
            does not matter: from 1e-300 to 1e300.

    Raises:
        UsageError: when there is no score, or a finite score below zero.

    Example:
        >>> import torch
        >>> cleaned = clean(torch.tensor([1.0, 0.0, torch.inf, 1.0, 1.0]))
        >>> [f"{value:.1e}" for value in cleaned.values.tolist()]
        ['1.0e+00', '7.7e-07', '8.7e-01', '1.0e+00', '1.0e+00']
        >>> cleaned.quarantined
        1
    """
    kept = neutralise(scores)
    smallest, largest = kept.values.aminmax()
    if smallest >= max(FLOOR * float(largest), _TINY):
        return kept
    relative = kept.values / largest
    floor = relative.new_zeros(())
    # Each round shrinks the error of the fixed point by the factor FLOOR: three reach rounding.
    for _ in range(3):
        floor = FLOOR * relative.maximum(floor).mean()
    return CleanScores(kept.values.clamp(min=max(float(floor * largest), _TINY)), kept.quarantined)


def _refuse_negative(values: Float64[Tensor, " n"], finite: Tensor) -> None:
    negative = (finite & (values < 0)).nonzero().flatten()
    if len(negative):
        first = int(negative[0])
        raise UsageError(
            f"{len(negative)} of {len(values)} scores are negative, the first at position {first} "
            f"is {float(values[first]):g}; expected scores >= 0: use a norm or a loss bounded below"
        )
