"""The ``report.html`` of a comparison: one page that needs no network and no other file.

The tables can be sorted where scripts run, and are complete where they do not.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from gradsift.report import compare_figures as figures
from gradsift.report.compare_colours import colours
from gradsift.report.compare_style import PAGE, SORTING, STYLE
from gradsift.report.compare_table import (
    HEAD,
    NONE,
    Cell,
    error_in_words,
    legend,
    levels,
    named,
    ratio_head,
    ratios,
)
from gradsift.report.compare_verdict import title, verdict
from gradsift.report.compared import Compared, Measured
from gradsift.report.figures import svg
from gradsift.report.gallery import gallery
from gradsift.report.numbers import quantity, seconds
from gradsift.report.style import STYLE as COMMON

FILE = "report.html"

_RUNS = ("run", "steps", "train loss", "test error", "total", "CPU", "wall", "foreign CPU", "")


def write_compare_page(path: Path, found: Compared) -> Path:
    """Writes the page of a comparison, and returns its path."""
    path.write_text(compare_page(found), encoding="utf-8")
    return path


def compare_page(found: Compared) -> str:
    """The text of the page."""
    versions = next((run.run.summary.versions for run in found.runs if run.run), {})
    return PAGE.format(
        title=escape(title(found)),
        style=COMMON + STYLE,
        verdict=escape(verdict(found)),
        table=_results(found),
        notes=_notes(found),
        sections="\n".join(_sections(found)),
        arms=_arms(found),
        runs=_runs(found),
        versions=escape(", ".join(f"{name} {value}" for name, value in versions.items())),
        sorting=SORTING,
    )


def _sections(found: Compared) -> Iterable[str]:
    if figures.measured(found):
        again = (
            f" {found.again} is {found.reference} a second time with other seeds: how far it is "
            "from 1 is what chance does."
            if found.again
            else ""
        )
        yield _section(
            f"Against {found.reference}",
            svg(figures.forest, found),
            "A tick is a pair of runs with the same seed, the dot their mean, the bar its 95 % t "
            f"interval. Left of the dashed line is better.{again}",
        )
    if any(row.complete for row in found.rows):
        yield _section(
            "Over the run",
            svg(figures.curves, found),
            "Line: median over seeds; band: lowest to highest seed. Unweighted loss and error in "
            "eval mode; the training loss is that of a fixed part of the training set. Seconds "
            "count loading, drawing, scoring and training, not evaluation; examples trained leave "
            "out those that were only scored. Where arms outnumber the colours, those with the "
            "lowest training loss have one.",
        )
        yield _section(
            "Where the time went",
            svg(figures.times, found),
            "Median over seeds. Scoring includes drawing; other is the loop itself."
            + (" Counted cost, not measured time." if found.virtual else ""),
        )
    if found.picks:
        yield _gallery(found)


def _section(heading: str, drawing: str, caption: str) -> str:
    return (
        f"<section>\n<h2>{escape(heading)}</h2>\n<figure>{drawing}"
        f"<figcaption>{escape(caption)}</figcaption></figure>\n</section>"
    )


def _gallery(found: Compared) -> str:
    arms = list(found.picks)
    opened = next((arm for arm in arms if arm != found.reference), arms[0])
    parts = "\n".join(
        f"<details{' open' if arm == opened else ''}>\n<summary>{escape(arm)}</summary>\n"
        f"{gallery(picks)}\n</details>"
        for arm, picks in found.picks.items()
    )
    caption = (
        "From each arm's first seed. Scores are the norm of the loss gradient with respect to the "
        "outputs of the final model, for up to 2,000 random training examples; draws are counted "
        "for all of them. The bold number or word is the label."
    )
    return (
        f'<section>\n<h2>Which examples mattered</h2>\n<p class="note">{caption}</p>\n'
        f"{parts}\n</section>"
    )


def _results(found: Compared) -> str:
    colour = colours(found)
    names = [_name(named(found, row.arm), colour[row.arm]) for row in found.rows]
    kinds = [_kind(found, row.arm) for row in found.rows]
    first = _table(HEAD, [levels(found, row) for row in found.rows], names, kinds)
    if len(found.rows) < 2:
        return first
    second = _table(ratio_head(found), [ratios(found, row) for row in found.rows], names, kinds)
    return f"{first}\n{second}"


def _notes(found: Compared) -> str:
    warned = ("contended", "failed", "load unknown", "One seed")
    lines = [(legend(found), False), *((note, note.startswith(warned)) for note in found.notes)]
    return "\n".join(
        f'<p class="note{" warn" if warn else ""}">{escape(text)}</p>' for text, warn in lines
    )


def _arms(found: Compared) -> str:
    rows = [[Cell(arm), Cell(f"gradsift train {flags}")] for arm, flags in found.flags.items()]
    body = "\n".join(
        f"<tr><th>{escape(row[0].text)}</th><td><code>{escape(row[1].text)}</code></td></tr>"
        for row in rows
    )
    return (
        "<table><thead><tr><th>Arm</th><th>Command, without --seed and --out</th></tr></thead>"
        f"<tbody>\n{body}\n</tbody></table>"
    )


def _runs(found: Compared) -> str:
    colour = colours(found)
    names = [_name(f"{run.arm}, seed {run.seed}", colour[run.arm]) for run in found.runs]
    kinds = [_kind(found, run.arm) for run in found.runs]
    return _table(_RUNS, [_run(found, run) for run in found.runs], names, kinds)


def _run(found: Compared, measured: Measured) -> list[Cell]:
    summary = None if measured.run is None else measured.run.summary
    machine = measured.machine
    foreign = None if machine is None else machine.foreign_cpu
    contended = measured.contended and not found.virtual
    mark = "failed" if summary is None else "contended" if contended else ""
    quality = [Cell(NONE)] * 4
    if summary is not None:
        quality = [
            Cell(f"{summary.steps:,}", summary.steps),
            Cell(quantity(summary.train_loss), summary.train_loss),
            Cell(error_in_words(found, summary.test_error), summary.test_error),
            Cell(seconds(summary.seconds_total), summary.seconds_total),
        ]
    spent = [Cell(NONE)] * 2
    if machine is not None:
        both = (machine.cpu_seconds, machine.wall_seconds)
        spent = [Cell(seconds(value), value) for value in both]
    share = Cell("unknown") if foreign is None else Cell(f"{100 * foreign:.1f} %", foreign)
    return [Cell(f"{measured.arm}, seed {measured.seed}"), *quality, *spent, share, Cell(mark)]


def _table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], names: Sequence[str], kinds: Sequence[str]
) -> str:
    """A sortable table: a key is a number or, in the first column, the name; empty goes last."""
    titles = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "\n".join(
        f'<tr{kind}><th data-key="{escape(row[0].text)}">{name}</th>'
        + "".join(f'<td data-key="{_key(cell)}">{escape(cell.text)}</td>' for cell in row[1:])
        + "</tr>"
        for row, name, kind in zip(rows, names, kinds, strict=True)
    )
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{titles}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _key(cell: Cell) -> str:
    return "" if cell.key is None else f"{cell.key:.9g}"


def _name(text: str, colour: str) -> str:
    return f'<span class="swatch" style="background: {colour}"></span>{escape(text)}'


def _kind(found: Compared, arm: str) -> str:
    special = {found.reference: "reference", found.again: "again"}
    return f' class="{special[arm]}"' if arm in special else ""
