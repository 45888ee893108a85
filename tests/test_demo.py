"""The demo, with budgets of a few steps: its files, its manners, and how it ends."""

import importlib.util
import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from datafiles import mnist
from gradsift.cli.watch import Lines
from gradsift.report.runs import read_run

SCRIPT = Path(__file__).parents[1] / "examples" / "demo.py"


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The script as a module, called in an empty folder, with the number of threads restored."""
    specification = importlib.util.spec_from_file_location("demo", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADSIFT_DATA", raising=False)
    threads = torch.get_num_threads()

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["examples/demo.py", *arguments])
        return module.main()

    yield call
    torch.set_num_threads(threads)


def test_three_recipes_run_equally_long_and_are_compared(tmp_path, demo, capsys):
    assert demo("--out", "o", "--budget", "3steps", "--picture", "images/demo.svg") == 0
    recipes = ("uniform", "pool", "katharopoulos2018")
    runs = [read_run(tmp_path / "o" / recipe) for recipe in recipes]
    assert [run.summary.recipe for run in runs] == list(recipes)
    assert {run.summary.steps for run in runs} == {3}
    starts = [run.of_kind("eval")[0] for run in runs]
    assert len({start["train_loss"] for start in starts}) == 1
    printed = capsys.readouterr().out
    assert f"report: {Path('o') / 'report.html'}" in printed
    assert all(f"{recipe}: sampling is" in printed for recipe in recipes)
    page = (tmp_path / "o" / "report.html").read_text()
    assert all(recipe in page for recipe in recipes)
    picture = (tmp_path / "images" / "demo.svg").read_text()
    assert picture.startswith("<svg")
    assert picture.strip() in page


def test_clothes_are_sorted_where_the_data_folder_has_them(tmp_path, demo, monkeypatch):
    folder = tmp_path / "data" / "fashion-mnist"
    mnist(folder, packed=True, train=70)
    monkeypatch.setenv("GRADSIFT_DATA", str(tmp_path / "data"))
    assert demo("--out", "o", "--budget", "1steps") == 0
    summary = read_run(tmp_path / "o" / "pool").summary
    assert (summary.data, summary.model) == ("fashion-mnist", "cnn")


def test_broken_data_write_nothing(tmp_path, demo, monkeypatch, capsys):
    (tmp_path / "data" / "fashion-mnist").mkdir(parents=True)
    monkeypatch.setenv("GRADSIFT_DATA", str(tmp_path / "data"))
    assert demo("--out", "o", "--budget", "1steps") == 2
    assert not (tmp_path / "o").exists()
    assert capsys.readouterr().err.startswith("demo: error: ")


def test_only_an_earlier_demo_is_replaced(tmp_path, demo, capsys):
    assert demo("--out", "o", "--budget", "1steps") == 0
    assert demo("--out", "o", "--budget", "2steps") == 0
    assert json.loads((tmp_path / "o" / "pool" / "summary.json").read_text())["steps"] == 2
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert demo("--out", "precious", "--budget", "1steps") == 2
    assert "no earlier demo" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_refused(tmp_path, demo, capsys):
    (tmp_path / "o").write_text("years of work")
    assert demo("--out", "o", "--budget", "1steps") == 2
    assert (tmp_path / "o").read_text() == "years of work"


def test_a_budget_that_is_none_writes_nothing(tmp_path, demo, capsys):
    assert demo("--out", "o", "--budget", "10 parsecs") == 2
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.startswith("demo: error: ")


def test_ctrl_c_ends_the_demo_after_the_step(tmp_path, demo, monkeypatch, capsys):
    def interrupt(self, share, step):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Lines, "moved", interrupt)
    assert demo("--out", "o", "--budget", "999s") == 130
    assert json.loads((tmp_path / "o" / "uniform" / "summary.json").read_text())["steps"] == 1
    assert not (tmp_path / "o" / "pool").exists()
    assert not (tmp_path / "o" / "report.html").exists()
