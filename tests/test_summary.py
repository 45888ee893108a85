"""What a run writes: both schemas, frozen, and a summary that is whole or not there."""

import json
import math
import re
from dataclasses import asdict, replace

import pytest

from gradsift.budget import Budget
from gradsift.clock import VirtualClock
from gradsift.data.digits import digits
from gradsift.errors import DataError
from gradsift.report import Summary, read_summary, versions, write_summary
from gradsift.report.runs import Run, pairs, read_run
from gradsift.trainer import Settings, run

FIELDS = [
    *("recipe", "data", "model", "seed", "steps", "examples_trained", "examples_scored"),
    *("seconds_total", "seconds_loading", "seconds_scoring", "seconds_training"),
    *("seconds_evaluating", "train_loss", "train_error", "test_loss", "test_error"),
    *("gate", "engine", "versions", "command"),
]

EXAMPLE = Summary(
    recipe="pool",
    data="digits",
    model="mlp",
    seed=0,
    steps=10,
    examples_trained=640,
    examples_scored=1920,
    seconds_total=1.5,
    seconds_loading=0.25,
    seconds_scoring=0.5,
    seconds_training=0.75,
    seconds_evaluating=0.1,
    train_loss=0.1,
    train_error=0.01,
    test_loss=0.2,
    test_error=0.02,
    gate=None,
    engine=None,
    versions={"gradsift": "0.1.0", "torch": "2.13.0", "python": "3.11.0"},
    command="gradsift train",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run of the published recipe on real data, with all its files."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    chosen = Settings(recipe="katharopoulos2018", budget=Budget("steps", 30), batch_size=32)
    run(digits(), chosen, out=out, clock=VirtualClock(), command="gradsift train --seed 0")
    return out


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_fields_of_a_summary_are_frozen(finished):
    written = json.loads((finished / "summary.json").read_text())
    assert list(written) == FIELDS
    assert list(written["versions"]) == ["gradsift", "torch", "python"]
    assert sorted(written["gate"]) == ["opened_at_step", "reason", "state"]
    assert written["gate"]["state"] in ("on", "off")
    assert written["engine"] is None


def test_a_summary_says_what_was_asked_for(finished):
    written = read_summary(finished)
    found = (written.recipe, written.data, written.model, written.seed, written.command)
    assert found == ("katharopoulos2018", "digits", "mlp", 0, "gradsift train --seed 0")
    assert (written.steps, written.examples_trained) == (30, 30 * 32)
    parts = written.seconds_loading + written.seconds_scoring + written.seconds_training
    assert parts == pytest.approx(written.seconds_total)


def test_every_line_of_measurements_has_kind_step_and_seconds(finished):
    found = metrics(finished)
    assert {line["kind"] for line in found} <= {"train", "eval", "gate", "event"}
    for line in found:
        assert list(line)[:3] == ["kind", "step", "seconds"]
        assert isinstance(line["step"], int)
        assert line["seconds"] >= 0


def test_the_keys_of_measurements_are_frozen(finished):
    keys = {kind: set() for kind in ("train", "eval", "gate")}
    for line in metrics(finished):
        if line["kind"] in keys:
            keys[line["kind"]].add(tuple(sorted(set(line) - {"kind", "step", "seconds"})))
    assert keys["eval"] == {("test_error", "test_loss", "train_error", "train_loss")}
    train = {"loss", "tau", "drawn", "kappa", "largest_weight", "trained", "scored", "quarantined"}
    assert keys["train"] == {tuple(sorted(train))}
    assert keys["gate"] == {("opened_at_step", "reason", "state", "tau")}


def test_the_events_of_a_run_hold_its_settings_and_its_scores(finished):
    found = read_run(finished)
    settings = found.event("settings")
    assert settings["budget"] == "30steps"
    assert settings["lr"] == 0.05
    assert settings["pool_ratio"] == 3.0
    assert (settings["train_examples"], settings["test_examples"]) == (1442, 355)
    assert settings["parameters"] == 64 * 256 + 256 + 256 * 256 + 256 + 2570
    scores = found.event("scores")
    assert sum(scores["counts"]) + scores["below"] > 0
    assert len(scores["edges"]) == len(scores["counts"]) + 1


def test_a_summary_is_read_as_it_was_written(tmp_path):
    path = write_summary(tmp_path, EXAMPLE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
    assert read_summary(tmp_path) == EXAMPLE
    assert json.loads(path.read_text()) == asdict(EXAMPLE)


def test_a_summary_that_fails_half_way_leaves_the_old_one(tmp_path):
    write_summary(tmp_path, EXAMPLE)
    broken = replace(EXAMPLE, gate={"state": object()})
    with pytest.raises(TypeError):
        write_summary(tmp_path, broken)
    assert read_summary(tmp_path) == EXAMPLE


def test_a_summary_holds_no_number_that_json_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_summary(tmp_path, replace(EXAMPLE, test_loss=math.nan))
    assert not (tmp_path / "summary.json").exists()


def test_versions_are_those_in_use():
    found = versions()
    assert re.match(r"3\.\d+\.\d+", found["python"])
    assert re.match(r"\d+\.\d+", found["torch"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ("[]", "list"),
        ('{"recipe": "pool"}', "command, data"),
        (json.dumps({**asdict(EXAMPLE), "extra": 1}), "extra"),
    ],
)
def test_a_summary_that_is_none_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_summary(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "FileNotFoundError"),
        ('{"kind": "eval", "step": 0, "seconds": 0}\nhello\n', "line 2"),
        ("[]", "line 1"),
        ('{"kind": "eval", "step": 0}', "no kind, step and seconds"),
    ],
)
def test_measurements_that_are_none_are_refused(tmp_path, text, message):
    write_summary(tmp_path, EXAMPLE)
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path)


def test_the_last_event_of_a_name_counts():
    events = [
        {"kind": "event", "step": step, "seconds": 0.0, "name": name, "value": step}
        for step, name in [(1, "a"), (2, "b"), (3, "a")]
    ]
    found = Run(EXAMPLE, [*events, {"kind": "eval", "step": 4, "seconds": 0.0}])
    assert found.event("a") == {"value": 3}
    assert found.event("absent") == {}
    assert [line["step"] for line in found.of_kind("eval")] == [4]


def test_pairs_leave_out_what_was_not_measured():
    lines = [{"x": 1, "y": 0.0}, {"x": 2, "y": None}, {"x": None, "y": 3.0}, {"y": 1.0}]
    assert pairs(lines, "x", "y") == ([1], [0.0])
