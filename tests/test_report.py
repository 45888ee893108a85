"""The page: complete, offline, safe and repeatable; its sentences and its histogram."""

import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsift.report import figures
from gradsift.report.histogram import SPAN, histogram
from gradsift.report.measured import has_measured, measured
from gradsift.report.numbers import quantity, seconds, share
from gradsift.report.page import page, write_page
from gradsift.report.runs import Run
from gradsift.report.summary import Summary
from gradsift.report.verdict import gate_in_words, noise, verdict

SUMMARY = Summary(
    recipe="uniform",
    data="digits",
    model="cnn",
    seed=0,
    steps=100,
    examples_trained=3200,
    examples_scored=0,
    seconds_total=10.0,
    seconds_loading=1.0,
    seconds_scoring=0.0,
    seconds_training=9.0,
    seconds_evaluating=0.5,
    train_loss=0.0123,
    train_error=0.001,
    test_loss=0.0678,
    test_error=0.024,
    gate=None,
    engine=None,
    versions={"gradsift": "0.1.0", "torch": "2.13.0", "python": "3.11.0"},
    command="gradsift train --recipe uniform",
)
POOL = replace(SUMMARY, recipe="pool", examples_scored=9600, test_error=0.012, train_loss=0.005)
GATE = {"state": "on", "reason": "needs tau above 2.00, has 2.31", "opened_at_step": 40}
GATED = replace(SUMMARY, recipe="katharopoulos2018", gate=GATE, seconds_total=10.1)


def made(summary=SUMMARY, **changes):
    """A run with all kinds of lines, as the loader and the trainer write them."""
    opened = (summary.gate or {}).get("opened_at_step")
    settings = {"budget": "10s", "lr": 0.05, "task": "classification", "test_examples": 355}
    scores = asdict(histogram(torch.tensor([0.0, 0.1, 0.2, 0.4, 1.2])))
    lines = [{"kind": "event", "name": "settings", **settings, **changes}]
    for step in (1, 2, 5, 10, 20, 40, 70):
        drawn = opened is not None and step >= opened
        tau = None if opened is None else 1 + step / 50
        train = {"loss": 1 / step, "tau": tau, "drawn": drawn, "trained": 32 * step}
        lines.append({"kind": "train", "step": step, **train})
    for step, state in [(1, "off"), (opened, "on")] if opened else []:
        lines.append({"kind": "gate", "step": step, "state": state, "tau": 1 + step / 50})
    for step in range(0, 101, 5):
        quality = {"train_loss": 2 / (step + 1), "test_loss": 2.2 / (step + 1)}
        lines.append({"kind": "eval", "step": step, **quality, "test_error": 0.9 / (step + 1)})
    lines.append({"kind": "event", "step": 100, "name": "scores", **scores})
    return Run(
        summary, [{"step": 0, "seconds": line.get("step", 0) / 10, **line} for line in lines]
    )


THREE = [made(), made(POOL), made(GATED)]


class Elements(HTMLParser):
    """Which elements a page opens, with their attributes, and whether all are closed."""

    EMPTY = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("runs", [[made()], [made(GATED)], THREE], ids=["one", "gated", "three"])
def test_the_page_is_well_formed_small_and_needs_nothing(runs):
    text = page(runs)
    elements = Elements(text)
    assert elements.open == []
    tags = [tag for tag, _ in elements.found]
    assert tags.count("svg") == (3 if any(run.summary.gate for run in runs) else 2)
    assert not {"script", "link", "img", "iframe", "image"} & set(tags)
    addresses = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href") and value and not value.startswith("#")
    ]
    assert addresses == []
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"\w+://[^\"'<\s]+", text)) <= names
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(text) < 1_000_000


def test_the_same_runs_give_the_same_page():
    assert page(THREE) == page([made(), made(POOL), made(GATED)])


def test_drawing_leaves_the_plotting_library_as_it_was():
    before = dict(figures.mpl.rcParams)
    page([made()])
    assert dict(figures.mpl.rcParams) == before


def test_the_page_shows_the_numbers_of_every_run(tmp_path):
    text = write_page(tmp_path / "report.html", THREE).read_text()
    for expected in ("uniform", "pool", "katharopoulos2018", "2.40 %", "1.20 %", "9,600", "10.1 s"):
        assert expected in text
    assert "needs tau above 2.00, has 2.31, first opened at step 40" in text
    assert "gradsift train --recipe uniform" in text
    assert all(field in text for field in asdict(SUMMARY))


def test_names_of_the_user_are_never_markup():
    odd = replace(SUMMARY, data="<script>alert(1)</script>", command="a & b {title}", recipe="<b>")
    text = page([made(odd), made(replace(POOL, recipe="<i>"))])
    assert "<script" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;" in text
    assert "a &amp; b {title}" in text


def test_a_run_that_measured_little_still_has_a_page():
    lines = [{"kind": "eval", "step": 0, "seconds": 0.0, "train_loss": None, "test_loss": None}]
    text = page([Run(SUMMARY, lines)])
    assert Elements(text).found.count(("figure", {})) == 1
    assert "Scores at the end" not in text


