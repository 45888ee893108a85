"""The table and the page of a comparison, its figures, its sentence and its gallery."""

import base64
import io
import re
from dataclasses import replace
from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from comparisons import QUIET, SUMMARY, lines, picks
from gradsift.comparison.arms import Arm, again
from gradsift.comparison.plan import Plan
from gradsift.comparison.rows import as_json, compared
from gradsift.report import compare_figures as figures
from gradsift.report.compare_colours import REST, colours
from gradsift.report.compare_page import compare_page, write_compare_page
from gradsift.report.compare_table import as_text, estimate_in_words, levels, ratios
from gradsift.report.compare_verdict import clear, verdict
from gradsift.report.compared import Estimate, Machine, Measured
from gradsift.report.figures import svg
from gradsift.report.gallery import as_pixels, gallery, png
from gradsift.report.runs import Run
from test_report import Elements

ARMS = (Arm("uniform", ("--recipe", "uniform")), Arm("fast", ()), Arm("slow", ()))
LOSSES = {
    "uniform": (0.1, 0.11, 0.09),
    "fast": (0.02, 0.023, 0.017),
    "slow": (0.12, 0.1, 0.1),
    "uniform-again": (0.105, 0.1, 0.095),
}


def measured(arm, seed, loss, *, machine=QUIET, **changes):
    summary = replace(SUMMARY, train_loss=loss, seed=seed, **changes)
    return Measured(arm, seed, f"{arm}/seed-{seed}", None, machine, Run(summary, lines(summary)))


def made(tmp_path, *, seeds=3, aa=True, common=(), change=lambda run: run, with_picks=True):
    arms = (*ARMS, again(ARMS[0])) if aa else ARMS
    plan = Plan(arms, seeds=seeds, common=common)
    runs = [change(measured(job.arm, job.seed, LOSSES[job.arm][job.seed])) for job in plan.jobs()]
    found = compared(plan, runs, tmp_path, (), ())
    shown = {arm.name: picks(even=arm.name == "uniform") for arm in arms} if with_picks else {}
    return replace(found, picks=shown)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_page_is_well_formed_and_needs_nothing(tmp_path, seeds):
    text = compare_page(made(tmp_path, seeds=seeds))
    elements = Elements(text)
    assert elements.open == []
    tags = [tag for tag, _ in elements.found]
    assert tags.count("svg") == 3
    assert tags.count("script") == 1
    assert not {"link", "iframe", "image"} & set(tags)
    addresses = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href") and value and not value.startswith("#")
    ]
    assert addresses
    assert all(value.startswith("data:image/png;base64,") for value in addresses)
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"\w+://[^\"'<\s]+", text)) <= names
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(text) < 1_000_000


def test_the_same_comparison_gives_the_same_page(tmp_path):
    path = write_compare_page(tmp_path / "report.html", made(tmp_path))
    assert path.read_text(encoding="utf-8") == compare_page(made(tmp_path))


def test_names_cannot_smuggle_markup_into_the_page(tmp_path):
    def hostile(run):
        summary = replace(run.run.summary, data="<script>alert(1)</script>")
        return replace(run, run=Run(summary, run.run.lines))

    text = compare_page(made(tmp_path, change=hostile))
    assert "<script>alert" not in text
    assert "&lt;label 0&gt;" in text
    assert "<label" not in text


def test_every_cell_that_can_be_sorted_has_a_key(tmp_path):
    text = compare_page(made(tmp_path))
    table = text[text.index('<table class="sortable">') : text.index("</table>")]
    rows = re.findall(r"<tr[^>]*>(<th data-key.*?)</tr>", table)
    assert len(rows) == 4
    for row in rows:
        cells = re.findall(r'<t[hd] data-key="([^"]*)">', row)
        assert len(cells) == len(re.findall(r"<t[hd]", row)) == 12
        assert all(re.fullmatch(r"|-?[\d.e+-]+", cell) for cell in cells[1:])


def test_the_table_says_what_the_runs_say(tmp_path):
    found = made(tmp_path)
    fast = found.rows[1]
    assert fast.levels["train_loss"] == 0.02
    assert fast.levels["share_scoring"] == pytest.approx(0.2)
    assert [cell.text for cell in levels(found, fast)][:7] == [
        *("fast", "3", "100", "3,200", "0", "0.02", "2.00 %"),
    ]
    estimate = fast.estimates["train_loss"]
    assert estimate is not None
    logs = np.log(np.array(LOSSES["fast"]) / np.array(LOSSES["uniform"]))
    assert estimate.value == pytest.approx(np.exp(logs.mean()))
    half = 4.302652730 * logs.std(ddof=1) / np.sqrt(3)
    assert (estimate.low, estimate.high) == pytest.approx(
        (np.exp(logs.mean() - half), np.exp(logs.mean() + half))
    )
    assert fast.reached == {"seconds_to_train_loss": 3, "seconds_to_test_error": 3}
    assert found.rows[2].reached["seconds_to_train_loss"] == 1
    text = [cell.text for cell in levels(found, found.rows[2])]
    assert text[7].endswith(" s (1 of 3)")
    assert ratios(found, found.rows[2])[3].text == "-"
    assert ratios(found, found.rows[0])[1].text == "reference"


