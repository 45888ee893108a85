"""The command line: its flags, its exit status, its one-line errors, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console

from gradsift.cli import entry
from gradsift.cli.app import app
from gradsift.cli.table import table
from gradsift.cli.watch import Bar, Lines
from gradsift.report.runs import read_run
from gradsift.trainer import Point

READING = ["--label", "--drop", "--missing", "--task", "--unit", "--context"]
PARALLEL = [
    *("--workers", "--delay", "--backend", "--compensation", "--rho", "--bound"),
    *("--sampler", "--average"),
]
ENGINE = ["--engine", "--scorers", "--ray-address"]
FLAGS = [
    *("--data", *READING, "--model", "--recipe", "--batch-size", "--pool-ratio", "--lr"),
    *("--weight-decay", "--schedule"),
    *(
        "--optimizer",
        "--norm",
        "--spend",
        "--cap",
        "--finish",
        *ENGINE,
        "--budget",
        "--seed",
        "--device",
        "--out",
    ),
    "--clock",
    *("--resume", "--checkpoint-every"),
    *PARALLEL,
]
SHORT = ("train", "--budget", "12steps", "--clock", "virtual")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Every command runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_the_flags_of_train_are_frozen():
    command = typer.main.get_command(app).commands["train"]  # pyright: ignore[reportAttributeAccessIssue]
    assert [option for parameter in command.params for option in parameter.opts] == FLAGS


def test_the_verbs_are_frozen():
    group = typer.main.get_command(app)
    verbs = list(group.commands)  # pyright: ignore[reportAttributeAccessIssue]
    assert verbs == ["train", "probe", "status", "suspects", "compare"]


def test_a_run_ends_with_a_table_and_the_whole_of_its_files(workplace, capsys):
    assert entry.main([*SHORT, "--out", "o", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert sorted(path.name for path in (workplace / "o").iterdir()) == [
        *("history.npz", "metrics.jsonl", "picks.npz", "report.html", "summary.json"),
    ]
    written = json.loads((workplace / "o" / "summary.json").read_text())
    assert written["command"] == "gradsift train --budget 12steps --clock virtual --out o --seed 3"
    assert (written["steps"], written["seed"], written["data"]) == (12, 3, "digits")
    lines = printed.out.splitlines()
    assert lines[-1] == f"report: {Path('o') / 'report.html'}"
    assert sum("test error" in line and "step" in line for line in lines) >= 13
    assert "auto: sampling is off: the first pass is in your own order" in printed.out


def test_the_default_folder_is_the_next_free_one(workplace, capsys):
    assert entry.main(SHORT) == 0
    assert entry.main(SHORT) == 0
    assert sorted(path.name for path in (workplace / "runs").iterdir()) == ["train-1", "train-2"]
    first, second = (
        json.loads((workplace / "runs" / name / "summary.json").read_text())
        for name in ("train-1", "train-2")
    )
    assert first == second


def test_every_flag_reaches_the_run(workplace, capsys):
    flags = {
        "--data": "digits",
        "--model": "wrn-10-1",
        "--recipe": "pool",
        "--batch-size": "8",
        "--pool-ratio": "2.5",
        "--lr": "0.02",
        "--weight-decay": "0.001",
        "--schedule": "step",
        "--optimizer": "adamw",
        "--norm": "batch",
        "--spend": "noise",
        "--budget": "2steps",
        "--seed": "7",
        "--device": "cpu",
        "--out": "o",
        "--clock": "virtual",
    }
    elsewhere = [
        *READING,
        "--cap",
        "--finish",
        *ENGINE,
        "--resume",
        "--checkpoint-every",
        *PARALLEL,
    ]
    assert list(flags) == [flag for flag in FLAGS if flag not in elsewhere]
    assert entry.main(["train", *(word for pair in flags.items() for word in pair)]) == 0
    run = read_run(workplace / "o")
    found = run.event("settings")
    expected = {"recipe": "pool", "model": "wrn-10-1", "budget": "2steps", "batch_size": 8}
    expected |= {
        "pool_ratio": 2.5,
        "lr": 0.02,
        "weight_decay": 1e-3,
        "schedule": "step",
        "optimizer": "adamw",
    }
    expected |= {"norm": "batch", "seed": 7, "device": "cpu"}
    assert {key: found[key] for key in expected} == expected
    assert run.summary.examples_scored == 2 * 20
    assert run.summary.seconds_total == pytest.approx(8 * 3e-4 + 20 * 1e-4)


def test_the_published_recipe_learns_the_digits(workplace, capsys):
    command = ["train", "--data", "digits", "--recipe", "katharopoulos2018"]
    assert entry.main([*command, "--budget", "160steps", "--clock", "virtual", "--out", "o"]) == 0
    assert read_run(workplace / "o").summary.test_error < 0.08


BAD = [
    ([], "Missing command"),
    (["trian"], "No such command"),
    (["train", "--lrr", "1"], "No such option"),
    (["train", "extra"], "extra"),
    (["train", "--lr"], "--lr"),
    (["train", "--lr", "x"], "--lr"),
    (["train", "--lr", "nan"], "lr nan"),
    (["train", "--lr", "0"], "lr 0.0"),
    (["train", "--lr", "-1"], "lr -1.0"),
    (["train", "--lr", "inf"], "lr inf"),
    (["train", "--batch-size", "0"], "batch size 0"),
    (["train", "--batch-size", "-1"], "batch size -1"),
    (["train", "--batch-size", "2.5"], "--batch-size"),
    (["train", "--batch-size", "100000"], "1442 examples"),
    (["train", "--pool-ratio", "0.5"], "0.5"),
    (["train", "--pool-ratio", "nan"], "nan"),
    (["train", "--pool-ratio", "2", "--recipe", "uniform"], "scores no pool"),
    (["train", "--recipe", "best"], "katharopoulos2018"),
    (["train", "--recipe", ""], "katharopoulos2018"),
    (["train", "--model", "resnet"], "wrn-D-K"),
    (["train", "--model", "wrn-17-2"], "10, 16, 22"),
    (["train", "--model", "mlp", "--norm", "batch"], "no normalisation"),
    (["train", "--model", "wrn-10-1", "--norm", "layer"], "group, batch"),
    (["train", "--weight-decay", "-1"], "weight decay -1.0"),
    (["train", "--weight-decay", "nan"], "weight decay nan"),
    (["train", "--schedule", "warmup"], "constant, cosine, linear, step"),
    (["train", "--optimizer", "lion"], "sgd, adam, adamw"),
    (["train", "--budget", "-3s"], "60s, 10ep or 2000steps"),
    (["train", "--budget", "nan"], "60s, 10ep or 2000steps"),
    (["train", "--budget", "0ep"], "positive"),
    (["train", "--budget", "10 parsecs"], "'10 parsecs' is not a budget"),
    (["train", "--seed", "-1"], "seed -1"),
    (["train", "--seed", "99999999999999999999"], "seed"),
    (["train", "--device", "cuda:4096"], "not available"),
    (["train", "--device", "toaster"], "not available"),
    (["train", "--clock", "cuckoo"], "wall or virtual"),
    (["train", "--data", "mnits"], "module:callable"),
    (["train", "--data", "no_such_module:f"], "cannot import"),
    (["train", "--data", "math:pi"], "cannot call"),
    (["train", "--data", "time:time"], "returned a float"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_wrong_use_is_one_plain_line_and_writes_nothing(workplace, capsys, arguments, message):
    assert entry.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gradsift: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("occupied", ["a file", "a folder with a file"])
def test_an_occupied_folder_is_refused_and_kept(workplace, capsys, occupied):
    out = workplace / "o"
    precious = out if occupied == "a file" else out / "precious"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    assert entry.main([*SHORT, "--out", "o"]) == 2
    assert "name a" in capsys.readouterr().err
    assert precious.read_text() == "precious"
    assert len(list(workplace.rglob("*"))) == (1 if occupied == "a file" else 2)


def test_a_folder_that_cannot_be_made_is_one_line(workplace, capsys):
    (workplace / "file").touch()
    assert entry.main([*SHORT, "--out", "file/o"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_loss_that_is_not_finite_is_status_one_and_keeps_the_measurements(workplace, capsys):
    assert entry.main([*SHORT, "--lr", "1e30", "--out", "o"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not finite" in error
    assert (workplace / "o" / "metrics.jsonl").stat().st_size > 0
    assert not (workplace / "o" / "summary.json").exists()


DATA = """
import signal, torch
from torch.utils.data import Dataset, TensorDataset
class Interrupting(Dataset):
    reads = 0
    def __len__(self): return 64
    def __getitem__(self, index):
        Interrupting.reads += 1
        if Interrupting.reads == WHEN: signal.raise_signal(signal.SIGINT)
        return torch.ones(2), index % 2
