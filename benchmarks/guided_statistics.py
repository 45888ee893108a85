"""The statistics of the delay studies: paired ratios, one-sided bounds, Holm, shares of a gap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05
DRAWS = 4000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of paired ratios, with its 95 % t interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    chance: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired(ours: np.ndarray, theirs: np.ndarray) -> Ratio:
    """The t-test of the mean log ratio, over paired splits."""
    return pooled([ours], [theirs])


def pooled(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> Ratio:
    """The mean over tables of mean log ratios; tables are fixed, splits of each are a sample.

    The standard error adds those of the tables in squares; degrees of freedom by Satterthwaite.
    """
    logs = [np.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean = float(np.mean([each.mean() for each in logs]))
    squares = np.array([each.var(ddof=1) / len(each) for each in logs]) / len(logs) ** 2
    error = float(np.sqrt(squares.sum()))
    below = sum(s**2 / (len(each) - 1) for s, each in zip(squares, logs, strict=True))
    degrees = float(squares.sum() ** 2 / below)
    reach = stats.t.ppf(1 - LEVEL / 2, degrees) * error
    chance = float(2 * stats.t.sf(abs(mean / error), degrees))
    low, middle, high = (float(np.exp(mean + step * reach)) for step in (-1, 0, 1))
    return Ratio(middle, low, high, chance)


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given."""
    order = np.argsort(values)
    adjusted = np.empty(len(values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted.tolist()


def lower(differences: np.ndarray) -> float:
    """The one-sided 95 % bound of a mean from below."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() - stats.t.ppf(1 - LEVEL, len(differences) - 1) * error)


@dataclass(frozen=True)
class Share:
    """The share of a gap that is closed: a ratio of sums over tables, with a bootstrap interval.

    Attributes:
        whole: the ratio.
        low: 2.5 % of the bootstrap over splits.
        high: 97.5 % of it.
        each: by table.
    """

    whole: float
    low: float
    high: float
    each: tuple[float, ...]

    def __str__(self) -> str:
        if not -100 < self.whole < 100:
            return "diverged"
        each = ", ".join(f"{share:.2f}" for share in self.each)
        return f"{self.whole:.3f} [{self.low:.3f}, {self.high:.3f}] ({each})"


def share_of_gap(
    late: Sequence[np.ndarray], ours: Sequence[np.ndarray], fresh: Sequence[np.ndarray]
) -> Share | None:
    """``Σ (late − ours) / Σ (late − fresh)`` over tables whose gap is surely above zero.

    Args:
        late: losses by split under delay, a list by table.
        ours: under the same delay, with what should help.
        fresh: without delay.

    Returns:
        None when no table has a gap.
    """
    gaps, gains = [], []
    for worst, arm, best in zip(late, ours, fresh, strict=True):
        if lower(worst - best) > 0:
            gaps.append(worst - best)
            gains.append(worst - arm)
    if not gaps:
        return None
    generator = np.random.default_rng(0)
    gained, whole = np.zeros(DRAWS), np.zeros(DRAWS)
    for gain, gap in zip(gains, gaps, strict=True):
        chosen = generator.integers(len(gap), size=(DRAWS, len(gap)))
        gained += gain[chosen].mean(1)
        whole += gap[chosen].mean(1)
    low, high = np.quantile(gained / whole, [LEVEL / 2, 1 - LEVEL / 2])
    sums = [(float(gain.mean()), float(gap.mean())) for gain, gap in zip(gains, gaps, strict=True)]
    each = tuple(gain / gap for gain, gap in sums)
    share = sum(gain for gain, _ in sums) / sum(gap for _, gap in sums)
    return Share(share, float(low), float(high), each)
