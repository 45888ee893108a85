"""Scores as counts in bins, small enough for a line of measurements."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SPAN = 1e-6


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal ratio.

    Attributes:
        edges: of the bins, ascending; one more than counts. Empty without a positive score.
        counts: scores in each bin.
        below: scores under the first edge, zeros among them.
        mean: of all finite scores.
    """

    edges: list[float]
    counts: list[int]
    below: int
    mean: float


def histogram(scores: Float[Tensor, " examples"], bins: int = 24) -> Histogram:
    """Counts scores in bins of equal ratio between the smallest and the largest.

    Heavy tails are what importance sampling lives on, so the axis is logarithmic. Scores below a
    millionth of the largest share one count; scores that are not finite are left out.

    Example:
        >>> histogram(torch.tensor([0.0, 1.0, 10.0, 100.0, 100.0]), bins=2)
        Histogram(edges=[1.0, 10.0, 100.0], counts=[1, 3], below=1, mean=42.2)
    """
    values = scores.detach().cpu().double()
    values = values[torch.isfinite(values)]
    mean = float(values.mean()) if len(values) else 0.0
    positive = values[values > 0]
    if not len(positive):
        return Histogram([], [], len(values), mean)
    top = float(positive.max())
    bottom = max(float(positive.min()), top * SPAN)
    bottom = bottom if bottom < top else top / 10
    edges = torch.logspace(0, 1, bins + 1, base=top / bottom, dtype=torch.float64) * bottom
    edges[0], edges[-1] = bottom, top
    inside = values[values >= bottom]
    place = torch.bucketize(inside, edges, right=True).clamp(max=bins) - 1
    counts = torch.bincount(place, minlength=bins)
    return Histogram(edges.tolist(), counts.tolist(), len(values) - len(inside), mean)
