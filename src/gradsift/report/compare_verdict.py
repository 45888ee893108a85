"""One paragraph on what a comparison showed, and on what it cannot show."""

from collections.abc import Sequence

from gradsift.report.compare_table import estimate_in_words
from gradsift.report.compared import Compared, Estimate, Row

_WORDS = {"train_loss": "training loss", "test_error": "test error"}


def title(found: Compared) -> str:
    """The models and data sets that were compared on."""
    summaries = [run.run.summary for run in found.runs if run.run is not None]
    models = list(dict.fromkeys(summary.model for summary in summaries))
    data = list(dict.fromkeys(summary.data for summary in summaries))
    if not summaries:
        return f"{found.reference} against {len(found.rows) - 1} others"
    return f"{' and '.join(models)} on {' and '.join(data)}"


def verdict(found: Compared) -> str:
    """What differs from the reference by more than its interval, and what has to be kept in mind.

    Intervals are those of single comparisons: with many arms one of them excludes 1 by chance.
    """
    seeds = max((row.complete for row in found.rows), default=0)
    arms = [row for row in found.rows if row.arm not in (found.reference, found.again)]
    intro = f"{_count(len(arms) + 1, 'arm')} with {_count(seeds, 'seed')} each{_budget(found)}."
    if not arms:
        return intro
    if seeds < 2:
        return f"{intro} One seed has no interval: nothing can be claimed."
    parts = [intro, *(_measure(found, arms, measure) for measure in _WORDS)]
    if len(arms) > 1:
        parts.append("The intervals are 95 % each, not corrected for the number of arms.")
    if found.again is not None:
        parts.append(_again(found))
    if any(row.contended for row in found.rows) and not found.virtual:
        parts.append("Some runs shared the machine: their seconds count for no claim.")
    return " ".join(parts)


def clear(estimate: Estimate | None) -> int:
    """-1 where the whole interval is better than the reference, 1 where it is worse, else 0.

    Example:
        >>> clear(Estimate("ratio", 0.9, 0.8, 0.99, (0.9,))), clear(None)
        (-1, 0)
    """
    if estimate is None or estimate.low is None or estimate.high is None:
        return 0
    nothing = 1.0 if estimate.kind == "ratio" else 0.0
    if estimate.high < nothing:
        return -1
    return 1 if estimate.low > nothing else 0


def _measure(found: Compared, arms: Sequence[Row], measure: str) -> str:
    name = _WORDS[measure].capitalize()
    sides = []
    for side, word in ((-1, "lower"), (1, "higher")):
        those = [
            f"{row.arm} ({estimate_in_words(estimate)})"
            for row in arms
            if (estimate := row.estimates[measure]) is not None and clear(estimate) == side
        ]
        if those:
            sides.append(f"{word} than with {found.reference} for {', '.join(those)}")
    if not sides:
        return f"{name}: no arm differs from {found.reference} by more than its interval."
    return f"{name}: {'; '.join(sides)}."


def _again(found: Compared) -> str:
    row = next(row for row in found.rows if row.arm == found.again)
    estimate = row.estimates["train_loss"]
    if estimate is None:
        return f"{found.again} has no pair with {found.reference}."
    judged = "as it should be" if clear(estimate) == 0 else "so read everything with suspicion"
    around = "contains" if clear(estimate) == 0 else "does not contain"
    nothing = "1" if estimate.kind == "ratio" else "0"
    return (
        f"A/A: {found.reference} against itself has a training loss of "
        f"{estimate_in_words(estimate)}, which {around} {nothing}, {judged}."
    )


def _budget(found: Compared) -> str:
    runs = [run.run for run in found.runs if run.run is not None]
    budgets = dict.fromkeys(run.event("settings").get("budget") for run in runs)
    named = [str(budget) for budget in budgets if budget is not None]
    clock = " of counted cost" if found.virtual and named[:1] and named[0].endswith("s") else ""
    clock = "" if named[:1] and named[0].endswith("steps") else clock
    return f", budget {' or '.join(named)}{clock}" if named else ""


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
