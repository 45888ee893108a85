"""Running a comparison: what is kept, redone, refused; and what it cost the machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from comparisons import QUIET, SUMMARY, WrittenChildren, picks, write_run
from gradsift.comparison import execute
from gradsift.comparison.arms import Arm, again
from gradsift.comparison.child import KEEPING_MEMORY, Children, Ended, command_of
from gradsift.comparison.execute import AbstractWatcher, compare
from gradsift.comparison.folder import check_folder, look, move_aside
from gradsift.comparison.machine import Reading, between, parse_stat, read_machine, read_meters
from gradsift.comparison.plan import Grid, Plan
from gradsift.errors import DataError, TrainingError, UsageError
from gradsift.report.compared import Machine
from gradsift.report.picks import read_picks, write_picks

ARMS = (Arm("a", ("--lr", "1")), Arm("b", ("--lr", "2")))
PLAN = Plan(ARMS, seeds=2, common=("--budget", "10s"))


class Noting(AbstractWatcher):
    def __init__(self):
        self.heard_lines, self.story = [], []

    def started(self, job, number, total):
        self.story.append(f"start {job.arm} {job.seed} ({number}/{total})")

    def heard(self, line):
        self.heard_lines.append(line)

    def ended(self, job, state, measured):
        self.story.append(f"{state} {job.arm} {job.seed}")


@pytest.fixture
def written(monkeypatch):
    """Runs are written instead of run, by this stand-in."""
    children = WrittenChildren()
    monkeypatch.setattr(execute, "Children", children)
    return children


def arms_run(children):
    return [Path(call[-1]).parent.name for call in children.calls]


def test_everything_runs_once_in_order_and_is_summed_up(tmp_path, written):
    watcher = Noting()
    outcome = compare(PLAN, tmp_path / "o", watcher)
    assert arms_run(written) == ["a", "b", "b", "a"]
    assert watcher.story[:4] == [
        "start a 0 (1/4)",
        "complete a 0",
        "start b 0 (2/4)",
        "complete b 0",
    ]
    assert watcher.heard_lines == ["  50 %     5.0 s  step      50"] * 4
    assert (outcome.interrupted, outcome.failed) == (False, False)
    content = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert list(content) == ["runs", "table"]
    assert [(run["arm"], run["seed"], run["status"]) for run in content["runs"]] == [
        *[("a", 0, "complete"), ("b", 0, "complete")],
        *[("b", 1, "complete"), ("a", 1, "complete")],
    ]
    assert content["runs"][0]["summary"] == json.loads(
        (tmp_path / "o" / "a" / "seed-0" / "summary.json").read_text()
    )


def test_the_schema_of_a_comparison_is_frozen(tmp_path, written):
    compare(PLAN, tmp_path / "o", Noting())
    content = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert list(content["runs"][0]) == [
        *("arm", "seed", "folder", "status", "error", "cpu_seconds", "wall_seconds"),
        *("foreign_cpu", "contended", "seconds_to_train_loss", "seconds_to_test_error", "summary"),
    ]
    assert list(content["table"][0]) == [
        *("arm", "complete", "failed", "contended", "steps", "examples_trained"),
        *("examples_scored", "train_loss", "test_error", "seconds_to_train_loss"),
        *("seconds_to_test_error", "share_loading", "share_scoring", "share_training", "reached"),
        "against_reference",
    ]
    estimate = content["table"][1]["against_reference"]["train_loss"]
    assert list(estimate) == ["kind", "value", "low", "high", "each"]
    assert list(json.loads((tmp_path / "o" / "a" / "seed-0" / "machine.json").read_text())) == [
        *("command", "status", "error", "cpu_seconds", "wall_seconds", "foreign_cpu", "contended"),
    ]


def test_complete_runs_are_kept_wherever_the_folder_is_now(tmp_path, written, monkeypatch):
    compare(PLAN, tmp_path / "o", Noting())
    (tmp_path / "o").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    watcher = Noting()
    outcome = compare(PLAN, Path("moved"), watcher)
    assert len(written.calls) == 4
    assert watcher.story == ["complete a 0", "complete b 0", "complete b 1", "complete a 1"]
    assert len(outcome.compared.runs) == 4


def test_more_seeds_and_arms_add_to_what_is_there(tmp_path, written):
    compare(PLAN, tmp_path / "o", Noting())
    more = replace(PLAN, seeds=3, arms=(*ARMS, Arm("c", ("--lr", "3"))))
    outcome = compare(more, tmp_path / "o", Noting())
    assert len(written.calls) == 9
    assert [row.complete for row in outcome.compared.rows] == [3, 3, 3]


@pytest.mark.parametrize("common", [(), ("--budget", "20s"), ("--budget", "10s", "--norm", "x")])
def test_another_command_in_the_same_folder_is_refused_before_anything_runs(
    tmp_path, written, common
):
    compare(PLAN, tmp_path / "o", Noting())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="holds another run: it came of 'gradsift train --budget"):
        compare(replace(PLAN, common=common), tmp_path / "o", Noting())
    assert len(written.calls) == 4
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("broken", ["no summary", "half a summary", "interrupted"])
def test_a_half_finished_run_is_moved_aside_and_run_again(tmp_path, written, broken):
    compare(PLAN, tmp_path / "o", Noting())
    folder = tmp_path / "o" / "b" / "seed-1"
    if broken == "no summary":
        (folder / "summary.json").unlink()
    elif broken == "half a summary":
        (folder / "summary.json").write_text('{"recipe": "unif')
    else:
        shutil.rmtree(folder)
        job = PLAN.jobs()[2]
        command = command_of([*job.arguments, "--out", str(folder)])
        write_run(folder, replace(SUMMARY, command=command), interrupted=True)
    outcome = compare(PLAN, tmp_path / "o", Noting())
    assert len(written.calls) == 5
    assert len(outcome.compared.runs) == 4
    aside = tmp_path / "o" / "b" / "seed-1.unfinished-1"
    assert (aside / "metrics.jsonl").exists()


def test_runs_set_aside_never_replace_each_other(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / "seed-0").mkdir()
        assert move_aside(tmp_path / "seed-0").name == f"seed-0.unfinished-{number}"


def test_ctrl_c_keeps_what_there_is_and_the_next_call_resumes(tmp_path, written):
    written.stop_at = 2
    watcher = Noting()
    outcome = compare(PLAN, tmp_path / "o", watcher)
    assert outcome.interrupted
    assert watcher.story == ["start a 0 (1/4)", "complete a 0", "start b 0 (2/4)"]
    assert [run.arm for run in outcome.compared.runs] == ["a"]
    assert len(json.loads((tmp_path / "o" / "summary.json").read_text())["runs"]) == 1
    written.stop_at, written.interrupted = None, False
    outcome = compare(PLAN, tmp_path / "o", Noting())
    assert arms_run(written) == ["a", "b", "b", "b", "a"]
    assert [row.complete for row in outcome.compared.rows] == [2, 2]


def fail_b(arguments):
    return Ended(1, "the loss of step 3 is nan", QUIET) if "2" in arguments[:6] else {}


def test_a_failed_run_stays_in_the_table_and_the_rest_goes_on(tmp_path, written):
    written.outcome = fail_b
    compare(PLAN, tmp_path / "o", Noting())
    outcome = compare(PLAN, tmp_path / "o", Noting())
    assert outcome.failed
    assert [(row.complete, row.failed) for row in outcome.compared.rows] == [(2, 0), (0, 2)]
    assert len(written.calls) == 4
    assert "failed: b seed 0 (the loss of step 3 is nan); b seed 1" in outcome.compared.notes[0]
    failed = json.loads((tmp_path / "o" / "summary.json").read_text())["runs"][1]
    assert (failed["status"], failed["summary"]) == ("failed", None)
    assert set(outcome.compared.rows[1].levels.values()) == {None}
    with pytest.raises(UsageError, match="holds another run"):
        compare(replace(PLAN, common=()), tmp_path / "o", Noting())


def test_a_run_that_refuses_its_flags_stops_everything(tmp_path, written):
    written.outcome = lambda arguments: Ended(2, "data set 'mnits' is unknown", QUIET)
    with pytest.raises(UsageError, match="arm 'a': data set 'mnits' is unknown"):
        compare(PLAN, tmp_path / "o", Noting())
    assert not (tmp_path / "o").exists()


def tuned_loss(arguments):
    """Best at learning rate 0.3; none at 9."""
    rate = float(arguments[arguments.index("--lr") + 1])
    if rate == 9:
        return Ended(1, "not finite", QUIET)
    return {"train_loss": 0.1 + abs(rate - 0.3)}


def test_the_grid_tunes_the_reference_and_the_others_take_its_value(tmp_path, written):
    written.outcome = tuned_loss
    arms = (Arm("a", ()), Arm("b", ("--lr", "0.5")), Arm("c", ("--norm", "x")))
    plan = Plan(arms, seeds=1, grid=Grid("--lr", ("0.1", "0.3", "9")))
    outcome = compare(plan, tmp_path / "o", Noting())
    assert [call[1:3] for call in written.calls[:3]] == [
        ["--lr", value] for value in ("0.1", "0.3", "9")
    ]
    assert [call[1:-4] for call in written.calls[3:]] == [
        ["--lr", "0.3"],
        ["--lr", "0.3", "--lr", "0.5"],
        ["--lr", "0.3", "--norm", "x"],
    ]
    note = outcome.compared.notes[0]
    assert note.startswith("tuned: lr 0.3 for a, by its training loss on a seed that is not comp")
    assert "(0.1: 0.3, 0.3: 0.1)" in note
    assert "end of the grid" not in note
    assert [run.arm for run in outcome.compared.runs] == ["a", "b", "c"]
    compare(plan, tmp_path / "o", Noting())
    assert len(written.calls) == 6


def test_a_best_value_at_the_end_of_the_grid_is_said(tmp_path, written):
    written.outcome = tuned_loss
    plan = Plan((Arm("a", ()),), seeds=1, grid=Grid("--lr", ("0.1", "0.2")))
    assert "the best may lie beyond" in compare(plan, tmp_path, Noting()).compared.notes[0]


def test_a_grid_of_failures_is_an_error(tmp_path, written):
    written.outcome = lambda arguments: Ended(1, "not finite", QUIET)
    plan = Plan((Arm("a", ()),), seeds=1, grid=Grid("--lr", ("1", "2")))
    with pytest.raises(TrainingError, match="'a' failed with every lr of the grid"):
        compare(plan, tmp_path / "o", Noting())


def test_the_second_time_of_the_reference_has_other_seeds(tmp_path, written):
    compare(Plan((ARMS[0], again(ARMS[0])), seeds=1), tmp_path, Noting())
    assert [call[call.index("--seed") + 1] for call in written.calls] == ["0", "2000000"]


@pytest.mark.parametrize("content", ["metrics.jsonl", "summary.json", "precious/notes.txt"])
def test_a_folder_that_is_no_comparison_is_refused(tmp_path, content):
    path = tmp_path / "o" / content
    path.parent.mkdir(parents=True)
    path.touch()
    if content == "summary.json":
        (path.parent / "metrics.jsonl").touch()
    with pytest.raises(UsageError, match="is no comparison"):
        check_folder(tmp_path / "o", PLAN)
    with pytest.raises(UsageError, match="is a file"):
        check_folder(path, PLAN)


def test_a_folder_of_a_comparison_that_was_killed_is_accepted(tmp_path):
    (tmp_path / "a" / "seed-0").mkdir(parents=True)
    (tmp_path / "tuning").mkdir()
    check_folder(tmp_path, PLAN)
    assert look(tmp_path, PLAN.jobs()[0]) == ("absent", None)
    (tmp_path / "a" / "seed-0" / "metrics.jsonl").touch()
    assert look(tmp_path, PLAN.jobs()[0]) == ("unfinished", None)


STAT = "cpu  100 10 50 800 40 5 5 30 7 0\ncpu0 1 2\ncpu1 1 2\nintr 5\n"


def test_busy_seconds_leave_out_idle_and_waiting(tmp_path):
    (tmp_path / "stat").write_text(STAT)
    busy, cores = parse_stat(tmp_path / "stat")
    assert (busy, cores) == (200 / os.sysconf("SC_CLK_TCK"), 2)
    for text in ("", "cpu\n", "cpu 0 0 0 0 0 0\n", "nonsense x y\n"):
        (tmp_path / "stat").write_text(text)
        assert parse_stat(tmp_path / "stat")[0] is None
    assert parse_stat(tmp_path / "missing")[0] is None


def test_the_foreign_share_leaves_out_the_run_and_the_comparison():
    start = Reading(wall=0, children=5, own=1, busy=100, cores=4)
    end = Reading(wall=10, children=17, own=2, busy=121, cores=4)
    found = between(start, end)
    assert (found.cpu_seconds, found.wall_seconds) == (12, 10)
    assert found.foreign_cpu == pytest.approx(8 / 40)
    assert between(start, replace(end, busy=105)).foreign_cpu == 0
    assert between(start, replace(end, busy=None)).foreign_cpu is None
    assert between(start, replace(end, wall=0)).foreign_cpu is None


@pytest.mark.parametrize(("share", "expected"), [(None, False), (0.05, False), (0.051, True)])
def test_contention_starts_above_five_percent(share, expected):
    assert Machine(1, 1, share).contended is expected


def test_a_process_is_measured_heard_and_its_last_words_kept():
    heard = []
    with Children() as children:
        ended = children.run(["--version"], heard.append)
    assert (ended.status, ended.message) == (0, "it ended with status 0")
    assert heard[0].startswith("gradsift ")
    assert 0 < ended.machine.cpu_seconds < 60
    assert ended.machine.wall_seconds > 0


@pytest.mark.parametrize("own", [None, "7"])
def test_a_process_keeps_its_memory_unless_told_otherwise(own, monkeypatch):
    if own is not None:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", own)
    code = (
        "import os; print(*(os.environ[name] for name in sorted(os.environ) if 'MALLOC_' in name))"
    )
    monkeypatch.setattr(sys, "executable", fake_python(code, monkeypatch))
    heard = []
    with Children() as children:
        children.run(["train"], heard.append)
    expected = {**KEEPING_MEMORY, **({} if own is None else {"MALLOC_TRIM_THRESHOLD_": own})}
    assert heard == [" ".join(expected[name] for name in sorted(expected))]


def test_a_process_that_is_refused_says_so_without_the_programs_name(monkeypatch):
    code = "import sys, os; sys.stderr.write('noise\\ngradsift: error: no\\n'); os._exit(2)"
    monkeypatch.setattr(sys, "executable", fake_python(code, monkeypatch))
    with Children() as children:
        ended = children.run(["train"], print)
    assert (ended.status, ended.message) == (2, "no")


def test_a_process_that_is_killed_names_the_signal(monkeypatch):
    code = "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setattr(sys, "executable", fake_python(code, monkeypatch))
    with Children() as children:
        ended = children.run(["train"], print)
    assert (ended.status, ended.message) == (-9, "it was ended by signal 9 (SIGKILL)")


def test_a_child_goes_with_its_parent(monkeypatch):
    """An exception here, or SIGTERM, leaves no process behind."""
    code = "print('here', flush=True); import time; time.sleep(100)"
    monkeypatch.setattr(sys, "executable", fake_python(code, monkeypatch))
    started, spawned = subprocess.Popen, []

    def spawn(*arguments, **options):
        spawned.append(started(*arguments, **options))
        return spawned[-1]

    monkeypatch.setattr(subprocess, "Popen", spawn)

    def terminate(line):
        os.kill(os.getpid(), 15)
        time.sleep(10)

    with pytest.raises(SystemExit) as caught, Children() as children:
        children.run(["train"], terminate)
    assert caught.value.code == 143
    assert spawned[0].returncode == -9


def fake_python(code, monkeypatch):
    """A program that takes the place of Python: it runs `code`, whatever its arguments are."""
    monkeypatch.setenv("GRADSIFT_TEST_CODE", code)
    path = Path(os.environ["PYTEST_CURRENT_TEST_FOLDER"]) / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "$GRADSIFT_TEST_CODE"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(autouse=True)
def _folder_of_the_test(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_CURRENT_TEST_FOLDER", str(tmp_path))


def test_broken_notes_on_the_machine_are_none(tmp_path):
    assert read_machine(tmp_path) is None
    for text in ("", "[]", '{"status": "failed"}'):
        (tmp_path / "machine.json").write_text(text)
        assert read_machine(tmp_path) is None


def test_meters_run_forwards():
    first, second = read_meters(), read_meters()
    assert second.wall >= first.wall
    assert second.own >= first.own


def test_picks_survive_their_file_and_broken_ones_are_named(tmp_path):
    assert read_picks(tmp_path) is None
    path = write_picks(tmp_path, picks())
    found = read_picks(tmp_path)
    assert found is not None
    assert found.extremes(2)["high"].tolist() == [39, 38]
    assert found.inputs.shape == (40, 1, 4, 4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["picks.npz"]
    for content in (b"", b"PK\x03\x04 broken", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"picks\.npz"):
            read_picks(tmp_path)
