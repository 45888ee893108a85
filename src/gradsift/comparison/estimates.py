"""Paired ratios with t intervals: what a few seeds can say.

With n pairs of seeds and ``d_k = ln(arm_k/reference_k)`` the ratio is ``exp(mean d)`` and its
95 % interval ``exp(mean d ± t(0.975, n − 1)·sd(d)/√n)``. Pairing takes out what a seed does to
both arms. There is no rank test: five pairs cannot reach p < 0.05 with one.
"""

import math
import statistics
from collections.abc import Sequence

from scipy import stats

from gradsift.report.compared import MEASURES, Estimate, Measured

CONFIDENCE = 0.95

LARGEST = 700.0
"""Logarithm of the largest upper bound that is written down: two pairs can give any interval."""


def ratio(arm: Sequence[float], reference: Sequence[float]) -> Estimate:
    """Pairs of values as one ratio, or as one difference where a value is zero.

    Args:
        arm: one value per seed, not negative.
        reference: likewise, for the same seeds.

    Example:
        >>> found = ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
        >>> found.kind, round(found.value, 3), round(found.low, 3), round(found.high, 3)
        ('ratio', 0.5, 0.5, 0.5)
        >>> ratio([0.0, 0.1], [0.1, 0.1]).kind
        'difference'
    """
    both = list(zip(arm, reference, strict=True))
    if all(first > 0 and second > 0 for first, second in both):
        logs = [math.log(first / second) for first, second in both]
        half = half_width(logs)
        middle = statistics.fmean(logs)
        return Estimate(
            kind="ratio",
            value=math.exp(middle),
            low=None if half is None else math.exp(middle - half),
            high=None if half is None else math.exp(min(middle + half, LARGEST)),
            each=tuple(math.exp(log) for log in logs),
        )
    differences = [first - second for first, second in both]
    half = half_width(differences)
    middle = statistics.fmean(differences)
    return Estimate(
        kind="difference",
        value=middle,
        low=None if half is None else middle - half,
        high=None if half is None else middle + half,
        each=tuple(differences),
    )


def half_width(values: Sequence[float]) -> float | None:
    """Half of the t interval of a mean, ``t(0.975, n − 1)·sd/√n``; None for one value.

    Example:
        >>> round(half_width([1.0, 2.0, 3.0]), 3)
        2.484
    """
    count = len(values)
    if count < 2:
        return None
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return quantile * statistics.stdev(values) / math.sqrt(count)


def against(arm: Sequence[Measured], reference: Sequence[Measured]) -> dict[str, Estimate | None]:
    """Each measure of an arm against the reference, over the seeds that both completed.

    A measure for which some pair has no value (a target that was not reached) has no estimate:
    leaving such pairs out would flatter the arm.
    """
    base = {run.seed: run for run in reference if run.run is not None}
    seeds = [run for run in arm if run.run is not None and run.seed in base]
    found: dict[str, Estimate | None] = {}
    for measure in MEASURES:
        own = [value_of(run, measure) for run in seeds]
        others = [value_of(base[run.seed], measure) for run in seeds]
        known = [value for value in own if value is not None]
        targets = [value for value in others if value is not None]
        whole = len(known) == len(own) and len(targets) == len(others) and seeds
        found[measure] = ratio(known, targets) if whole else None
    return found


def value_of(measured: Measured, measure: str) -> float | None:
    """A measure of a run: a field of its summary, or the seconds to a target."""
    if measure in ("seconds_to_train_loss", "seconds_to_test_error"):
        return getattr(measured, measure)
    return None if measured.run is None else float(getattr(measured.run.summary, measure))
