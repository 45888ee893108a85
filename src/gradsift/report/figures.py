"""The figures of a report, drawn without any global state of the plotting library.

Each function returns a `Figure`; `svg` turns it into text that a page can hold.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from gradsift.report.runs import Run, pairs

Shown = TypeVar("Shown")

PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)

INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
ONE = ("#2563eb",)
SEVERAL = ("#6b7280", "#2563eb", "#d9480f", "#0f766e", "#7c3aed", "#be185d", "#a16207")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "svg.fonttype": "none",
}


def svg(draw: Callable[[Shown], Figure], shown: Shown) -> str:
    """A figure as one ``<svg>`` element; the same content gives the same text."""
    text = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": draw.__name__}):
        draw(shown).savefig(text, format="svg", metadata={"Date": None})
    drawing = text.getvalue()
    return _METADATA.sub("", drawing[drawing.index("<svg") :])


def curves(runs: Sequence[Run]) -> Figure:
    """Training loss, test loss and test error against the seconds of the budget."""
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    labels = (
        ("train_loss", "Training loss"),
        ("test_loss", "Test loss"),
        ("test_error", _error(runs)),
    )
    for panel, (key, title) in zip(panels, labels, strict=True):
        for run, colour in zip(runs, colours(runs), strict=True):
            panel.plot(*pairs(run.of_kind("eval"), "seconds", key), color=colour)
        panel.set(title=title, xlabel="seconds of training")
        logarithmic(panel)
    if not _regression(runs):
        panels[2].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _name(figure, runs)
    return figure


def gate(runs: Sequence[Run]) -> Figure:
    """The average τ that each gate watches, and below it the steps in which sampling was on.

    A dot marks where a gate opened, a ring where it shut again.
    """
    figure = Figure(figsize=(10.4, 3.1 + 0.22 * len(runs)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 0.3 + 0.22 * len(runs)])
    for place, (run, colour) in enumerate(zip(runs, colours(runs), strict=True)):
        above.plot(*pairs(run.of_kind("train"), "step", "tau"), color=colour)
        for line in run.of_kind("gate")[1:]:
            if "tau" not in line:
                continue
            inside = colour if line["state"] == "on" else "white"
            above.plot(line["step"], line["tau"], "o", color=colour, markerfacecolor=inside)
        for start, width in sampled(run):
            below.barh(place, width, left=start, height=0.62, color=colour)
    above.set(title="How unequal the scores are", ylabel="τ (moving average)")
    below.set_title("Steps that drew by score")
    below.set(xlabel="step", ylim=(len(runs) - 0.4, -0.6), xlim=(0, _last_step(runs)))
    below.set_yticks(range(len(runs)), [run.summary.recipe for run in runs])
    below.grid(visible=False, axis="y")
    below.xaxis.set_major_formatter(PLAIN)
    _name(figure, runs)
    return figure


def scores(runs: Sequence[Run]) -> Figure:
    """The last scores that each run saw, over their mean."""
    figure = Figure(figsize=(10.4, 2.9), layout="constrained")
    panel = figure.subplots()
    for run, colour in zip(runs, colours(runs), strict=True):
        found = run.event("scores")
        if found.get("edges"):
            total = sum(found["counts"]) + found["below"]
            edges = [edge / found["mean"] for edge in found["edges"]]
            heights = [count / total for count in found["counts"]]
            panel.stairs(heights, edges, color=colour, fill=True, alpha=0.18)
            panel.stairs(heights, edges, color=colour, linewidth=1.5)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(PLAIN)
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.axvline(1.0, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
    panel.set(title="Scores at the end", xlabel="score / mean score", ylabel="share of examples")
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _name(figure, runs)
    return figure


def sampled(run: Run) -> list[tuple[float, float]]:
    """Stretches of steps that drew by score, as (steps before it, number of steps).

    Steps count from one. The lines of a run are thinned, so each speaks for the steps up to the
    next line.
    """
    lines = [line for line in run.of_kind("train") if line.get("drawn") is not None]
    edges = [*(line["step"] - 1 for line in lines), run.summary.steps]
    stretches: list[tuple[float, float]] = []
    for line, start, end in zip(lines, edges, edges[1:], strict=False):
        if not line["drawn"]:
            continue
        begun = start
        if stretches and sum(stretches[-1]) == start:
            begun = stretches.pop()[0]
        stretches.append((begun, end - begun))
    return stretches


def colours(runs: Sequence[Run]) -> list[str]:
    """One colour per run: grey for the first of several, to which the others are compared."""
    palette = ONE if len(runs) == 1 else SEVERAL
    return [palette[place % len(palette)] for place in range(len(runs))]


def _name(figure: Figure, runs: Sequence[Run]) -> None:
    """One line of names above the panels, in the colours of their curves."""
    if len(runs) < 2:
        return
    lines = [Line2D([], [], color=colour, linewidth=2.4) for colour in colours(runs)]
    figure.legend(
        lines,
        [run.summary.recipe for run in runs],
        loc="outside upper left",
        ncols=len(runs),
        handlelength=1.4,
        borderaxespad=0.9,
    )


def logarithmic(panel: Axes) -> None:
    """A logarithmic vertical axis where every line allows one."""
    values = [np.asarray(line.get_ydata(), dtype=float) for line in panel.lines]
    if values and all((drawn > 0).all() for drawn in values):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(PLAIN)
        panel.yaxis.set_minor_formatter(NullFormatter())


def _regression(runs: Sequence[Run]) -> bool:
    return runs[0].event("settings").get("task") == "regression"


def _error(runs: Sequence[Run]) -> str:
    return "Test error (mean square)" if _regression(runs) else "Test error"


def _last_step(runs: Sequence[Run]) -> int:
    return max(1, *(run.summary.steps for run in runs))