def test_an_error_of_zero_takes_the_linear_axis():
    lines = [
        {"kind": "eval", "step": step, "seconds": float(step), "test_error": error}
        for step, error in [(0, 0.5), (1, 0.0)]
    ]
    panels = figures.curves([Run(SUMMARY, lines)]).axes
    assert panels[2].get_yscale() == "linear"
    assert figures.curves([made()]).axes[2].get_yscale() == "log"


def test_the_curves_are_the_measurements():
    panels = figures.curves(THREE).axes
    keys = ("train_loss", "test_loss", "test_error")
    for panel, key in zip(panels, keys, strict=True):
        for line, run in zip(panel.lines, THREE, strict=True):
            evaluations = run.of_kind("eval")
            drawn = [[found["seconds"], found[key]] for found in evaluations]
            assert np.asarray(line.get_xydata()).tolist() == drawn


def test_a_gate_that_opens_is_marked_on_its_curve():
    gated = made(GATED)
    shut = {"kind": "gate", "step": 70, "seconds": 7.0, "state": "off", "tau": 2.4}
    above = figures.gate([Run(GATED, [*gated.lines, shut])]).axes[0]
    curve, opened, closed = above.lines
    points = [np.asarray(line.get_xydata()).tolist() for line in (curve, opened, closed)]
    assert points[0] == [[step, 1 + step / 50] for step in (1, 2, 5, 10, 20, 40, 70)]
    assert points[1:] == [[[40, 1.8]], [[70, 2.4]]]
    assert opened.get_markerfacecolor() != closed.get_markerfacecolor() == "white"


def test_every_axis_says_what_it_shows():
    for figure in (figures.curves(THREE), figures.gate(THREE), figures.scores(THREE)):
        assert all(panel.get_title(loc="left") or panel.get_title() for panel in figure.axes)
        assert figure.axes[-1].get_xlabel()


def test_a_regression_has_no_percent():
    run = made(task="regression")
    assert "0.024" in verdict([run])
    assert "Test error (mean square)" in page([run])
    assert "2.40 %" not in page([run])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([0, 0, 0, 0], []),
        ([1, 1, 1, 1], [(0, 100)]),
        ([0, 1, 0, 0], [(1, 9)]),
        ([1, 0, 1, 1], [(0, 1), (10, 90)]),
        ([0, 0, 0, 1], [(30, 70)]),
        ([1, 1, 0, 1], [(0, 10), (30, 70)]),
    ],
)
def test_stretches_of_sampling_reach_to_the_next_line(flags, expected):
    lines = [
        {"kind": "train", "step": step, "seconds": 0.0, "drawn": bool(flag)}
        for step, flag in zip((1, 2, 11, 31), flags, strict=True)
    ]
    assert figures.sampled(Run(SUMMARY, lines)) == expected


def test_colours_are_apart_and_the_first_of_several_is_grey():
    several = figures.colours(THREE)
    assert len(set(several)) == 3
    assert several[0] == "#6b7280"
    assert figures.colours(THREE[:1]) != several[:1]
    assert len(figures.colours(THREE * 5)) == 15


def test_one_run_is_summed_up_with_its_gate():
    text = verdict([made(GATED)])
    assert text == (
        "katharopoulos2018 reached a test error of 2.40 % on digits in 10.1 s and 100 steps. "
        "Sampling is on: needs tau above 2.00, has 2.31, first opened at step 40."
    )
    assert verdict([made(POOL)]).endswith("Sampling is on in every step.")
    assert verdict([made()]).endswith("Sampling is never on.")


def test_several_runs_are_compared_with_the_first_and_with_chance():
    text = verdict(THREE)
    assert text == (
        "At equal seconds (10.1 s each), pool has the lowest test error, 1.20 % against 2.40 % of "
        "uniform, which can be chance: two standard errors on 355 test examples are 2.0 points, "
        "and there is one seed. pool has the lowest training loss, 0.005 against 0.0123 of "
        "uniform."
    )


def test_unequal_seconds_are_said():
    longer = made(replace(POOL, seconds_total=12.0))
    assert verdict([made(), longer]).startswith("Over unequal seconds, pool has")


def test_the_first_run_is_not_compared_with_itself():
    worse = made(replace(POOL, test_error=0.5, train_loss=1.0))
    text = verdict([made(), worse])
    assert "no recipe has a lower test error than uniform, 2.40 %." in text
    assert "None has a lower training loss than uniform, 0.0123." in text
    assert "against" not in text


def test_a_tie_is_not_won():
    assert "no recipe has a lower test error" in verdict([made(), made(GATED)])


@pytest.mark.parametrize(("examples", "judged"), [(355, "can be"), (5000, "is more than")])
def test_a_difference_is_judged_by_the_number_of_test_examples(examples, judged):
    text = verdict([made(test_examples=examples), made(POOL, test_examples=examples)])
    assert f"which {judged} chance" in text


def test_differences_that_cannot_be_judged_are_left_open():
    runs = [made(task="regression"), made(POOL, task="regression")]
    assert "0.012 against 0.024 of uniform; one seed each" in verdict(runs)