def test_the_plain_table_is_aligned_and_has_its_notes_below(tmp_path):
    text = as_text(made(tmp_path))
    above, below, notes = text.split("\n\n")
    for part in (above, below):
        rows = part.splitlines()
        assert len(rows) == 6
        assert len({row.rindex(" ") for row in rows[2:3]}) == 1
        assert max(map(len, rows)) < 140
    assert "with 95 % t intervals" in notes.replace("\n", " ")
    assert max(map(len, notes.splitlines())) <= 100


def test_a_target_that_was_never_reached_says_so(tmp_path):
    def worse(run):
        return measured(run.arm, run.seed, 0.5) if run.arm == "slow" else run

    found = made(tmp_path, change=worse)
    assert levels(found, found.rows[2])[7].text == "not reached"


def busy(run):
    return replace(run, machine=Machine(1.0, 2.0, 0.2)) if run.seed == 1 else run


def test_contended_runs_are_marked_and_named_once(tmp_path):
    found = made(tmp_path, change=busy)
    assert [row.contended for row in found.rows] == [1, 1, 1, 1]
    assert levels(found, found.rows[0])[1].text == "3 (1 contended)"
    named = [note for note in found.notes if note.startswith("contended: ")]
    assert len(named) == 1
    assert all(f"{arm} seed 1" in named[0] for arm in LOSSES)
    page = compare_page(found)
    assert page.count(">contended</td>") == 4
    assert "their seconds count for no claim" in verdict(found)


def test_counted_cost_is_not_contended(tmp_path):
    found = made(tmp_path, change=busy, common=("--clock=virtual",))
    assert found.virtual
    assert levels(found, found.rows[0])[1].text == "3"
    assert found.notes == []
    assert ">contended<" not in compare_page(found)
    assert as_json(found)["runs"][5]["contended"] is True


def test_a_load_that_was_not_measured_is_said(tmp_path):
    found = made(tmp_path, change=lambda run: replace(run, machine=None))
    assert list(found.notes) == ["load unknown: it was not measured in 12 of 12 runs."]


def test_failures_and_arms_without_any_run_are_shown(tmp_path):
    def fail(run):
        failed = replace(run, run=None, error="the loss <is> nan")
        return failed if run.arm == "fast" else run

    found = made(tmp_path, change=fail)
    assert levels(found, found.rows[1])[1].text == "0 (3 failed)"
    page = compare_page(found)
    assert "the loss &lt;is&gt; nan" in page
    assert "fast" not in svg(figures.times, found)


def test_nothing_at_all_is_still_a_page(tmp_path):
    found = compared(Plan(ARMS, seeds=2), [], tmp_path, (), ())
    assert Elements(compare_page(found)).open == []
    assert "uniform against 2 others" in compare_page(found)
    assert as_text(found).startswith("arm")


def test_the_sentence_names_what_differs_and_what_to_keep_in_mind(tmp_path):
    sentence = verdict(made(tmp_path))
    assert sentence.startswith("3 arms with 3 seeds each, budget 10s. Training loss: lower than")
    assert "with uniform for fast (0.199 [" in sentence
    assert "Test error: no arm differs from uniform by more than its interval." in sentence
    assert "not corrected for the number of arms" in sentence
    assert "uniform against itself has a training loss of 1.0" in sentence
    assert "which contains 1, as it should be" in sentence
    assert "nothing can be claimed" in verdict(made(tmp_path, seeds=1))


def test_an_aa_pair_that_differs_is_a_warning(tmp_path):
    def off(run):
        moved = run.arm == "uniform-again"
        return measured(run.arm, run.seed, 5 * LOSSES["uniform"][run.seed]) if moved else run

    assert "does not contain 1, so read everything with suspicion" in verdict(
        made(tmp_path, change=off)
    )


def test_intervals_in_words():
    estimate = Estimate("difference", -0.01, -0.02, 0.001, (-0.01,))
    assert estimate_in_words(estimate) == "-0.01 [-0.02, 0.001] (difference)"
    assert clear(estimate) == 0
    assert clear(replace(estimate, high=-0.001)) == -1
    assert clear(Estimate("ratio", 2.0, 1.1, 3.0, (2.0,))) == 1
    assert estimate_in_words(Estimate("ratio", 1e29, 0.05, 12.0, ())) == "1e+29 [0.05, 12]"


def test_a_difference_has_a_panel_of_its_own(tmp_path):
    def perfect(run):
        zero = run.arm == "fast" and run.seed == 0
        return measured(
            run.arm, run.seed, LOSSES[run.arm][run.seed], test_error=0.0 if zero else 0.02
        )

    found = made(tmp_path, change=perfect)
    assert ("test_error", "difference") in figures.measured(found)
    assert "minus that of uniform" in svg(figures.forest, found)


