"""One sentence on what runs showed, and on what they did not."""

import math
from collections.abc import Sequence

from gradsift.report.numbers import quantity, seconds, share
from gradsift.report.runs import Run

SAME_SECONDS = 0.05
"""Runs whose seconds differ by less than this share count as equally long."""


def verdict(runs: Sequence[Run]) -> str:
    """A sentence or two for the head of a page.

    One run: how good it is, and why sampling is on or off. Several: the lowest test error against
    that of the first run, and how large a difference one seed can show.
    """
    return _one(runs[0]) if len(runs) == 1 else _several(runs)


def noise(first: float, second: float, examples: int) -> float:
    """Two standard errors of the difference of two error shares on ``examples`` examples each.

    ``2·sqrt((p(1 − p) + q(1 − q))/n)``, as if the two were independent. It leaves out that
    another seed would train another model, so the truth is wider.

    Example:
        >>> round(noise(0.5, 0.5, 100), 4)
        0.1414
    """
    return 2 * math.sqrt((first * (1 - first) + second * (1 - second)) / examples)


def error(run: Run, value: float) -> str:
    """An error of a run in its own unit: percent for classes, a number for a regression."""
    return quantity(value) if run.event("settings").get("task") == "regression" else share(value)


def gate_in_words(run: Run) -> str:
    """The state of the gate and its reason; a recipe without a gate says what it does."""
    gate = run.summary.gate
    if gate is not None:
        opened = gate["opened_at_step"]
        since = "" if opened is None else f", first opened at step {opened:,}"
        return f"{gate['state']}: {gate['reason']}{since}"
    return "on in every step" if run.summary.examples_scored else "never on"


def _one(run: Run) -> str:
    summary = run.summary
    return (
        f"{summary.recipe} reached a test error of {error(run, summary.test_error)} on "
        f"{summary.data} in {seconds(summary.seconds_total)} and {summary.steps:,} steps. "
        f"Sampling is {gate_in_words(run)}."
    )


def _several(runs: Sequence[Run]) -> str:
    base = runs[0]
    best = min(runs, key=lambda run: (run.summary.test_error, run.summary.test_loss))
    lowest = min(runs, key=lambda run: run.summary.train_loss)
    spent = [run.summary.seconds_total for run in runs]
    equal = max(spent) - min(spent) <= SAME_SECONDS * max(spent)
    terms = f"At equal seconds ({seconds(max(spent))} each)" if equal else "Over unequal seconds"
    return (
        f"{terms} {best.summary.recipe} has the lowest test error, "
        f"{error(best, best.summary.test_error)}{_against(best, base)}, and "
        f"{lowest.summary.recipe} the lowest training loss, "
        f"{quantity(lowest.summary.train_loss)}"
        f"{_loss_against(lowest, base)}.{_caution(best, base)}"
    )


def _against(run: Run, base: Run) -> str:
    if run is base:
        return ""
    return f" against {error(base, base.summary.test_error)} of {base.summary.recipe}"


def _loss_against(run: Run, base: Run) -> str:
    return "" if run is base else f" against {quantity(base.summary.train_loss)}"


def _caution(best: Run, base: Run) -> str:
    examples = best.event("settings").get("test_examples")
    if examples is None or best.event("settings").get("task") == "regression":
        return " One seed each: a small difference can be chance."
    within = noise(best.summary.test_error, base.summary.test_error, examples)
    return (
        f" One seed each, {examples:,} test examples: test errors closer than "
        f"{100 * within:.1f} points cannot be told apart."
    )
