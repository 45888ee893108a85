"""``report.html``: one page that needs no network, no script and no other file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from gradsift.report import figures
from gradsift.report.health import has_health, health
from gradsift.report.measured import has_measured, measured
from gradsift.report.numbers import MISSING, quantity, seconds
from gradsift.report.runs import Run, pairs
from gradsift.report.search import has_search, search
from gradsift.report.style import PAGE, STYLE
from gradsift.report.verdict import error, gate_in_words, verdict

FILE = "report.html"

_ROWS: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("Test error", lambda run: error(run, run.summary.test_error)),
    ("Test loss", lambda run: quantity(run.summary.test_loss)),
    ("Training error", lambda run: error(run, run.summary.train_error)),
    ("Training loss", lambda run: quantity(run.summary.train_loss)),
    ("Steps", lambda run: f"{run.summary.steps:,}"),
    ("Examples trained", lambda run: f"{run.summary.examples_trained:,}"),
    ("Examples scored", lambda run: f"{run.summary.examples_scored:,}"),
    ("Time in the budget", lambda run: seconds(run.summary.seconds_total)),
    ("of which loading", lambda run: seconds(run.summary.seconds_loading)),
    ("of which scoring and drawing", lambda run: seconds(run.summary.seconds_scoring)),
    ("of which training", lambda run: seconds(run.summary.seconds_training)),
    ("Time evaluating, outside it", lambda run: seconds(run.summary.seconds_evaluating)),
    ("Sampling", gate_in_words),
)


def write_page(path: Path, runs: Sequence[Run]) -> Path:
    """Writes the page about one run, or about several side by side, and returns its path.

    The first of several is the one that the others are compared with.
    """
    path.write_text(page(runs), encoding="utf-8")
    return path


def page(runs: Sequence[Run]) -> str:
    """The text of the page."""
    first = runs[0].summary
    title = f"{first.model} on {first.data}"
    return PAGE.format(
        title=escape(title),
        style=STYLE,
        verdict=escape(verdict(runs)),
        results=_results(runs),
        figures="\n".join(_figures(runs)),
        settings=_settings(runs),
        raw=_raw(runs),
        versions=escape(", ".join(f"{name} {value}" for name, value in first.versions.items())),
    )


def _figures(runs: Sequence[Run]) -> Iterable[str]:
    yield _figure(
        figures.svg(figures.curves, runs),
        "Unweighted loss and error in eval mode, at about twenty moments of the budget. The "
        "training loss is that of a fixed part of the training set. Seconds count loading, "
        "drawing, scoring and training.",
    )
    if any(pairs(run.of_kind("train"), "step", "tau")[0] for run in runs):
        yield _figure(
            figures.svg(figures.gate, runs),
            "τ = √E[s²] / E[s] is 1 when all scores s are equal, and larger when few examples "
            "matter. It is shown for the recipes whose gate watches it: a dot marks where "
            "sampling went on, a ring where it went off.",
        )
    if measuring := [run for run in runs if has_measured(run)]:
        yield _figure(
            figures.svg(measured, measuring),
            "What the gate measured before it decided. Bands reach down to the lower end of the "
            "interval, which an offer to open is judged by; a source pays above the dashed line "
            "on the left and near it on the right. Shaded: steps that drew by score.",
        )
    if searching := [run for run in runs if has_search(run)]:
        yield _figure(
            figures.svg(search, searching),
            "What an engine found beside the training. Ages count the steps since the parameters "
            "were in use by which scores were measured. The recovered variance is 0 for uniform "
            "draws and 1 for draws by fresh norms; it is measured on blocks that come back, with "
            "the scores from before, a whole sweep old. Workers measure losses on up to 4,096 "
            "examples of a set.",
        )
    if healthy := [run for run in runs if has_health(run)]:
        yield _figure(
            figures.svg(health, healthy),
            "Health of the proposal. Picks: examples drawn at least once, the entropy of the picks "
            "over that of equal ones, and the share of the picks that went to the 1 % picked most. "
            "Weights: κ = E[w s]²/E[w² s²] is 1 where the proposal fits the scores of the step; "
            "the effective sample (Σ w)²/Σ w², over the batch size, is small exactly where "
            "sampling by score is right. On the dashed line a score is proportional to the "
            "gradient norm, at the end of the run.",
        )
    if any(run.event("scores").get("edges") for run in runs):
        yield _figure(
            figures.svg(figures.scores, runs),
            "The candidates of the last steps. A long right tail is what sampling by score "
            "lives on; the dashed line is the mean.",
        )


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _results(runs: Sequence[Run]) -> str:
    names = [run.summary.recipe for run in runs]
    return _table(["", *names], [[label, *map(cell, runs)] for label, cell in _ROWS])


def _settings(runs: Sequence[Run]) -> str:
    """One row per setting that some run has, with each value once."""
    settings = [run.event("settings") for run in runs]
    keys = list(dict.fromkeys(key for found in settings for key in found))
    rows = []
    for key in keys:
        values = [_plain(found[key]) for found in settings if found.get(key) is not None]
        if values:
            rows.append([key.replace("_", " "), ", ".join(dict.fromkeys(values))])
    return _table(["Setting", "Value"], rows)


def _raw(runs: Sequence[Run]) -> str:
    summaries = [asdict(run.summary) for run in runs]
    rows = [[key, *(_plain(found[key]) for found in summaries)] for key in summaries[0]]
    return _table(["Field", *(run.summary.recipe for run in runs)], rows)


def _plain(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "\n".join(
        f"<tr><th>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>\n{body}\n</tbody></table>"
