"""``suspects.html``: the most suspicious examples of a run, to look at, on a page of its own."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gradsift.monitors.history import History
from gradsift.report.compare_style import STYLE as PICKS
from gradsift.report.figures import ONE, PLAIN, logarithmic, svg
from gradsift.report.gallery import png
from gradsift.report.numbers import quantity, share
from gradsift.report.style import STYLE
from gradsift.report.summary import write_whole
from gradsift.report.suspects import HEAD, Judged, Suspect, cells, suspect

FILE = "suspects.html"

POINTS = 400
"""Of the curve, at even distances."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gradsift: suspects of {title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<p class="brand">gradsift suspects</p>
<h1>{title}</h1>
<p class="verdict">{verdict}</p>
</header>
{sections}
</main>
</body>
</html>"""


def write_suspects_page(
    path: Path, title: str, history: History, found: Sequence[Suspect], judged: Judged | None
) -> Path:
    """Writes the page whole or not at all, and returns its path.

    Args:
        path: of the page.
        title: of the run.
        history: of the run.
        found: the examples of the table.
        judged: by cleanlab; None where it was not asked.
    """
    sections = [*_gallery(history, judged), _curve(history), _table(found)]
    page = _PAGE.format(
        title=escape(title),
        style=STYLE + PICKS,
        verdict=escape(verdict(history, judged)),
        sections="\n".join(sections),
    )
    return write_whole(path, page)


def verdict(history: History, judged: Judged | None) -> str:
    """What the list is, and how long cleanlab would make it.

    Example:
        >>> losses, ones = np.array([0.5, 4.0], np.float32), np.ones(2, np.int32)
        >>> verdict(History(ones, losses, losses, ones, ones), None)
        '2 examples, in 1.0 steps each on average, by falling mean loss over that of all...'
    """
    visited = history.visits > 0
    mean = float(history.visits[visited].mean())
    text = (
        f"{int(visited.sum()):,} examples, in {mean:.1f} steps each on average, by falling mean "
        "loss over that of all at the time."
    )
    if judged is None:
        return text
    count = int(judged.issue.sum())
    part = share(count / max(int(judged.asked.sum()), 1))
    return f"{text} cleanlab takes {count:,} labels for wrong ({part})."


def ranked(history: History) -> Figure:
    """Mean relative loss over the place in the list: a step or a knee says where to stop."""
    losses = history.mean[history.suspects()]
    figure = Figure(figsize=(10.4, 2.9), layout="constrained")
    panel = figure.subplots()
    places = np.unique(np.linspace(0, len(losses) - 1, POINTS).round().astype(int))
    panel.plot(places + 1, losses[places], color=ONE[0])
    logarithmic(panel)
    panel.set(
        title="Mean relative loss by place in the list", xlabel="place", ylabel="mean loss / level"
    )
    panel.xaxis.set_major_formatter(PLAIN)
    return figure


def _gallery(history: History, judged: Judged | None) -> Iterable[str]:
    if not len(history.shown):
        return
    pictures = list(history.pixels) or [None] * len(history.shown)
    shown = zip(history.shown.tolist(), history.texts, pictures, strict=True)
    items = "\n".join(
        _item(suspect(history, index, judged), text, pixels) for index, text, pixels in shown
    )
    kind = "images" if len(history.pixels) else "lines"
    yield (
        f'<section>\n<h2>The {len(history.shown)} most suspicious</h2>\n<p class="note">Bold: the '
        "label, and what the model takes the example for. Losses are over the mean loss of all "
        f'examples at that time.</p>\n<ul class="picks {kind}">\n{items}\n</ul>\n</section>'
    )


def _item(one: Suspect, text: str, pixels: np.ndarray | None) -> str:
    classes = "" if one.label is None else str(one.label)
    if one.model is not None:
        classes += f" → {one.model}"
    said = f"loss {quantity(one.mean_loss)}x" + (", issue" if one.issue else "")
    if pixels is None:
        return f"<li><code>{escape(text)}</code><span>{one.id}: {classes} {said}</span></li>"
    data = base64.b64encode(png(pixels)).decode()
    return (
        f'<li><img src="data:image/png;base64,{data}" alt="example {one.id}, label {classes}">'
        f"<b>{classes or escape(text)}</b><span>{one.id}<br>{said}</span></li>"
    )


def _curve(history: History) -> str:
    return (
        f"<section>\n<h2>Where to stop</h2>\n<figure>{svg(ranked, history)}<figcaption>Wrong "
        "labels stand before the bend, if they are few and the model learns the others; hard "
        "examples after it.</figcaption></figure>\n</section>"
    )


def _table(found: Sequence[Suspect]) -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(one)) + "</tr>"
        for one in found
    )
    return (
        f'<section>\n<h2>The first {len(found)}</h2>\n<div class="wide"><table><thead>'
        f"<tr>{titles}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n</section>"
    )