def data(): return Interrupting(), TensorDataset(torch.ones(2, 2), torch.tensor([0, 1]))
"""


@pytest.fixture
def heard():
    """SIGINT is heard, even where a shell that started the tests in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(("when", "complete"), [("300", True), ("30", False)])
def test_ctrl_c_is_status_130(workplace, capsys, monkeypatch, when, complete):
    """The read of example 300 is in the run; the 30th is before it, while data are checked."""
    (workplace / "interrupting.py").write_text(DATA.replace("WHEN", when))
    monkeypatch.delitem(sys.modules, "interrupting", raising=False)
    command = ["train", "--data", "interrupting:data", "--model", "linear", "--batch-size", "4"]
    assert entry.main([*command, "--recipe", "uniform", "--out", "o", "--budget", "999s"]) == 130
    assert (workplace / "o" / "summary.json").exists() == complete
    assert (workplace / "o" / "report.html").exists() == complete
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_process_itself_obeys_ctrl_c(workplace):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gradsift.cli", "train", "--budget", "600s", "--out", "o"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().lstrip().startswith("0 %")
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "report: " in printed
    assert json.loads((workplace / "o" / "summary.json").read_text())["seconds_total"] < 600


NEEDS_EXTRAS = [
    *("cli.app", "cli.train", "cli.watch", "cli.table", "data.named", "data.digits"),
    *("report.page", "report.figures"),
]