def test_the_noise_of_a_difference_is_two_binomial_standard_errors():
    draws = torch.arange(0, 51)
    log_weight = torch.lgamma(torch.tensor(51.0)) - torch.lgamma(draws + 1.0)
    log_weight = log_weight - torch.lgamma(51.0 - draws) + 50 * math.log(0.5)
    chance = log_weight.double().exp()
    variance = (chance * (draws / 50 - 0.5) ** 2).sum().item()
    assert noise(0.5, 0.5, 50) == pytest.approx(2 * math.sqrt(2 * variance), rel=1e-5)
    assert noise(0.0, 1.0, 50) == 0.0


def test_a_gate_that_never_opened_has_no_step():
    shut = {"state": "off", "reason": "needs more", "opened_at_step": None}
    assert gate_in_words(made(replace(GATED, gate=shut))) == "off: needs more"


def slow_histogram(values, bins):
    """Counts one score at a time."""
    finite = [value for value in values if math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    if not positive:
        return [], len(finite)
    top = max(positive)
    bottom = max(min(positive), top * SPAN)
    bottom = bottom if bottom < top else top / 10
    counts, below = [0] * bins, 0
    for value in finite:
        if value < bottom:
            below += 1
        else:
            place = math.floor(bins * math.log(value / bottom) / math.log(top / bottom) + 1e-9)
            counts[min(place, bins - 1)] += 1
    return counts, below


@given(
    st.lists(
        st.one_of(
            st.floats(0.001, 1000.0).map(lambda value: round(value, 3)),
            st.sampled_from([0.0, math.nan, math.inf, 1e-9]),
        ),
        max_size=30,
    ),
    st.integers(1, 12),
)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_the_histogram_counts_every_finite_score_once(values, bins):
    found = histogram(torch.tensor(values, dtype=torch.float64), bins=bins)
    counts, below = slow_histogram(values, bins)
    assert sum(found.counts) + found.below == sum(map(math.isfinite, values))
    assert found.below == below
    if counts:
        assert found.edges == sorted(found.edges)
        within = [math.isclose(a, b, abs_tol=1) for a, b in zip(found.counts, counts, strict=True)]
        assert all(within)


def test_the_histogram_by_hand():
    found = histogram(torch.tensor([1.0, 2.0, 3.0, 5.0, 9.0, 16.0, 0.0, math.nan]), bins=4)
    assert found.edges == pytest.approx([1, 2, 4, 8, 16])
    assert (found.counts, found.below) == ([1, 2, 1, 2], 1)
    assert found.mean == pytest.approx(36 / 7)


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [math.nan]])
def test_scores_without_a_positive_one_have_no_bins(values):
    found = histogram(torch.tensor(values))
    assert (found.edges, found.counts) == ([], [])
    assert found.below == len([value for value in values if value == 0.0])


def test_equal_scores_share_one_bin():
    found = histogram(torch.full((5,), 0.3))
    assert sorted(found.counts) == [0] * 23 + [5]


def test_numbers_are_written_with_the_digits_that_count():
    percents = [share(value) for value in (0.0, 0.001, 0.1, 1.0)]
    assert percents == ["0.00 %", "0.10 %", "10.0 %", "100.0 %"]
    assert [quantity(value) for value in (math.inf, -2.5, 12345.6)] == ["inf", "-2.5", "12,346"]
    assert [seconds(value) for value in (0.0, 59.94, 1000.0)] == ["0.00 s", "59.9 s", "1,000 s"]


def decision(step, state, ratio):
    """A line as the gate that measures writes it."""
    offers = [
        {"source": "off", "seconds": 2.0, "variance_ratio": 1.0, "lower": 1.0, "candidates": 1.0},
        {
            "source": "table",
            "seconds": 2.1,
            "variance_ratio": ratio,
            "lower": ratio - 0.5,
            "candidates": 1.0,
        },
    ]
    return {"kind": "gate", "step": step, "seconds": 0.1 * step, "state": state, "offers": offers}


def test_what_a_gate_measured_is_drawn():
    run = made(replace(SUMMARY, recipe="auto", gate=GATE))
    lines = [line for line in run.lines if line["kind"] != "gate"]
    decisions = [decision(20, "off", 1.2), decision(40, "on", 2.0), decision(70, "off", 0.9)]
    seen = Run(run.summary, [*lines, *decisions])
    assert has_measured(seen)
    assert not has_measured(run)
    ratios, costs = measured([seen]).axes
    line, relative = ratios.lines[0], costs.lines[0]
    assert np.asarray(line.get_xydata()).tolist() == [[20, 1.2], [40, 2.0], [70, 0.9]]
    assert np.asarray(relative.get_ydata()).tolist() == pytest.approx([1.05] * 3)
    (shaded,) = [patch.get_extents() for patch in ratios.patches if patch.get_alpha() == 0.06]
    low, high = ratios.transData.inverted().transform([[shaded.x0, 0], [shaded.x1, 0]])[:, 0]
    assert (low, high) == (pytest.approx(40), pytest.approx(70))
    assert "What the gate measured before it decided" in page([seen])
