"""The figures of a comparison: curves with bands, where the time went, paired ratios."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)
from numpy.typing import NDArray

from gradsift.report.compare_colours import REST, colours
from gradsift.report.compare_table import ESTIMATES, regression
from gradsift.report.compared import Compared, Estimate
from gradsift.report.figures import FAINT, PLAIN, logarithmic
from gradsift.report.runs import Run, pairs

POINTS = 120
PARTS = {"loading": "#a8a29e", "scoring": "#d9480f", "training": "#2563eb", "other": "#e5e7eb"}
ACROSS = {"seconds": "seconds of the budget", "step": "steps", "trained": "examples trained"}
TICKS = (
    (math.log(30), tuple(10.0**power for power in range(-300, 301))),
    (math.log(3), (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)),
    (math.log(1.5), (0.4, 0.5, 0.7, 1, 1.5, 2, 2.5)),
    (0.12, (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4)),
    (0.0, (0.9, 0.95, 1, 1.05, 1.1)),
)
"""Ticks of a ratio's axis, by the smallest distance from 1, in logarithms, that it shows."""


@dataclass(frozen=True, eq=False)
class Band:
    """Several runs of an arm on common abscissae: the median, and all of them within the band."""

    across: NDArray[np.float64]
    low: NDArray[np.float64]
    middle: NDArray[np.float64]
    high: NDArray[np.float64]


def curves(found: Compared) -> Figure:
    """Training loss and test error against seconds, steps and examples."""
    figure = Figure(figsize=(10.4, 6.4), layout="constrained")
    panels = figure.subplots(2, len(ACROSS), sharey="row", sharex="col")
    error = "Test error (mean square)" if regression(found) else "Test error"
    titles = {"train_loss": "Training loss", "test_error": error}
    for row, (key, title) in zip(panels, titles.items(), strict=True):
        for panel, across in zip(row, ACROSS, strict=True):
            _curves(panel, found, across, key)
        row[0].set_title(title)
        _decades(row[0])
    for panel, label in zip(panels[1], ACROSS.values(), strict=True):
        panel.set_xlabel(label)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(PLAIN)
    if not regression(found):
        panels[1][0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _name(figure, found)
    return figure


def times(found: Compared) -> Figure:
    """Median seconds of the budget by what they were spent on."""
    rows = [row for row in found.rows if row.complete]
    figure = Figure(figsize=(10.4, 0.9 + 0.34 * len(rows)), layout="constrained")
    panel = figure.subplots()
    for place, row in enumerate(rows):
        left = 0.0
        for part, width in split(found.of(row.arm)).items():
            panel.barh(place, width, left=left, height=0.62, color=PARTS[part])
            left += width
    panel.set_yticks(range(len(rows)), [row.arm for row in rows])
    panel.set(ylim=(len(rows) - 0.4, -0.6), xlabel="seconds of the budget")
    panel.grid(visible=False, axis="y")
    marks = [Line2D([], [], color=colour, linewidth=7) for colour in PARTS.values()]
    figure.legend(marks, list(PARTS), loc="outside upper left", ncols=4, handlelength=1.0)
    return figure


def forest(found: Compared) -> Figure:
    """Each arm against the reference: every pair, their mean and its 95 % interval."""
    panels = measured(found)
    arms = [row.arm for row in found.rows if row.arm != found.reference]
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(10.4, lines * (1.0 + 0.34 * len(arms))), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    colour = colours(found)
    for panel, (measure, kind) in zip(axes, panels, strict=False):
        estimates = {row.arm: row.estimates[measure] for row in found.rows}
        drawn = {arm: one for arm, one in estimates.items() if one and one.kind == kind}
        for arm, estimate in drawn.items():
            _estimate(panel, arms.index(arm), estimate, colour[arm])
        for arm in set(arms) - set(drawn):
            panel.text(
                0.99,
                arms.index(arm),
                "no value in every pair",
                color=FAINT,
                fontsize=8,
                va="center",
                ha="right",
                transform=panel.get_yaxis_transform(),
            )
        _scale(panel, list(drawn.values()), kind)
        sign = "over" if kind == "ratio" else "minus"
        panel.set_title(f"{ESTIMATES[measure].capitalize()}, {sign} that of {found.reference}")
        panel.set_yticks(
            range(len(arms)), [f"{arm} (A/A)" if arm == found.again else arm for arm in arms]
        )
        panel.set_ylim(len(arms) - 0.4, -0.6)
        panel.grid(visible=False, axis="y")
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    return figure


def measured(found: Compared) -> list[tuple[str, str]]:
    """The measures that some arm has an estimate of, with the kinds of the estimates."""
    return [
        (measure, kind)
        for measure in ESTIMATES
        for kind in ("ratio", "difference")
        if any(
            one is not None and one.kind == kind
            for one in (row.estimates[measure] for row in found.rows)
        )
    ]


def band(runs: Sequence[Run], across: str, key: str) -> Band | None:
    """Median, lowest and highest value of several curves, where all of them are known.

    Between two evaluations a curve is a straight line. None without a curve.
    """
    known = [curve for curve in (curve_of(run, across, key) for run in runs) if len(curve[0]) > 1]
    if not known:
        return None
    start, end = max(x[0] for x, _ in known), min(x[-1] for x, _ in known)
    grid = np.linspace(start, end, POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in known])
    return Band(grid, values.min(axis=0), np.median(values, axis=0), values.max(axis=0))


