"""`gradsift compare`: its flags, its exit status, its one-line errors, what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console

from comparisons import QUIET, SUMMARY, WrittenChildren
from gradsift.cli import entry
from gradsift.cli.app import app
from gradsift.cli.follow import ComparisonBar, run_in_words
from gradsift.comparison import execute
from gradsift.comparison.child import Ended
from gradsift.comparison.plan import Job
from gradsift.report.compared import Machine, Measured
from gradsift.report.runs import Run

FLAGS = [
    *("--recipes", "--arm", "--seeds", "--reference", "--grid", "--aa", "--file", "--out"),
]
VARIANCE = ["--variance", "--checkpoints", "--repeats"]
TWO = ("compare", "--recipes", "uniform,pool", "--budget", "12steps", "--clock", "virtual")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Every command runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def written(monkeypatch):
    """Runs are written instead of run, by this stand-in."""
    children = WrittenChildren()
    monkeypatch.setattr(execute, "Children", children)
    return children


def test_the_flags_of_compare_are_frozen():
    command = typer.main.get_command(app).commands["compare"]  # pyright: ignore[reportAttributeAccessIssue]
    assert [option for parameter in command.params for option in parameter.opts] == [
        "flags",
        *FLAGS,
        *VARIANCE,
    ]


@pytest.mark.slow
def test_recipes_of_parallel_sgd_are_arms_too(workplace):
    """Replays are on top of the steps that were asked for, and no seconds are loading."""
    flags = [*("--budget", "30steps", "--clock", "virtual", "--seeds", "1", "--out", "o")]
    late = "late: --recipe asgd --delay constant:3 --compensation age+replay --average 0.5"
    assert entry.main(["compare", "--recipes", "uniform,gasgd", "--arm", late, *flags]) == 0
    found = json.loads((workplace / "o" / "summary.json").read_text())
    steps = {run["arm"]: run["summary"]["steps"] for run in found["runs"]}
    assert steps["uniform"] == 30 < min(steps["gasgd"], steps["late"])
    assert (workplace / "o" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipes", "uniform,gasdg"], "recipe 'gasdg' is unknown, expected one of auto"),
        (["--recipes", "gasdg"], "or of ssgd, ssgd-last, asgd"),
        (["--arm", "a: --recipe asgd --workers 0"], "arm 'a': 0 workers received"),
        (["--arm", "a: --recipe pool --delay constant:9"], "arm 'a': --delay received, but"),
        (["--recipes", "uniform,asgd", "--budget", "5s"], "arm 'asgd': budget 5s received, but"),
    ],
)
def test_workers_that_cannot_be_are_refused_before_anything_runs(words, said, workplace, capsys):
    assert entry.main(["compare", "--budget", "30steps", *words, "--out", "o"]) == 2
    assert said in capsys.readouterr().err
    assert not (workplace / "o").exists()


def test_a_real_comparison_writes_everything_and_a_second_call_runs_nothing(workplace, capsys):
    """Two arms of real processes; --clock virtual, so the numbers repeat."""
    command = [*TWO, "--seeds", "1", "--model", "linear", "--out", "o"]
    assert entry.main(command) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "run 2 of 2: pool, seed 0" in printed.out
    assert "One seed: no intervals" in printed.out
    content = json.loads((workplace / "o" / "summary.json").read_text())
    steps = [run["summary"]["steps"] for run in content["runs"]]
    assert steps == [12, 12]
    assert [run["summary"]["examples_scored"] for run in content["runs"]] == [0, 12 * 192]
    assert content["runs"][0]["seconds_to_train_loss"] <= 11 * 64 * 3e-4 * (1 + 1e-9)
    assert content["runs"][0]["cpu_seconds"] > 0.1
    files = [path.name for path in sorted((workplace / "o" / "pool" / "seed-0").iterdir())]
    assert files == [
        *(
            "history.npz",
            "machine.json",
            "metrics.jsonl",
            "picks.npz",
            "report.html",
            "summary.json",
        ),
    ]
    page = (workplace / "o" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "linear on digits" in page
    assert entry.main(command) == 0
    again = capsys.readouterr().out
    assert "run 1 of" not in again
    assert json.loads((workplace / "o" / "summary.json").read_text()) == content


@pytest.mark.slow
def test_ctrl_c_reaches_the_run_and_the_next_call_moves_it_aside(workplace):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gradsift.cli", "compare", "--recipes", "uniform"]
    command += ["--seeds", "1", "--budget", "600s", "--model", "linear", "--out", "o"]
    folder = workplace / "o" / "uniform" / "seed-0"
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "run 1 of 1: uniform, seed 0\n"
        while not (folder / "metrics.jsonl").exists() and process.poll() is None:
            signal.sigtimedwait([], 0.1)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "report: " in printed
    assert json.loads((folder / "summary.json").read_text())["seconds_total"] < 600
    assert json.loads((workplace / "o" / "summary.json").read_text())["runs"] == []


def test_every_flag_reaches_the_comparison(workplace, capsys, written):
    (workplace / "c.toml").write_text('seeds = 9\n[train]\nmodel = "linear"\n')
    flags = ["--recipes", "uniform", "--arm", "slow: --recipe uniform --lr 0.5", "--seeds", "2"]
    flags += ["--reference", "slow", "--grid", "batch-size=8,16", "--aa", "--file", "c.toml"]
    flags += ["--out", "o"]
    assert [word for word in flags if word.startswith("--")] == FLAGS
    assert entry.main(["compare", *flags, "--schedule=constant"]) == 0
    calls = [" ".join(call) for call in written.calls]
    common = "train --model linear --schedule=constant --batch-size"
    assert calls[0] == (
        f"{common} 8 --recipe uniform --lr 0.5 --seed 1000000 --out o/tuning/value-8"
    )
    assert calls[2:5] == [
        f"{common} 8 --recipe uniform --seed 0 --out o/uniform/seed-0",
        f"{common} 8 --recipe uniform --lr 0.5 --seed 0 --out o/slow/seed-0",
        f"{common} 8 --recipe uniform --lr 0.5 --seed 2000000 --out o/slow-again/seed-0",
    ]
    assert len(calls) == 2 + 2 * 3
    assert "against slow" in capsys.readouterr().out


def test_a_failed_run_is_status_one_and_the_table_is_there(workplace, capsys, written):
    failure = Ended(1, "the loss of step 3 is nan", QUIET)
    written.outcome = lambda arguments: failure if "pool" in arguments else {}
    assert entry.main([*TWO, "--out", "o"]) == 1
    printed = capsys.readouterr()
    assert "pool, seed 0: failed: the loss of step 3 is nan" in printed.out
    assert "0 (3 failed)" in printed.out
    assert (workplace / "o" / "report.html").exists()


def test_ctrl_c_is_status_130_with_the_table_of_what_there_is(workplace, capsys, written):
    written.stop_at = 2
    assert entry.main([*TWO, "--out", "o"]) == 130
    assert "report: o/report.html" in capsys.readouterr().out


BAD = [
    ([], "nothing to compare"),
    (["--recipes", "uniform,best"], "recipe 'best' is unknown"),
    (["--recipes", "uniform"], "give --out"),
    (["--recipes", "uniform,uniform", "--out", "o"], "'uniform' is there twice"),
    (["--recipes", "uniform", "--seeds", "0", "--out", "o"], "seeds 0"),
    (["--recipes", "uniform", "--seeds", "x", "--out", "o"], "--seeds"),
    (["--recipes", "uniform", "--seed", "1", "--out", "o"], "--seed received"),
    (["--recipes", "uniform", "--lrr", "1", "--out", "o"], "No such option"),
    (["--recipes", "uniform", "stray", "--out", "o"], "stray"),
    (["--recipes", "uniform", "--lr", "nan", "--out", "o"], "arm 'uniform': lr nan"),
    (["--recipes", "uniform", "--budget", "-3s", "--out", "o"], "arm 'uniform': '-3s'"),
    (["--recipes", "uniform", "--batch-size", "0", "--out", "o"], "batch size 0"),
    (["--recipes", "uniform", "--recipe", "pool", "--out", "o"], "--recipe received"),
    (["--recipes", "pool,uniform", "--pool-ratio", "2", "--out", "o"], "arm 'uniform': pool ratio"),
    (["--arm", "slow", "--out", "o"], "a colon"),
    (["--arm", "x: --lr 0", "--out", "o"], "arm 'x': lr 0.0"),
    (["--arm", "x: --clock virtual", "--out", "o"], "same for all"),
    (["--recipes", "uniform", "--reference", "b", "--out", "o"], "reference 'b'"),
    (["--recipes", "uniform", "--grid", "lr=1", "--out", "o"], "two values"),
    (["--recipes", "uniform", "--grid", "lr=1,x", "--out", "o"], "--lr"),
    (["--recipes", "uniform", "--grid", "lr=1,-1", "--out", "o"], "lr -1.0"),
    (["--recipes", "uniform", "--file", "none.toml", "--out", "o"], "none.toml"),
    (["--recipes", "uniform", "--device", "cuda:4096", "--out", "o"], "not available"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_wrong_use_is_one_plain_line_and_writes_nothing(
    workplace, capsys, written, arguments, message
):
    assert entry.main(["compare", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gradsift: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert list(workplace.iterdir()) == []
    assert written.calls == []


def test_another_command_in_the_same_folder_is_status_two(workplace, capsys, written):
    assert entry.main([*TWO, "--out", "o"]) == 0
    assert entry.main([*TWO, "--lr", "0.3", "--out", "o"]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_on_a_terminal_there_is_a_bar(workplace, monkeypatch, capsys, written):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert entry.main([*TWO, "--seeds", "1", "--out", "o"]) == 0
    printed = capsys.readouterr().out
    assert "run 1 of" not in printed
    assert "uniform, seed 0: 100 steps" in printed


def test_the_bar_fills_with_runs_and_their_shares():
    text = StringIO()
    with ComparisonBar(Console(file=text, force_terminal=True, width=100)) as bar:
        bar.started(Job("pool", 1, Path(), ()), 2, 4)
        bar.heard(" 50 %     5.0 s  step      50")
        bar.heard("anything else")
        bar.ended(Job("pool", 1, Path(), ()), "unfinished", None)
    shown = text.getvalue()
    assert "2 of 4: pool, seed 1" in shown
    assert "38%" in shown
    assert "pool, seed 1: unfinished" in shown


def test_a_run_in_words():
    job = Job("a", 3, Path(), ())
    measured = Measured("a", 3, "a/seed-3", None, QUIET, Run(SUMMARY, []))
    assert run_in_words(job, "complete", measured) == (
        "a, seed 3: 100 steps, training loss 0.1, test error 0.02, 10.0 s"
    )
    busy = replace(measured, machine=Machine(1.0, 1.0, 0.2))
    assert run_in_words(job, "complete", busy).endswith(", contended")


def test_the_help_names_the_flags(capsys):
    assert entry.main(["compare", "--help"]) == 0
    shown = capsys.readouterr().out
    assert [flag for flag in (*FLAGS, *VARIANCE) if flag not in shown] == []
