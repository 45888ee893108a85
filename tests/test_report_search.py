"""What the report and the status say about a search."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsift.cli.status import describe
from gradsift.monitors.recovered import RecoveredShare, recovered
from gradsift.report.page import page
from gradsift.report.runs import Run
from gradsift.report.search import has_search, recovered_share, search
from test_report import SUMMARY, made

ENGINE = {"kind": "local", "workers_lost": 1, "restarts": 1}
SEARCHED = replace(SUMMARY, recipe="issgd", engine=ENGINE, examples_scored=900)


def told(step: int, **changes: Any) -> dict[str, Any]:
    """A line about an engine, as the trainer writes it."""
    ratio, ideal = 1.2 + step / 100, 2.0 + step / 50
    status = {
        "engine": "local",
        "workers_lost": 1,
        "restarts": 1,
        "workers": 2,
        "set_aside": [],
        "delivered": 9 * step,
        "rate": 90.0,
        "usable": 1.0,
        "age": 3.0 + step / 10,
        "oldest": 10 + step,
        "behind": step // 20,
        "seconds_old": 0.5,
        "published": 4,
        "sent": 6 * 2**20,
        "variance_ratio": ratio,
        "ideal_ratio": ideal,
        "recovered": recovered(ratio, ideal),
    }
    at = {"kind": "event", "step": step, "seconds": step / 10, "name": "engine"}
    return {**at, **status, **changes}


def curve(
    name: str, version: int, loss: float | None, error: float | None = None
) -> dict[str, Any]:
    point = {"set": name, "version": version, "newest": version + 3, "loss": loss, "error": error}
    at = {"kind": "event", "step": version + 5, "seconds": 1.0, "name": "curve"}
    return {**at, **point, "examples": 80}


NOTHING = dict.fromkeys(("age", "oldest", "behind", "seconds_old", "recovered"))
LINES = [
    told(0, **NOTHING, variance_ratio=None, ideal_ratio=None),
    *(told(step) for step in (20, 40, 80)),
    curve("train", 10, 1.5),
    curve("test", 12, 1.7, 0.25),
    curve("train", 50, 0.5),
    curve("test", 60, None, 0.125),
]


def run_with(*lines: dict[str, Any]) -> Run:
    return Run(SEARCHED, [*made(SEARCHED).lines, *lines])


def test_the_figure_shows_ages_shares_and_curves() -> None:
    figure = search([run_with(*LINES)])
    ages, shares, curves = figure.axes
    points = {
        str(line.get_label()): np.asarray(line.get_xydata()).tolist()
        for panel in (ages, curves)
        for line in panel.lines
    }
    assert points["median"] == [[step, 3.0 + step / 10] for step in (20, 40, 80)]
    assert points["oldest"] == [[step, 10 + step] for step in (20, 40, 80)]
    assert points["train"] == [[10, 1.5], [50, 0.5]]
    assert points["test"] == [[12, 1.7]]
    share = np.asarray(shares.lines[0].get_xydata())
    expected = [recovered(1.2 + step / 100, 2.0 + step / 50) for step in (20, 40, 80)]
    np.testing.assert_allclose(share[:, 1], expected)
    assert ages.get_title(loc="left").startswith("issgd: age") or ages.get_title().startswith(
        "issg"
    )


def test_the_share_of_a_run_is_a_ratio_of_sums() -> None:
    top = bottom = 0.0
    for step in (20, 40, 80):
        drawn, ideal = 1 / (1.2 + step / 100), 1 / (2.0 + step / 50)
        top, bottom = top + 1 - drawn, bottom + 1 - ideal
    found = recovered_share(run_with(*LINES))
    assert found.checkpoints == 3
    assert found.estimate.value == pytest.approx(top / bottom)


@pytest.mark.parametrize(("drawn", "ideal"), [(1.5, 3.0), (0.8, 2.0), (2.0, 2.0)])
def test_one_moment_is_the_share_of_one_checkpoint(drawn: float, ideal: float) -> None:
    share = RecoveredShare()
    share.add(7.0, 7.0 / drawn, 7.0 / ideal)
    assert recovered(drawn, ideal) == pytest.approx(share.estimate.value)


def test_a_page_has_the_figure_only_where_an_engine_searched() -> None:
    assert has_search(run_with(*LINES))
    assert not has_search(made())
    assert not has_search(run_with(LINES[0]))
    text = page([made(), run_with(*LINES)])
    assert "Recovered variance" in text
    assert "Loss measured by workers" in text
    assert "Recovered variance" not in page([made()])
    bare = page([run_with(told(20, recovered=None, variance_ratio=None, ideal_ratio=None))])
    assert "no data set was evaluated" in bare


def test_status_says_what_is_known(tmp_path: Path) -> None:
    def said(*lines: dict[str, Any]) -> list[str]:
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text)
        return describe(tmp_path)[1:]

    assert said(*LINES) == [
        "engine: local, 2 workers, 1 lost, 1 restarts",
        "scores: 720 delivered, 90 per second, 100 % of the examples usable",
        "age: 11 steps or 0.50 s in the median, 90 steps at most; the newest are 4 steps behind",
        "parameters: published 4 times, 1.5 MiB each in the mean",
        "variance: 69 % of the possible gain recovered, ratio 2.00 of 3.60",
        "train: loss 0.5, measured by workers with the parameters of step 50",
        "test: loss not finite, error 0.125, measured by workers with the parameters of step 60",
    ]
    early = told(0, **NOTHING, variance_ratio=None, ideal_ratio=None, published=0, set_aside=[3, 7])
    assert said(early) == [
        "engine: local, 2 workers, 1 lost, 1 restarts",
        "scores: 0 delivered, 90 per second, 100 % of the examples usable",
        "set aside: blocks 3, 7",
    ]
