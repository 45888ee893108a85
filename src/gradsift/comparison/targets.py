"""When a run was as good as the reference at its end."""

import math
from collections.abc import Sequence
from dataclasses import replace

from gradsift.report.compared import Measured
from gradsift.report.runs import Run, pairs


def first_reached(times: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """The first moment at which a falling curve is at or below a target.

    Between two evaluations the curve is a straight line in the logarithm of the value (in the
    value itself where one of them is zero): ``t = t_0 + (t_1 − t_0)·ln(y_0/y)/ln(y_0/y_1)``.

    Args:
        times: of the evaluations, ascending, in seconds.
        values: at these times, not negative.
        target: y.

    Returns:
        Seconds; None where no evaluation is at or below the target.

    Example:
        >>> round(first_reached([0, 10], [1.0, 0.01], 0.1), 6)
        5.0
        >>> first_reached([0, 10], [1.0, 0.5], 0.1)
    """
    for place, value in enumerate(values):
        if value > target:
            continue
        if place == 0:
            return float(times[0])
        return _between(times[place - 1 : place + 1], values[place - 1 : place + 1], target)
    return None


def with_targets(runs: Sequence[Measured], reference: str) -> list[Measured]:
    """The same runs, with the seconds to what the reference reached with the same seed.

    The targets are the last evaluation of the reference: its training loss on the fixed part of
    the training set that every run of a seed is followed on, and its test error. A run without a
    reference of its seed has no target.
    """
    targets = {
        measured.seed: measured.run
        for measured in runs
        if measured.arm == reference and measured.run is not None
    }
    return [_with_target(measured, targets.get(measured.seed)) for measured in runs]


def _with_target(measured: Measured, reference: Run | None) -> Measured:
    if measured.run is None or reference is None:
        return measured
    return replace(
        measured,
        seconds_to_train_loss=_seconds_to(measured.run, reference, "train_loss"),
        seconds_to_test_error=_seconds_to(measured.run, reference, "test_error"),
    )


def _seconds_to(run: Run, reference: Run, key: str) -> float | None:
    _, goals = pairs(reference.of_kind("eval"), "seconds", key)
    return first_reached(*pairs(run.of_kind("eval"), "seconds", key), goals[-1]) if goals else None


def _between(times: Sequence[float], values: Sequence[float], target: float) -> float:
    (start, end), (above, below) = times, values
    if below > 0:
        share = math.log(above / target) / math.log(above / below)
    else:
        share = (above - target) / (above - below)
    return start + (end - start) * share
