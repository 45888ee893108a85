"""``gradsift status``: how a run and the search of its engine are doing, now."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gradsift.errors import DataError
from gradsift.report.numbers import quantity, seconds
from gradsift.report.summary import FILE

METRICS = "metrics.jsonl"


def status_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
) -> int:
    """Show how far a run is, and how old the scores are that its engine delivers."""
    typer.echo("\n".join(describe(run)))
    return 0


def describe(run: Path) -> list[str]:
    """What the measurements of a run say at this moment, a line each.

    Raises:
        DataError: when the folder holds no measurements.
    """
    last, engine, curves, notices = _read(run / METRICS)
    state = "finished" if (run / FILE).exists() else "running, or stopped before its end"
    said = [f"{run}: {state}; step {last['step']}, {last['seconds']:.1f} s"]
    if engine is None:
        said.append("engine: none")
    else:
        said += _engine_lines(engine)
    said += [_curve_in_words(point) for point in curves.values()]
    return said + [f"said: {text}" for text in notices]


def _engine_lines(status: dict[str, Any]) -> list[str]:
    aside = status["set_aside"]
    lines = [
        f"engine: {status['engine']}, {status['workers']} workers, {status['workers_lost']} lost, "
        f"{status['restarts']} restarts",
        f"scores: {status['delivered']} delivered, {status['rate']:.0f} per second, "
        f"{100 * status['usable']:.0f} % of the examples usable",
    ]
    if status["age"] is not None:
        lines.append(
            f"age: {status['age']:.0f} steps or {seconds(status['seconds_old'])} in the median, "
            f"{status['oldest']} steps at most; the newest are {status['behind']} steps behind"
        )
    if status["published"]:
        size = status["sent"] / status["published"] / 2**20
        lines.append(
            f"parameters: published {status['published']} times, {size:.3g} MiB each in the mean"
        )
    if status["recovered"] is not None:
        lines.append(
            f"variance: {100 * status['recovered']:.0f} % of the possible gain recovered, ratio "
            f"{status['variance_ratio']:.2f} of {status['ideal_ratio']:.2f}"
        )
    if aside:
        lines.append(f"set aside: blocks {', '.join(map(str, aside))}")
    return lines


def _curve_in_words(point: dict[str, Any]) -> str:
    loss = "not finite" if point["loss"] is None else quantity(point["loss"])
    error = "" if point["error"] is None else f", error {quantity(point['error'])}"
    return (
        f"{point['set']}: loss {loss}{error}, measured by workers with the parameters of step "
        f"{point['version']}"
    )


def _read(
    path: Path,
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, dict[str, Any]], list[str]]:
    last: dict[str, Any] = {}
    curves: dict[str, dict[str, Any]] = {}
    engine: dict[str, Any] | None = None
    notices: list[str] = []
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            last = json.loads(text)
            if last.get("name") == "engine":
                engine = last
            elif last.get("name") == "curve":
                curves[last["set"]] = last
            elif last["kind"] == "event" and "name" not in last:
                notices.append(last["text"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read ({type(error).__name__}): name the folder of a run"
        ) from error
    if not last:
        raise DataError(f"{str(path)!r} holds no measurement yet: the run has only begun")
    return last, engine, curves, notices
