"""The figure of a proposal's health: picks, weights, ages, and scores against exact norms."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from gradsift.report.figures import FAINT, PLAIN, SEVERAL
from gradsift.report.runs import Run, pairs


def has_health(run: Run) -> bool:
    """Whether a run drew examples, and wrote down how that went."""
    return bool(run.events("health")) and any(line.get("drawn") for line in run.of_kind("train"))


def health(runs: Sequence[Run]) -> Figure:
    """Who was picked, with which weights, by how old a score, and what the scores are worth.

    One row per run. Ages are there for runs with a table, the last panel for runs with a score.
    """
    figure = Figure(figsize=(10.4, 2.9 * len(runs)), layout="constrained")
    rows = figure.subplots(len(runs), 4, squeeze=False)
    for (picks, weights, ages, scatter), run in zip(rows, runs, strict=True):
        _picks(picks, run)
        _weights(weights, run)
        _ages(ages, run)
        _scatter(scatter, run)
        picks.set_title(f"{run.summary.recipe}: picks")
        for panel in (picks, weights, ages):
            panel.set(xlabel="step", xlim=(0, max(run.summary.steps, 1)))
            panel.xaxis.set_major_formatter(PLAIN)
            panel.locator_params(axis="x", nbins=4)
    return figure


def _picks(panel: Axes, run: Run) -> None:
    shown = {"coverage": "coverage", "entropy": "entropy", "top_share": "share of top 1 %"}
    _lines(panel, run, shown)
    panel.set(ylim=(0, 1.03))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.legend(fontsize=7.5)


def _weights(panel: Axes, run: Run) -> None:
    steps, kappa = pairs(run.of_kind("train"), "step", "kappa")
    panel.plot(steps, kappa, color=SEVERAL[2], linewidth=0.8, alpha=0.7, label="efficiency κ")
    _lines(panel, run, {"effective_sample": "effective sample"})
    panel.set(title="Weights", ylim=(0, 1.03))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    largest = pairs(run.events("health"), "step", "largest_weight")[1]
    if largest:
        panel.set_title(f"Weights, up to {max(largest):.3g}")
    panel.legend(fontsize=7.5)


def _ages(panel: Axes, run: Run) -> None:
    shown = {"age_median": "median", "age_90": "90 %", "age_largest": "oldest"}
    panel.set(title="Age of scores, in steps")
    if not _lines(panel, run, shown):
        _none(panel, "no score is kept")
        return
    panel.set(ylim=(0, None))
    panel.yaxis.set_major_formatter(PLAIN)
    panel.legend(fontsize=7.5)


def _scatter(panel: Axes, run: Run) -> None:
    found = run.event("correlation")
    panel.set(title="Score against exact norm")
    if not found:
        _none(panel, "no score is used")
        return
    kinds = [("scores", "rank", "fresh"), ("stale", "stale_rank", "in the table")]
    for place, (key, rank, label) in enumerate(kinds, start=1):
        points = _relative(found["norms"], found.get(key))
        if points is None:
            continue
        if found.get(rank) is not None:
            label += f", rank {found[rank]:.2f}"
        panel.plot(*points, ".", color=SEVERAL[place], markersize=4, alpha=0.6, label=label)
    if not panel.lines:
        _none(panel, "no positive score")
        return
    panel.axline((1, 1), (2, 2), color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
    panel.set(xlabel="norm / mean", xscale="log", yscale="log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PLAIN)
        axis.set_minor_formatter(NullFormatter())
    panel.legend(fontsize=7.5)


def _relative(
    norms: Sequence[float | None], scores: Sequence[float | None] | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Both over their means, where both are positive; None where there is nothing to show."""
    if scores is None:
        return None
    both = [(g, s) for g, s in zip(norms, scores, strict=True) if g and s and g > 0 and s > 0]
    if not both:
        return None
    values = np.array(both)
    return tuple((values / values.mean(0)).T)  # pyright: ignore[reportReturnType]


def _lines(panel: Axes, run: Run, shown: dict[str, str]) -> bool:
    """Draws some keys of the health over the steps, and says whether there was any."""
    any_known = False
    for colour, (key, label) in zip(SEVERAL[1:], shown.items(), strict=False):
        steps, values = pairs(run.events("health"), "step", key)
        if steps:
            any_known = True
            panel.plot(steps, values, color=colour, label=label)
    return any_known


def _none(panel: Axes, text: str) -> None:
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", color=FAINT)
    panel.set(xticks=[], yticks=[])
    panel.grid(visible=False)
