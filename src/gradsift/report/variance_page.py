"""The ``variance.html`` of measured variances: one page that needs no network and no other file."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from gradsift.report import variance_figures as figures
from gradsift.report.compare_style import STYLE
from gradsift.report.compared import CONTENDED
from gradsift.report.figures import svg
from gradsift.report.numbers import quantity
from gradsift.report.style import STYLE as COMMON
from gradsift.report.variance import Checkpoint, Noise, Recovered, VarianceFound

FILE = "variance.html"

NOT_COUNTED = "not counted"

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gradsift: variance of {title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<p class="brand">gradsift variance</p>
<h1>{title}</h1>
<p class="verdict">{verdict}</p>
</header>
<section>
<h2>Along the run</h2>
{figures}
</section>
<section>
<h2>At the end</h2>
{table}
{notes}
</section>
<section>
<h2>Recovered share</h2>
{recovered}
<p class="note">How much of what ideal probabilities would gain over uniform ones is gained, in
variance, as a ratio of sums over the checkpoints where there is at least 5 % to gain; ± one
standard error over checkpoints.</p>
</section>
<footer>{versions}</footer>
</main>
</body>
</html>
"""


def write_variance_page(path: Path, found: VarianceFound) -> Path:
    """Writes the page about at least one checkpoint, and returns its path."""
    path.write_text(variance_page(found), encoding="utf-8")
    return path


def variance_page(found: VarianceFound) -> str:
    """The text of the page."""
    return PAGE.format(
        title=escape(found.title),
        style=COMMON + STYLE,
        verdict=escape(verdict(found)),
        figures="\n".join(_figures(found)),
        table=_table(_HEAD, [_row(found, noise) for noise in found.checkpoints[-1].arms]),
        notes=_notes(found),
        recovered=_table(("proposal", "share", "checkpoints"), _shares(found)),
        versions=escape(", ".join(f"{name} {value}" for name, value in found.versions.items())),
    )


def verdict(found: VarianceFound) -> str:
    """Which way of taking examples has the least noise for its seconds, at the end of the run.

    Stratified draws are left out: few examples flatter them.
    """
    last = found.checkpoints[-1]
    paid = best_paid(last, found)
    busy = (
        " The measurement shared the machine: its seconds count for no claim."
        if contended(found)
        else ""
    )
    where = f"After {last.step:,} steps with batches of {found.batch_size}"
    if paid is None:
        return f"{where} uniform batches have no noise left."
    best, noise = paid
    if best >= 1:
        return f"{where} nothing has less noise at equal seconds than uniform batches.{busy}"
    return (
        f"{where} the least noise at equal seconds is {best:.2f} of that of uniform batches, with "
        f"{noise.name}; no probabilities for independent draws, at equal batch size, are below "
        f"{_least(last):.2f}.{busy}"
    )


def contended(found: VarianceFound) -> bool:
    """Whether the seconds count for no claim."""
    return found.foreign_cpu is not None and found.foreign_cpu > CONTENDED


_HEAD = (
    "examples by",
    "variance",
    "formula",
    "µs per example",
    "at equal seconds",
)


def in_words(checkpoint: Checkpoint, found: VarianceFound) -> str:
    """A checkpoint on one line."""
    paid = best_paid(checkpoint, found)
    end = "" if paid is None else f"  at equal seconds {paid[0]:.2f} ({paid[1].name})"
    return (
        f"step {checkpoint.step:7,d}  loss {checkpoint.loss:.4f}  ideal {_least(checkpoint):.2f} "
        f"of the uniform variance{end}"
    )


def best_paid(checkpoint: Checkpoint, found: VarianceFound) -> tuple[float, Noise] | None:
    """The least variance at equal seconds, over uniform, without stratified draws."""
    paid = [
        (value, noise)
        for noise in checkpoint.arms[1:]
        if noise.draw != "stratified"
        and (value := checkpoint.at_equal_seconds(noise, found.batch_size)) is not None
        and math.isfinite(value)
    ]
    return min(paid, key=lambda pair: pair[0], default=None)


def _least(checkpoint: Checkpoint) -> float:
    return checkpoint.ideal / checkpoint.uniform if checkpoint.uniform > 0 else math.nan


def _figures(found: VarianceFound) -> Iterable[str]:
    yield _figure(
        svg(figures.along, found),
        f"Variance of the gradient of one batch, from {found.repeats} repeats of {found.draws} "
        "real draws each, over that of a uniform batch; bars are 95 % t intervals. On the right it "
        "is multiplied by the seconds that a trained example costs, scoring of its pool included. "
        "Dashed on the left: fresh scores of all examples, which nobody could pay.",
    )
    yield _figure(
        svg(figures.agreement, found),
        "Every way at every checkpoint, with its 95 % interval, in the colours above. A pool "
        "without replacement is put beside Hájek's formula, an approximation.",
    )
    yield _figure(
        svg(figures.scatters, found),
        "At the first and the last checkpoint. On the dashed line a score is proportional to the "
        "exact norm, which is what its proposal needs; a good rank alone does not do.",
    )


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _row(found: VarianceFound, noise: Noise) -> list[str]:
    last = found.checkpoints[-1]
    unit = last.uniform / found.batch_size
    paid = last.at_equal_seconds(noise, found.batch_size)
    known = unit > 0
    return [
        noise.name,
        f"{noise.measured / unit:.3f} ± {noise.half_width / unit:.3f}" if known else "none left",
        f"{noise.formula / unit:.3f}" if known else "none left",
        NOT_COUNTED if noise.seconds is None else quantity(1e6 * noise.seconds),
        NOT_COUNTED if paid is None else f"{paid:.3f}",
    ]


def _shares(found: VarianceFound) -> list[list[str]]:
    return [[each.name, _share(each), f"{each.checkpoints}"] for each in found.recovered]


def _share(each: Recovered) -> str:
    if not each.checkpoints:
        return "no checkpoint"
    known = math.isfinite(each.standard_error)
    return f"{each.share:.2f} ± {each.standard_error:.2f}" if known else f"{each.share:.2f}"


def _notes(found: VarianceFound) -> str:
    texts = [
        (
            f"Variance and formula are over those of {found.batch_size} independent uniform draws; "
            "± is a 95 % interval.",
            False,
        ),
        (
            f"{found.examples:,} random training examples stand for the data. Draws without copies "
            "(stratified, and pools without replacement) gain more on few examples than on many.",
            False,
        ),
    ]
    if found.virtual:
        texts.append(("Counted cost, not measured time.", False))
    elif found.foreign_cpu is None:
        texts.append(("load unknown: the seconds may be those of a busy machine", True))
    elif contended(found):
        texts.append(
            (
                f"contended: other processes used {100 * found.foreign_cpu:.0f} % of the machine, "
                "so the seconds count for no claim",
                True,
            )
        )
    if found.interrupted:
        texts.append((f"Ctrl-C ended the run before step {found.steps:,}.", True))
    return "\n".join(
        f'<p class="note{" warn" if warn else ""}">{escape(text)}</p>' for text, warn in texts
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "\n".join(
        f"<tr><th>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(text)}</td>" for text in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>\n{body}\n'
        "</tbody></table></div>"
    )
