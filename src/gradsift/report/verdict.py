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
    spent = [run.summary.seconds_total for run in runs]
    equal = max(spent) - min(spent) <= SAME_SECONDS * max(spent)
    terms = f"At equal seconds ({seconds(max(spent))} each)" if equal else "Over unequal seconds"
    base = runs[0]
    best = min(runs, key=lambda run: run.summary.test_error)
    lowest = min(runs, key=lambda run: run.summary.train_loss)
    return f"{terms}, {_test_error(best, base)}. {_train_loss(lowest, base)}."


def _test_error(best: Run, base: Run) -> str:
    found = error(best, best.summary.test_error)
    if best is base:
        return f"no recipe has a lower test error than {base.summary.recipe}, {found}"
    return (
        f"{best.summary.recipe} has the lowest test error, {found} against "
        f"{error(base, base.summary.test_error)} of {base.summary.recipe}{_caution(best, base)}"
    )


def _train_loss(lowest: Run, base: Run) -> str:
    found = quantity(lowest.summary.train_loss)
    if lowest is base:
        return f"None has a lower training loss than {base.summary.recipe}, {found}"
    return (
        f"{lowest.summary.recipe} has the lowest training loss, {found} against "
        f"{quantity(base.summary.train_loss)} of {base.summary.recipe}"
    )


def _caution(best: Run, base: Run) -> str:
    settings = best.event("settings")
    examples = settings.get("test_examples")
    if examples is None or settings.get("task") == "regression":
        return "; one seed each, so a small difference can be chance"
    limit = noise(best.summary.test_error, base.summary.test_error, examples)
    chance = base.summary.test_error - best.summary.test_error < limit
    judged = "can be chance" if chance else "is more than chance"
    return (
        f", which {judged}: two standard errors on {examples:,} test examples are "
        f"{100 * limit:.1f} points, and there is one seed"
    )