def slow_band(runs, at, key):
    """Every curve at one moment, by walking along its evaluations."""
    values = []
    for run in runs:
        points = [(line["seconds"], line[key]) for line in run.of_kind("eval")]
        for (x0, y0), (x1, y1) in pairwise(points):
            if x0 <= at <= x1:
                values.append(y0 + (y1 - y0) * (at - x0) / (x1 - x0))
                break
    return min(values), sorted(values)[len(values) // 2], max(values)


def test_a_band_is_the_median_between_the_extremes(tmp_path):
    runs = made(tmp_path).of("fast")
    found = figures.band(runs, "seconds", "train_loss")
    assert found is not None
    for place in (0, 17, 60, 119):
        low, middle, high = slow_band(runs, found.across[place], "train_loss")
        assert (found.low[place], found.middle[place], found.high[place]) == pytest.approx(
            (low, middle, high)
        )
    assert figures.band([], "seconds", "train_loss") is None


def test_examples_are_read_off_the_lines_of_training(tmp_path):
    run = made(tmp_path).of("fast")[0]
    across, _ = figures.curve_of(run, "trained", "train_loss")
    assert across[:3].tolist() == pytest.approx([0, 320, 640])
    assert across[-1] == 3200


def test_where_arms_outnumber_the_colours_the_best_have_one_each(tmp_path):
    names = [f"arm-{place}" for place in range(9)]
    arms = (ARMS[0], *(Arm(name, ()) for name in names))
    losses = dict(zip(names, (0.5, 0.1, 0.2, 0.9, 0.3, 0.8, 0.4, 0.15, float("nan")), strict=True))
    plan = Plan(arms, seeds=1)
    runs = [measured(job.arm, job.seed, losses.get(job.arm, 0.6)) for job in plan.jobs()]
    found = compared(plan, runs, tmp_path, (), ())
    chosen = colours(found)
    assert list(chosen) == ["uniform", *names]
    assert [name for name in names if chosen[name] == REST] == ["arm-3", "arm-5", "arm-8"]
    assert len(set(chosen.values())) == 8
    (legend,) = figures.curves(found).legends
    named = ["uniform", *(name for name in names if chosen[name] != REST), "3 others"]
    assert [text.get_text() for text in legend.get_texts()] == named


def test_time_splits_add_up(tmp_path):
    assert figures.split(made(tmp_path).of("fast")) == pytest.approx(
        {"loading": 1.0, "scoring": 2.0, "training": 6.0, "other": 1.0}
    )


@given(arrays(np.uint8, st.sampled_from([(1, 1), (5, 3), (4, 6, 3)])))
def test_a_png_is_read_back_as_it_was(pixels):
    found = matplotlib.image.imread(io.BytesIO(png(pixels)), format="png")
    assert np.array_equal(np.round(found * 255).astype(np.uint8), pixels)


def test_flat_and_colour_images_become_pixels():
    assert as_pixels(np.full((1, 2, 2), 7.0, dtype=np.float32)).tolist() == [[0, 0], [0, 0]]
    assert as_pixels(np.zeros((3, 4, 5), dtype=np.float32)).shape == (4, 5, 3)


def test_the_gallery_shows_the_extremes(tmp_path):
    text = gallery(picks())
    titles = re.findall("<h4>(.*?)</h4>", text)
    assert titles == ["Largest scores", "Smallest scores", "Most drawn", "Least drawn"]
    strips = [re.findall('alt="example (\\d+),', strip) for strip in text.split("<h4>")[1:]]
    highest, lowest = list(range(39, 27, -1)), list(range(12))
    assert [list(map(int, strip)) for strip in strips] == [highest, lowest, highest, lowest]
    first = re.search('base64,([^"]*)', text)
    assert first is not None
    shown = matplotlib.image.imread(io.BytesIO(base64.b64decode(first[1])), format="png")
    assert shown.shape == (4, 4)
    assert "drawn 0 to 39 times, 19.5 on average; 1 (2.5 %) never." in text


def test_even_draws_and_rows_have_no_images_and_no_draws():
    text = gallery(picks(images=False, even=True))
    assert re.findall("<h4>(.*?)</h4>", text) == ["Largest scores", "Smallest scores"]
    assert "<img" not in text
    assert "<code>&lt;label 0&gt;</code>" in text


def test_biased_arms_are_marked_in_the_table_and_on_the_page(tmp_path):
    flags = {"uniform": "--recipe uniform", "fast": "--recipe=infobatch", "slow": "--recipe gasgd"}
    plan = Plan(tuple(Arm(name, tuple(words.split())) for name, words in flags.items()), seeds=2)
    runs = [measured(job.arm, job.seed, LOSSES[job.arm][job.seed]) for job in plan.jobs()]
    found = compared(plan, runs, tmp_path, (), ())
    assert list(found.biased) == ["fast"]
    text, page = as_text(found), compare_page(found)
    assert text.count("fast (biased)") == page.count("fast (biased)</th>") == 2
    assert "(biased): the recipe's weights do not undo its choice" in " ".join(text.split())
    assert "weights do not undo its choice" in page
    assert "biased" not in as_text(made(tmp_path))