def curve_of(run: Run, across: str, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The evaluations of a run against seconds, steps, or examples trained.

    Examples are known at the steps that were logged, and proportional to steps in between.
    """
    if across != "trained":
        x, y = pairs(run.of_kind("eval"), across, key)
        return np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    x, y = pairs(run.of_kind("eval"), "step", key)
    steps, trained = pairs(run.of_kind("train"), "step", "trained")
    ends = run.summary.steps, run.summary.examples_trained
    return np.interp(x, [0, *steps, ends[0]], [0, *trained, ends[1]]), np.asarray(y, dtype=float)


def split(runs: Sequence[Run]) -> dict[str, float]:
    """Median seconds by what they were spent on; other is what is left of the total."""
    summaries = [run.summary for run in runs]
    parts = {
        name: statistics.median(getattr(summary, f"seconds_{name}") for summary in summaries)
        for name in ("loading", "scoring", "training")
    }
    total = statistics.median(summary.seconds_total for summary in summaries)
    return {**parts, "other": max(0.0, total - sum(parts.values()))}


def _decades(panel: Axes) -> None:
    """A logarithmic axis where it can be one, with ticks between the decades where they are few."""
    logarithmic(panel)
    if panel.get_yscale() == "log":
        low, high = panel.get_ylim()
        if math.log10(high / low) < 2:
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _curves(panel: Axes, found: Compared, across: str, key: str) -> None:
    for arm, colour in colours(found).items():
        shown = band(found.of(arm), across, key)
        if shown is None:
            continue
        if colour == REST:
            panel.plot(shown.across, shown.middle, color=REST, linewidth=0.9, zorder=1.5)
            continue
        dashes = (0, (4, 2)) if arm == found.again else "-"
        panel.fill_between(
            shown.across, shown.low, shown.high, color=colour, alpha=0.13, linewidth=0
        )
        panel.plot(shown.across, shown.middle, color=colour, linestyle=dashes)


def _estimate(panel: Axes, place: int, estimate: Estimate, colour: str) -> None:
    panel.plot(
        estimate.each, [place] * len(estimate.each), "|", color=colour, alpha=0.6, markersize=9
    )
    if estimate.low is not None and estimate.high is not None:
        panel.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=2.2)
    panel.plot(estimate.value, place, "o", color=colour, markersize=6)


def _scale(panel: Axes, estimates: Sequence[Estimate], kind: str) -> None:
    """Everything in sight, but no interval of two pairs that hides the others."""
    each = [value for estimate in estimates for value in (*estimate.each, estimate.value)]
    bounds = [bound for one in estimates for bound in (one.low, one.high) if bound is not None]
    nothing = 1.0 if kind == "ratio" else 0.0
    panel.axvline(nothing, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
    if kind == "difference":
        reach = 1.1 * max(abs(value) for value in [*each, 0.001])
        reach = max(reach, min(1.1 * max(map(abs, [*bounds, 0.0])), 3 * reach))
        panel.set_xlim(-reach, reach)
        return
    logs = [abs(math.log(value)) for value in each]
    reach = max(0.05, 1.15 * max(logs))
    wide = [abs(math.log(bound)) for bound in bounds if bound > 0]
    reach = max(reach, min(1.1 * max([*wide, 0.0]), 3 * reach))
    panel.set_xscale("log")
    panel.set_xlim(math.exp(-reach), math.exp(reach))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())
    ticks = next(ticks for least, ticks in TICKS if reach >= least)
    inside = [tick for tick in ticks if abs(math.log(tick)) <= reach]
    panel.xaxis.set_major_locator(FixedLocator(inside[:: 1 + len(inside) // 8]))
    panel.xaxis.set_major_formatter(PLAIN)


def _name(figure: Figure, found: Compared) -> None:
    colour = colours(found)
    names = {arm: one for arm, one in colour.items() if one != REST}
    if rest := len(colour) - len(names):
        names[f"{rest} others"] = REST
    lines = [Line2D([], [], color=one, linewidth=2.4) for one in names.values()]
    for name, line in zip(names, lines, strict=True):
        line.set_linestyle((0, (3, 1.5)) if name == found.again else "-")
    figure.legend(lines, list(names), loc="outside upper left", ncols=5, handlelength=1.6)
