"""`gradsift compare --variance`: its flags, what it leaves behind, its one-line errors."""

import json
import signal
import sys
from io import StringIO

import pytest
from rich.console import Console

from gradsift.cli import entry
from gradsift.cli.variance import VarianceBar
from gradsift.comparison.watched import AbstractSpectator
from test_report import Elements

SHORT = ("compare", "--variance", "--checkpoints", "2", "--repeats", "2", "--clock", "virtual")
TOY = ("--budget", "4steps", "--model", "linear", "--batch-size", "16")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Every command runs in an empty folder, and measures few draws."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gradsift.comparison.noises.DRAWS", 3)
    monkeypatch.setattr("gradsift.comparison.noises.POOLS", 2)
    monkeypatch.setattr("gradsift.comparison.costs.TRIALS", 3)
    monkeypatch.setattr("gradsift.comparison.population.EXAMPLES", 40)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without figures, which take their time."""
    monkeypatch.setattr("gradsift.report.variance_page.svg", lambda draw, shown: "")


def test_it_writes_numbers_and_a_page(workplace, capsys):
    assert entry.main([*SHORT, *TOY, "--out", "o"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [line[:12] for line in printed.out.splitlines()[:2]] == ["step       2", "step       4"]
    assert "report: o/variance.html" in printed.out
    assert sorted(path.name for path in (workplace / "o").iterdir()) == [
        *("variance.html", "variance.json"),
    ]
    found = json.loads((workplace / "o" / "variance.json").read_text())
    assert found["command"] == " ".join(["gradsift", *SHORT, *TOY, "--out", "o"])
    assert (found["batch_size"], found["examples"], found["repeats"]) == (16, 64, 2)
    assert found["title"] == "linear on digits"
    assert Elements((workplace / "o" / "variance.html").read_text()).open == []


def test_the_run_is_the_uniform_one_of_the_reference(workplace, capsys, undrawn):
    flags = [
        "--arm",
        "a: --recipe pool --pool-ratio 2 --lr 0.5 --model linear",
        "--recipes",
        "auto",
    ]
    flags += ["--reference", "a", "--budget", "2steps", "--batch-size", "16", "--out", "o"]
    assert entry.main([*SHORT, *flags]) == 0
    found = json.loads((workplace / "o" / "variance.json").read_text())
    assert found["pool_ratio"] == 2.0
    assert "--lr 0.5" in found["flags"]
    names = [arm["name"] for arm in found["checkpoints"][0]["arms"]]
    assert names[0] == "uniform"
    assert "loss, pool of 2" in names


BAD = [
    (["--variance"], "give --out"),
    (["--variance", "--out", "o", "--checkpoints", "0"], "checkpoints 0"),
    (["--variance", "--out", "o", "--repeats", "1"], "repeats 1"),
    (["--variance", "--out", "o", "--repeats", "x"], "--repeats"),
    (["--variance", "--out", "o", "--seeds", "3"], "--seeds received with --variance"),
    (["--variance", "--out", "o", "--aa"], "--aa received with --variance"),
    (["--variance", "--out", "o", "--grid", "lr=1,2"], "--grid received with --variance"),
    (["--variance", "--out", "o", "--seed", "3"], "--seed received"),
    (["--variance", "--out", "o", "--lr", "nan"], "lr nan"),
    (["--variance", "--out", "o", "--clock", "x"], "clock 'x'"),
    (["--variance", "--out", "o", "--budget", "3"], "'3' is not a budget"),
    (["--variance", "--out", "o", "--pool-ratio", "0.5"], "pool ratio 0.5"),
    (["--variance", "--out", "o", "--lrr", "1"], "No such option"),
    (["--variance", "--out", "o", "--budget", "2steps"], "which is 2 steps"),
    (["--variance", "--out", "o", "--data", "none.csv"], "none.csv"),
    (["--variance", "--out", "o", "--reference", "b"], "reference 'b'"),
    (["--recipes", "uniform", "--out", "o", "--repeats", "3"], "belong to --variance"),
    (["--recipes", "uniform", "--out", "o", "--checkpoints", "3"], "belong to --variance"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_wrong_use_is_one_plain_line_and_writes_nothing(workplace, capsys, arguments, message):
    assert entry.main(["compare", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gradsift: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert list(workplace.iterdir()) == []


def test_an_occupied_folder_is_refused_and_kept(workplace, capsys):
    (workplace / "o").mkdir()
    (workplace / "o" / "precious").touch()
    assert entry.main([*SHORT, *TOY, "--out", "o"]) == 2
    assert "is not empty" in capsys.readouterr().err
    (workplace / "f").touch()
    assert entry.main([*SHORT, *TOY, "--out", "f/o"]) == 2
    assert "cannot make the folder 'f/o'" in capsys.readouterr().err


@pytest.mark.parametrize(("at", "kept"), [(1, 0), (3, 1)])
def test_ctrl_c_keeps_what_was_measured(workplace, capsys, monkeypatch, undrawn, at, kept):
    calls = []

    def press(self, share, text):
        if text.startswith("step"):
            calls.append(text)
            if len(calls) == at:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("gradsift.cli.variance.Keeper.moved", press)
    assert entry.main([*SHORT, *TOY, "--out", "o"]) == 130
    printed = capsys.readouterr().out
    if not kept:
        assert "interrupted before the first checkpoint" in printed
        assert list(workplace.iterdir()) == []
        return
    found = json.loads((workplace / "o" / "variance.json").read_text())
    assert (len(found["checkpoints"]), found["interrupted"]) == (kept, True)
    assert "Ctrl-C ended the run" in (workplace / "o" / "variance.html").read_text()


def test_on_a_terminal_there_is_a_bar(workplace, monkeypatch, capsys, undrawn):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert entry.main([*SHORT, *TOY, "--out", "o"]) == 0
    assert "step       4  loss" in capsys.readouterr().out


def test_the_bar_fills():
    text = StringIO()
    with VarianceBar(Console(file=text, force_terminal=True, width=100)) as bar:
        bar.moved(0.25, "step 5")
    assert isinstance(bar, AbstractSpectator)
    assert "step 5" in text.getvalue()
    assert "25%" in text.getvalue()
