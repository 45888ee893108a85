"""The figure of a run whose scores an engine searched for: ages, what they recover, its curves."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from gradsift.monitors.recovered import RecoveredShare
from gradsift.report.figures import FAINT, PLAIN, SEVERAL, logarithmic
from gradsift.report.runs import Line, Run, pairs

AGES = {"age": "median", "oldest": "oldest", "behind": "newest"}


def has_search(run: Run) -> bool:
    """Whether an engine told how old its scores were."""
    return any(line.get("age") is not None for line in run.events("engine"))


def search(runs: Sequence[Run]) -> Figure:
    """How old scores were, how much of the possible gain that left, and what workers measured.

    One row per run. Curves of data sets are drawn at the step whose parameters were measured.
    """
    figure = Figure(figsize=(10.4, 2.9 * len(runs)), layout="constrained")
    rows = figure.subplots(len(runs), 3, squeeze=False)
    for (ages, shares, curves), run in zip(rows, runs, strict=True):
        _ages(ages, run)
        _shares(shares, run)
        _curves(curves, run)
        ages.set_title(f"{run.summary.recipe}: age of scores, in steps")
        for panel in (ages, shares, curves):
            panel.set(xlabel="step", xlim=(0, max(run.summary.steps, 1)))
            panel.xaxis.set_major_formatter(PLAIN)
            panel.locator_params(axis="x", nbins=4)
    return figure


def recovered_share(run: Run) -> RecoveredShare:
    """Over all moments of a run, as a ratio of sums."""
    found = RecoveredShare()
    for line in _priced(run):
        uniform, drawn, ideal = 1.0, 1 / line["variance_ratio"], 1 / line["ideal_ratio"]
        found.add(uniform, drawn, min(uniform, ideal))
    return found


def _ages(panel: Axes, run: Run) -> None:
    for colour, (key, label) in zip(SEVERAL[1:], AGES.items(), strict=False):
        panel.plot(*pairs(run.events("engine"), "step", key), color=colour, label=label)
    panel.set(ylim=(0, None))
    panel.yaxis.set_major_formatter(PLAIN)
    panel.legend(fontsize=7.5)


def _shares(panel: Axes, run: Run) -> None:
    found = recovered_share(run)
    title = "Recovered variance"
    if found.checkpoints > 1:
        title += f": {100 * found.estimate.value:.0f} % of the possible gain"
    panel.set(title=title)
    panel.plot(*pairs(run.events("engine"), "step", "recovered"), color=SEVERAL[1])
    for level in (0, 1):
        panel.axhline(level, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
    panel.set(ylim=(-0.25, 1.05))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _curves(panel: Axes, run: Run) -> None:
    points = run.events("curve")
    names = dict.fromkeys(line["set"] for line in points)
    panel.set(title="Loss measured by workers")
    for colour, name in zip(SEVERAL[1:], names, strict=False):
        mine = [line for line in points if line["set"] == name]
        panel.plot(*pairs(mine, "version", "loss"), color=colour, label=name)
    if not points:
        where = {"transform": panel.transAxes, "ha": "center"}
        panel.text(0.5, 0.5, "no data set was evaluated", color=FAINT, **where)
        return
    logarithmic(panel)
    panel.legend(fontsize=7.5)


def _priced(run: Run) -> list[Line]:
    keys = ("variance_ratio", "ideal_ratio")
    return [line for line in run.events("engine") if all(line.get(key) for key in keys)]
