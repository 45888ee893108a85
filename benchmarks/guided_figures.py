"""The figures of ``docs/results/guided.md``, from the numbers that the studies wrote.

python benchmarks/guided_figures.py --numbers docs/results/guided --to docs/images
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from gradsift.report.figures import FAINT, PLAIN, SEVERAL, STYLE, svg
from guided_arms import DEFAULT, FIRST_DEFAULT
from guided_table import GSGD, MARGIN

Row = dict[str, Any]

RATES = {"tuned": "Learning rate tuned without delay", "scaled": "Ten times that"}
LINES = dict.fromkeys(
    ("none", GSGD, "replay 5 of 10", "gap-aware", "rate/age", FIRST_DEFAULT, DEFAULT)
)
"""The arms that the figure by delay shows."""

COLOURS = (*SEVERAL, "#0e7490")
DASHES = (0, (4, 3))


def by_delay(rows: list[Row]) -> Figure:
    """Final test loss over that of sequential SGD at the tuned rate, against the delay."""
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    found = {(row["table"], row["arm"], row["delay"], row["rate"]): row["loss"] for row in rows}
    tables = list(dict.fromkeys(row["table"] for row in rows))
    delays = sorted({row["delay"] for row in rows})
    for panel, (rate, title) in zip(panels, RATES.items(), strict=True):
        for arm, colour in zip(LINES, COLOURS, strict=False):
            heights = [
                over_tables(
                    found[name, arm, delay, rate] / found[name, "none", 0, "tuned"]
                    for name in tables
                )
                for delay in delays
            ]
            width = 2.6 if arm == DEFAULT else 1.5
            panel.plot(range(len(delays)), heights, "o-", color=colour, linewidth=width)
        panel.axhline(1, color=FAINT, linestyle=DASHES, linewidth=0.9)
        panel.set(title=title, xlabel="delay, updates", yscale="log")
        panel.set_xticks(range(len(delays)), [str(delay) for delay in delays])
        plain(panel)
    panels[0].set_ylabel("test loss over that of\nsequential SGD at the tuned rate")
    handles = [
        Line2D([], [], color=colour, marker="o") for _, colour in zip(LINES, COLOURS, strict=False)
    ]
    figure.legend(handles, list(LINES), loc="outside lower center", ncols=4)
    return figure


def over_tables(ratios: Iterable[float]) -> float:
    """A geometric mean."""
    return float(np.exp(np.mean(np.log(list(ratios)))))


def plain(panel: Axes) -> None:
    """Numbers instead of powers of ten on a logarithmic axis."""
    panel.yaxis.set_major_formatter(PLAIN)
    panel.yaxis.set_minor_formatter(NullFormatter())


def margins(found: dict[str, Any]) -> Figure:
    """The default's accuracy minus gSGD's on every table, down to its one-sided bound."""
    arms = [arm for arm in dict.fromkeys((FIRST_DEFAULT, DEFAULT)) if arm in found["margins"]]
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    panel = figure.subplots()
    for place, (arm, colour) in enumerate(zip(arms, ("#d9480f", "#2563eb"), strict=False)):
        for row, entry in enumerate(found["margins"][arm]):
            height = -row - 0.22 * place
            ends = (entry["bound"], entry["difference"])
            panel.plot(ends, (height, height), color=colour, linewidth=1.6)
            panel.plot(entry["bound"], height, "|", color=colour, markersize=9)
            panel.plot(entry["difference"], height, "o", color=colour, markersize=5)
    names = [entry["table"] for entry in found["margins"][arms[0]]]
    panel.set_yticks([-row - 0.11 for row in range(len(names))], names)
    panel.axvline(0, color=FAINT, linewidth=0.9)
    panel.axvline(-MARGIN, color=FAINT, linestyle=DASHES, linewidth=0.9)
    panel.set(title="Test accuracy against gSGD, delay 9, scaled rate")
    panel.set(xlabel="points; lines end at the one-sided 95 % bound, the margin is dashed")
    handles = [Line2D([], [], color=c, marker="o") for c in ("#d9480f", "#2563eb")]
    figure.legend(handles[: len(arms)], arms, loc="outside lower center", ncols=2)
    return figure


def sampled(rows: list[Row]) -> Figure:
    """Loss of draws by score over that of uniform draws, against the delay."""
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    for panel, (rate, title) in zip(panels, RATES.items(), strict=True):
        for place, rule in enumerate(rules):
            own = [row for row in rows if (row["rate"], row["rule"]) == (rate, rule)]
            own.sort(key=lambda row: row["delay"])
            middle = [row["ratio"] for row in own]
            errors = [
                [row["ratio"] - row["low"] for row in own],
                [row["high"] - row["ratio"] for row in own],
            ]
            spots = [spot + 0.06 * (2 * place - 1) for spot in range(len(own))]
            colour = ("#6b7280", "#2563eb")[place]
            panel.errorbar(spots, middle, yerr=errors, fmt="o-", color=colour, capsize=3)
            panel.set_xticks(range(len(own)), [str(row["delay"]) for row in own])
        panel.axhline(1, color=FAINT, linestyle=DASHES, linewidth=0.9)
        panel.set(title=title, xlabel="delay, updates")
    panels[0].set_ylabel("test loss, draws by score\nover uniform draws")
    handles = [Line2D([], [], color=c, marker="o") for c in ("#6b7280", "#2563eb")]
    figure.legend(handles, rules, loc="outside lower center", ncols=2)
    return figure


FIGURES: dict[str, tuple[str, Callable[[Any], Figure]]] = {
    "guided-delay": ("table.json", by_delay),
    "guided-margin": ("default.json", margins),
    "guided-sampled": ("sampled.json", sampled),
}


def main() -> None:
    """Draws every figure whose numbers are there."""
    parser = argparse.ArgumentParser(description="Figures of the delay studies.")
    parser.add_argument("--numbers", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--to", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    given = parser.parse_args()
    for name, (file, draw) in FIGURES.items():
        if not (given.numbers / file).exists():
            print(f"{file} is not there: {name} is left out")
            continue
        shown = json.loads((given.numbers / file).read_text(encoding="utf-8"))
        path = given.to / f"{name}.{given.format}"
        if given.format == "svg":
            path.write_text(svg(draw, shown) + "\n", encoding="utf-8")
        else:
            with mpl.rc_context(STYLE):
                draw(shown).savefig(path, dpi=110)
        print(path)


if __name__ == "__main__":
    main()