@pytest.mark.parametrize("missing", ["matplotlib", "rich.console", "sklearn.datasets", "typer"])
def test_without_the_extras_one_line_says_what_to_install(capsys, monkeypatch, missing):
    package = missing.partition(".")[0]
    assert package in entry.EXTRAS
    for name in NEEDS_EXTRAS:
        room, _, module = f"gradsift.{name}".rpartition(".")
        monkeypatch.delattr(sys.modules[room], module)
        monkeypatch.delitem(sys.modules, f"gradsift.{name}")
    monkeypatch.setitem(sys.modules, missing, None)
    assert entry.main(["train"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"needs {package}:" in printed.err
    assert "pip install 'gradsift[cli]'" in printed.err


def test_a_module_of_our_own_that_is_missing_is_no_missing_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "gradsift.cli.app")
    monkeypatch.setitem(sys.modules, "gradsift.cli.train", None)
    with pytest.raises(ModuleNotFoundError, match="gradsift"):
        entry.main(["train"])


@pytest.mark.parametrize("failure", [OSError(28, "No space left"), RuntimeError("out of\nmemory")])
def test_a_machine_that_fails_is_status_one(capsys, monkeypatch, failure):
    def fail(arguments):
        raise failure

    monkeypatch.setattr(sys.modules["gradsift.cli.app"], "call", fail)
    assert entry.main(["train"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_version_and_the_help_are_status_zero(capsys):
    assert entry.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gradsift ")
    assert entry.main(["--help"]) == 0
    assert entry.main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert [flag for flag in FLAGS if flag not in shown] == []


def test_the_bar_moves_and_shows_the_last_evaluation():
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    with Bar(console) as bar:
        bar.moved(0.5, 1234)
        bar.evaluated(Point(1234, 5.0, 0.5, 0.1, 0.25, 0.0625))
    shown = text.getvalue()
    assert "step 1,234" in shown
    assert "50%" in shown
    assert "test error 0.0625" in shown


def test_lines_print_evaluations_only(capsys):
    lines = Lines()
    lines.moved(0.5, 10)
    assert capsys.readouterr().out == ""
    lines.evaluated(Point(10, 1.0, 0.5, 0.1, 0.2, 0.3))
    assert capsys.readouterr().out.split() == [
        *("50", "%", "1.0", "s", "step", "10", "training", "loss", "0.1000"),
        *("test", "loss", "0.2000", "test", "error", "0.3000"),
    ]


def test_the_table_is_aligned(workplace, capsys):
    assert entry.main([*SHORT, "--out", "o"]) == 0
    run = read_run(workplace / "o")
    lines = table([run, run]).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[2] == lines[3]
    assert lines[0].split("  ")[0] == "recipe"


def test_the_global_random_state_is_left_alone(workplace, capsys):
    before = torch.get_rng_state()
    assert entry.main(SHORT) == 0
    assert torch.equal(torch.get_rng_state(), before)


REGRESSION = """
import torch
from torch.utils.data import TensorDataset
def line():
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, inputs @ torch.tensor([1.0, -2.0, 0.5]))
    return data, data
"""


def test_a_regression_of_the_users_own_is_learnt_and_reported(workplace, monkeypatch, capsys):
    (workplace / "users_line.py").write_text(REGRESSION)
    monkeypatch.delitem(sys.modules, "users_line", raising=False)
    command = ["train", "--data", "users_line:line", "--model", "linear", "--recipe", "pool"]
    command += ["--batch-size", "16", "--budget", "60steps", "--clock", "virtual", "--out", "o"]
    assert entry.main(command) == 0
    run = read_run(workplace / "o")
    assert run.summary.data == "users_line:line"
    assert run.summary.test_loss == run.summary.test_error < 0.05
    page = (workplace / "o" / "report.html").read_text()
    assert "Test error (mean square)" in page
    assert "linear on users_line:line" in page


def test_the_report_of_a_real_run_shows_its_gate_and_its_scores(workplace, capsys):
    command = [*SHORT, "--recipe", "katharopoulos2018", "--out", "o"]
    assert entry.main(command) == 0
    page = (workplace / "o" / "report.html").read_text()
    for shown in ("How unequal the scores are", "Steps that drew by score", "Scores at the end"):
        assert shown in page
    assert "needs tau above 2.00" in page


def test_a_recipe_without_a_gate_has_none_in_its_report(workplace, capsys):
    assert entry.main([*SHORT, "--recipe", "uniform", "--out", "o"]) == 0
    assert "sampling is never on" in capsys.readouterr().out
    assert "How unequal the scores are" not in (workplace / "o" / "report.html").read_text()


def test_on_a_terminal_there_is_a_bar_instead_of_lines(workplace, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert entry.main([*SHORT, "--out", "o"]) == 0
    printed = capsys.readouterr().out
    assert "training loss" not in printed
    assert "report: " in printed
