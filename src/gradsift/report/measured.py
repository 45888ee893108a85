"""The figure of a gate that measures: what each source was found to give and to cost."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from gradsift.report.figures import FAINT, PLAIN, SEVERAL
from gradsift.report.runs import Line, Run

SHOWN = {("table", 1.0): "table", ("pool", 2.0): "pool of 2", ("two-stage", 2.0): "two-stage of 2"}
"""Sources that are drawn, by candidates per trained example; the numbers of all are in the log."""


def has_measured(run: Run) -> bool:
    """Whether a run's gate wrote down what it had measured of any source but the plain order."""
    return any(len(line.get("offers") or []) > 1 for line in run.of_kind("gate"))


def measured(runs: Sequence[Run]) -> Figure:
    """Variance ratio with the lower end of its interval, and seconds of a step, of each source.

    One row per run. The shaded stretch is where examples were drawn by score.
    """
    figure = Figure(figsize=(10.4, 2.9 * len(runs)), layout="constrained")
    rows = figure.subplots(len(runs), 2, squeeze=False, sharex=True)
    for (ratios, costs), run in zip(rows, runs, strict=True):
        decisions = [line for line in run.of_kind("gate") if line.get("offers")]
        for place, (key, label) in enumerate(SHOWN.items(), start=1):
            found = [(line, offer) for line in decisions if (offer := _offer(line, *key))]
            steps = [line["step"] for line, _ in found]
            style = {"color": SEVERAL[place], "marker": "o", "markersize": 2.5}
            ratios.plot(steps, [offer["variance_ratio"] for _, offer in found], **style)
            lower = [offer["lower"] for _, offer in found]
            upper = [offer["variance_ratio"] for _, offer in found]
            ratios.fill_between(steps, lower, upper, color=SEVERAL[place], alpha=0.2, linewidth=0)
            plain = [line["offers"][0]["seconds"] for line, _ in found]
            relative = [
                offer["seconds"] / base for (_, offer), base in zip(found, plain, strict=True)
            ]
            costs.plot(steps, relative, label=label, **style)
        for panel in (ratios, costs):
            panel.axhline(1, color=FAINT, linestyle=(0, (4, 3)), linewidth=0.9)
            for start, end in _stretches(decisions, run.summary.steps):
                panel.axvspan(start, end, color=SEVERAL[1], alpha=0.06, linewidth=0)
            panel.xaxis.set_major_formatter(PLAIN)
            panel.set(xlabel="step")
        ratios.set(title=f"{run.summary.recipe}: variance ratio, uniform over drawn")
        costs.set(title="Seconds of a step, over a plain one")
        costs.legend(fontsize=8)
    return figure


def _offer(line: Line, source: str, candidates: float) -> dict[str, Any] | None:
    matching = (
        offer
        for offer in line["offers"]
        if (offer["source"], offer["candidates"]) == (source, candidates)
    )
    return next(matching, None)


def _stretches(decisions: Sequence[Line], last: int) -> list[tuple[int, int]]:
    """From each decision that was on to the next one, or to the end."""
    ends = [*(line["step"] for line in decisions[1:]), last]
    return [
        (line["step"], end)
        for line, end in zip(decisions, ends, strict=True)
        if line["state"] == "on"
    ]
