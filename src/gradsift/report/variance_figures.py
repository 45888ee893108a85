"""The figures of measured variances: along the run, against the formulas, scores against norms."""

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from gradsift.report.figures import FAINT, PLAIN
from gradsift.report.variance import Against, Noise, VarianceFound

COLOURS = {
    "none": "#6b7280",
    "loss": "#d9480f",
    "output gradient": "#2563eb",
    "exact norm": "#0f766e",
}
OLD = ("#7c3aed", "#be185d", "#a16207")
"""Of stale scores, the youngest first."""

DASHES = (0, (4, 3))
DOTS = (0, (1, 1.6))


def along(found: VarianceFound) -> Figure:
    """Variance over uniform's along the run: at equal batch size, and at equal seconds."""
    figure = Figure(figsize=(10.4, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for noise in kinds(found):
        style = style_of(found, noise)
        steps, equal, low, high = _equal_size(found, noise.name)
        errors = [
            [y - below for y, below in zip(equal, low, strict=True)],
            [above - y for y, above in zip(equal, high, strict=True)],
        ]
        left.errorbar(steps, equal, yerr=errors, **style, markersize=3.5, capsize=2, linewidth=1.4)
        paid = [
            (checkpoint.step, value)
            for checkpoint in found.checkpoints
            for other in checkpoint.arms
            if other.name == noise.name
            and (value := checkpoint.at_equal_seconds(other, found.batch_size)) is not None
        ]
        if paid:
            right.plot(*zip(*paid, strict=True), **style, markersize=3.5, linewidth=1.4)
    left.set(title="Variance at equal batch size, over uniform")
    right.set(title="Variance at equal seconds, over uniform")
    for panel in (left, right):
        _finish(panel)
    names = [noise.name for noise in kinds(found)]
    lines = [Line2D([], [], **style_of(found, noise), markersize=4) for noise in kinds(found)]
    figure.legend(lines, names, loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def agreement(found: VarianceFound) -> Figure:
    """Measured variance against the formula of the draw, every arm at every checkpoint."""
    figure = Figure(figsize=(10.4, 3.3), layout="constrained")
    panel = figure.subplots()
    for checkpoint in found.checkpoints:
        unit = checkpoint.uniform / found.batch_size
        if not unit > 0:
            continue
        for noise in checkpoint.arms:
            colour = style_of(found, noise)["color"]
            panel.errorbar(
                noise.formula / unit,
                noise.measured / noise.formula if noise.formula else 1.0,
                yerr=noise.half_width / noise.formula if noise.formula else 0.0,
                color=colour,
                marker="o",
                markersize=3,
                linewidth=0.9,
                alpha=0.8,
            )
    panel.axhline(1, color=FAINT, linestyle=DASHES, linewidth=0.9)
    panel.set(title="Measured variance over its formula", xscale="log")
    panel.set(xlabel="formula, over uniform's")
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(PLAIN)
    panel.xaxis.set_minor_formatter(NullFormatter())
    return figure


def scatters(found: VarianceFound) -> Figure:
    """Scores against exact norms of the same examples at the first and the last checkpoint."""
    ends = [found.checkpoints[0], found.checkpoints[-1]][: len(found.checkpoints)]
    columns = max(len(checkpoint.against) for checkpoint in ends)
    figure = Figure(figsize=(10.4, 2.7 * len(ends)), layout="constrained")
    rows = figure.subplots(len(ends), columns, squeeze=False, sharex="row", sharey="row")
    for row, checkpoint in zip(rows, ends, strict=True):
        for panel in row[len(checkpoint.against) :]:
            panel.set_axis_off()
        for panel, against in zip(row, checkpoint.against, strict=False):
            _scatter(panel, against)
        row[0].set_ylabel(f"step {checkpoint.step:,}\nscore / mean")
    for panel in rows[-1]:
        panel.set_xlabel("norm / mean")
    return figure


def kinds(found: VarianceFound) -> list[Noise]:
    """Every arm once, as at the last checkpoint that has it, in the order of the last one."""
    arms = {noise.name: noise for checkpoint in found.checkpoints for noise in checkpoint.arms}
    last = [noise.name for noise in found.checkpoints[-1].arms]
    return [arms[name] for name in dict.fromkeys((*last, *arms))]


def style_of(found: VarianceFound, noise: Noise) -> dict[str, Any]:
    """Colour by score and age; line by where the examples come from and how they are drawn."""
    colour = COLOURS[noise.score]
    if noise.age is not None:
        ages = sorted({other.age for other in kinds(found) if other.age is not None})
        colour = OLD[ages.index(noise.age) % len(OLD)]
    replaces = noise.draw == "multinomial" and noise.source in ("pool", "table")
    line = DASHES if noise.source == "fresh" else DOTS if replaces else "-"
    marker = {"uniform": "o", "pool": "s", "table": "^", "fresh": "D"}[noise.source]
    return {"color": colour, "linestyle": line, "marker": marker}


def _equal_size(
    found: VarianceFound, name: str
) -> tuple[list[int], list[float], list[float], list[float]]:
    steps, middle, low, high = [], [], [], []
    for checkpoint in found.checkpoints:
        unit = checkpoint.uniform / found.batch_size
        for noise in checkpoint.arms:
            if noise.name == name and unit > 0:
                steps.append(checkpoint.step)
                middle.append(noise.measured / unit)
                low.append(noise.low / unit)
                high.append(noise.high / unit)
    return steps, middle, low, high


def _scatter(panel: Axes, against: Against) -> None:
    both = [(g, s) for g, s in zip(against.norms, against.scores, strict=True) if g > 0 and s > 0]
    panel.plot(*_columns(both), ".", color=COLOURS["output gradient"], markersize=3, alpha=0.5)
    panel.set(xscale="log", yscale="log")
    panel.axline((1, 1), (2, 2), color=FAINT, linewidth=0.9, linestyle=DASHES)
    panel.set_title(f"{_short(against.name)}\nrank {against.rank:.2f}", fontsize=8.5)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PLAIN)
        axis.set_minor_formatter(NullFormatter())


def _columns(rows: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    rows = list(rows)
    return [x for x, _ in rows], [y for _, y in rows]


def _short(name: str) -> str:
    return (
        name.removesuffix(", all fresh")
        .removesuffix(", stratified")
        .replace("output gradient, ", "")
    )


def _finish(panel: Axes) -> None:
    panel.axhline(1, color=FAINT, linestyle=DASHES, linewidth=0.9)
    panel.set(yscale="log", xlabel="step")
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.xaxis.set_major_formatter(PLAIN)
    panel.yaxis.set_major_formatter(PLAIN)
    panel.yaxis.set_minor_formatter(NullFormatter())
