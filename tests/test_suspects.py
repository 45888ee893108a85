"""``gradsift suspects``: the list, its file, its page, cleanlab beside it, and what is refused."""

import base64
import csv
import io
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from gradsift import UsageError
from gradsift.budget import parse_budget
from gradsift.cli import entry
from gradsift.clock import VirtualClock
from gradsift.data.problem import from_datasets
from gradsift.monitors import History, read_history, write_history
from gradsift.monitors import history as room
from gradsift.report import confident
from gradsift.report.runs import read_run
from gradsift.report.suspects import HEAD, Judged, Suspect, as_csv, as_text, suspects
from gradsift.report.suspects_page import POINTS, ranked, verdict, write_suspects_page
from gradsift.trainer import Settings, run
from test_report import Elements

N, WRONG = 120, 12


def made(count: int = 6, **changes: Any) -> History:
    """Losses that rise with the id; example 0 was never trained on."""
    ids = np.arange(count)
    probabilities = np.stack([1 - ids / count, ids / count], 1).astype(np.float16)
    rows = {
        "visits": ids.astype(np.int32),
        "mean": np.where(ids > 0, ids / 2, math.nan).astype(np.float32),
        "last": np.where(ids > 0, 1.0, math.nan).astype(np.float32),
        "labels": np.where(ids > 0, 0, -1).astype(np.int32),
        "predicted": np.where(ids > 0, ids % 2, -1).astype(np.int32),
        "probabilities": probabilities,
    }
    return History(**{**rows, **changes})


def judged(count: int = 6) -> Judged:
    ids = np.arange(count)
    return Judged(ids == 4, ids > 2)


def test_the_list_is_a_slow_sort_of_the_rows() -> None:
    history = made()
    found = suspects(history, 4, judged())
    assert [one.id for one in found] == [5, 4, 3, 2]
    for one in found:
        assert one.confidence == pytest.approx(1 - one.id / 6, abs=1e-3)
        assert replace(one, confidence=None) == Suspect(
            id=one.id,
            label=0,
            model=one.id % 2,
            mean_loss=one.id / 2,
            last_loss=1.0,
            visits=one.id,
            confidence=None,
            issue=None if one.id <= 2 else one.id == 4,
        )
    assert [one.id for one in suspects(history, 99)] == [5, 4, 3, 2, 1]
    assert {one.issue for one in suspects(history, 99)} == {None}


def test_a_history_without_classes_has_losses_and_visits() -> None:
    none = np.full(6, -1, np.int32)
    plain = made(labels=none, predicted=none, probabilities=room.no_probabilities())
    (one,) = suspects(plain, 1)
    assert (one.label, one.model, one.confidence, one.mean_loss) == (None, None, None, 2.5)
    head, row = as_text([one]).splitlines()
    assert re.split("  +", head) == ["id", "mean loss", "last loss", "visits"]
    assert row.split() == ["5", "2.5", "1", "5"]


def test_the_text_is_aligned_and_the_file_is_read_back() -> None:
    found = suspects(made(), 4, judged())
    lines = as_text(found).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(name in lines[0] for name in HEAD)
    assert [line.split()[-1] for line in lines[1:]] == ["fine", "issue", "fine", "0.667"]
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [int(row["id"]) for row in rows] == [5, 4, 3, 2]
    assert [row["issue"] for row in rows] == ["False", "True", "False", ""]
    assert float(rows[0]["mean_loss"]) == 2.5


@pytest.mark.parametrize("top", [0, -3])
def test_a_list_of_nothing(top: int) -> None:
    with pytest.raises(UsageError, match=f"--top {top}"):
        suspects(made(), top)
    with pytest.raises(UsageError, match="without a step"):
        suspects(made(visits=np.zeros(6, np.int32)), 5)


def test_the_sentence_counts() -> None:
    assert verdict(made(), None).startswith("5 examples, in 3.0 steps each on average")
    assert "cleanlab takes 1 labels for wrong (33.3 %)" in verdict(made(), judged())


SHOWN = {
    "shown": np.array([5, 4]),
    "pixels": np.arange(40, dtype=np.uint8).reshape(2, 4, 5),
    "texts": ("<0>", "0"),
}


def test_the_page_is_well_formed_and_needs_nothing(tmp_path: Path) -> None:
    history = made(**SHOWN)
    path = write_suspects_page(
        tmp_path / "s.html", "<runs>", history, suspects(history, 3, judged()), judged()
    )
    text = path.read_text()
    elements = Elements(text)
    assert elements.open == []
    tags = [tag for tag, _ in elements.found]
    assert not {"script", "link", "iframe"} & set(tags)
    assert (tags.count("svg"), tags.count("img"), tags.count("tr")) == (1, 2, 4)
    assert "<runs>" not in text
    assert "<b>0 → 1</b><span>5<br>loss 2.5x</span>" in text
    assert "<span>4<br>loss 2x, issue</span>" in text
    first = re.search('base64,([^"]*)', text)
    assert first is not None
    shown = matplotlib.image.imread(io.BytesIO(base64.b64decode(first[1])), format="png")
    assert np.array_equal(np.round(shown * 255), history.pixels[0])


def test_rows_are_shown_in_words_and_nothing_is_a_page_too(tmp_path: Path) -> None:
    rows = made(**{**SHOWN, "pixels": room.no_pixels()})
    text = write_suspects_page(tmp_path / "s.html", "a", rows, suspects(rows, 3), None).read_text()
    assert "<code>&lt;0&gt;</code>" in text
    assert "<img" not in text
    bare = made()
    text = write_suspects_page(tmp_path / "s.html", "a", bare, suspects(bare, 3), None).read_text()
    assert "most suspicious" not in text
    assert Elements(text).open == []


def test_the_curve_is_the_sorted_losses() -> None:
    (line,) = ranked(made()).axes[0].lines
    assert np.asarray(line.get_xydata()).tolist() == [[k, (6 - k) / 2] for k in range(1, 6)]
    (line,) = ranked(made(5 * POINTS)).axes[0].lines
    places, losses = np.asarray(line.get_xydata()).T
    assert len(places) == POINTS
    assert (places[0], places[-1]) == (1, 5 * POINTS - 1)
    assert losses.tolist() == [(5 * POINTS - place) / 2 for place in places.tolist()]


# What cleanlab is asked, and what becomes of its answer.


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for cleanlab: an example is an issue where its label has less than one half."""
    asked: list[Any] = []

    def find(labels: Any, probabilities: Any, **options: Any) -> Any:
        asked.append((labels, probabilities, options))
        return probabilities[np.arange(len(labels)), labels] < 0.5

    monkeypatch.setattr(confident, "_find", find)
    return asked


def test_cleanlab_is_asked_about_examples_with_a_label(answers: list[Any]) -> None:
    labels = np.array([-1, 1, 0, -1, 0, 0], np.int32)
    found = confident.judge(made(labels=labels))
    assert found is not None
    ((given, probabilities, options),) = answers
    assert given.tolist() == [1, 0, 0, 0]
    assert options["n_jobs"] == 1
    assert probabilities.dtype == np.float64
    assert probabilities.sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-15)
    assert probabilities[:, 1].tolist() == pytest.approx([1 / 6, 2 / 6, 4 / 6, 5 / 6], abs=1e-3)
    assert np.flatnonzero(found.asked).tolist() == [1, 2, 4, 5]
    assert np.flatnonzero(found.issue).tolist() == [1, 4, 5]


def test_cleanlab_is_not_asked_where_there_is_nothing_to_say(answers: list[Any]) -> None:
    assert confident.judge(made()) is None  # labels of one class
    assert confident.judge(made(probabilities=room.no_probabilities())) is None
    assert answers == []


def test_without_cleanlab_nothing_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confident, "_find", None)
    labels = np.array([-1, 1, 0, 1, 0, 0], np.int32)
    assert confident.judge(made(labels=labels)) is None


def test_cleanlab_itself_finds_wrong_labels() -> None:
    pytest.importorskip("cleanlab")
    truth = np.arange(N) % 3
    labels = np.where(np.arange(N) < WRONG, (truth + 1) % 3, truth)
    probabilities = np.full((N, 3), 0.05)
    probabilities[np.arange(N), truth] = 0.9
    ones = np.ones(N, np.float32)
    found = confident.judge(
        History(
            visits=np.ones(N, np.int32),
            mean=ones,
            last=ones,
            labels=labels.astype(np.int32),
            predicted=truth.astype(np.int32),
            probabilities=probabilities.astype(np.float16),
        )
    )
    assert found is not None
    assert np.flatnonzero(found.issue).tolist() == list(range(WRONG))


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of three kinds, of which one label in ten is wrong."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(N) % 3
    images = torch.zeros(N, 1, 4, 4)
    images[torch.arange(N), 0, truth] = 1.0
    images += 0.1 * torch.randn(images.shape, generator=generator)
    labels = torch.where(torch.arange(N) < WRONG, (truth + 1) % 3, truth)
    data = TensorDataset(images, labels)
    problem = from_datasets("noisy", data, TensorDataset(images, truth))
    out = tmp_path_factory.mktemp("runs") / "noisy"
    chosen = Settings(recipe="table", model="linear", batch_size=10, budget=parse_budget("4ep"))
    run(problem, chosen, out=out, clock=VirtualClock())
    return out


def test_the_wrong_labels_come_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "list.csv"
    assert entry.main(["suspects", str(folder), "--top", str(WRONG), "--out", str(listed)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    rows = list(csv.DictReader(listed.read_text().splitlines()))
    assert sorted(int(row["id"]) for row in rows) == list(range(WRONG))
    assert all(row["model"] == str(int(row["id"]) % 3) != row["label"] for row in rows)
    lines = printed.out.splitlines()
    assert lines[0].startswith(f"{folder}: {N} examples, in ")
    assert lines[2].split()[:3] == ["id", "label", "model"]
    assert [line.split()[0] for line in lines[3 : 3 + WRONG]] == [row["id"] for row in rows]
    assert lines[-2:] == [f"list: {listed}", f"gallery: {folder / 'suspects.html'}"]
    page = (folder / "suspects.html").read_text()
    assert page.count("<img") == 48
    assert "<h1>noisy</h1>" in page


def test_by_default_25_are_listed_and_no_file_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in folder.iterdir()} | {"suspects.html"}
    assert entry.main(["suspects", str(folder)]) == 0
    assert len(re.findall(r"^ *\d+ +\d ", capsys.readouterr().out, re.MULTILINE)) == 25
    assert {path.name for path in folder.iterdir()} == before


def test_the_list_says_what_cleanlab_says(
    folder: Path, answers: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(["suspects", str(folder), "--top", "3"]) == 0
    printed = capsys.readouterr().out
    assert len(answers) == 1
    assert f"cleanlab takes {WRONG} labels for wrong (10.0 %)" in printed
    assert printed.count(" issue\n") == 3


def test_a_hint_says_how_to_ask_cleanlab(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(confident, "_find", None)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    assert entry.main(["suspects", str(folder), "--top", "1"]) == 0
    assert "pip install 'gradsift[suspects]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "there is no folder 'none': name that of a run"),
        (["file"], "there is no folder 'file'"),
        (["empty"], "holds no history.npz"),
        (["broken"], "history.npz' cannot be read (BadZipFile)"),
        (["good", "--top", "0"], "--top 0 received, expected at least 1"),
        (["good", "--top", "many"], "--top"),
        (["good", "--out", "empty"], "'empty' is a folder"),
        (["good", "--out", "none/list.csv"], "there is no folder 'none'"),
        (["idle"], "a run without a step"),
        ([], "Missing argument"),
        (["good", "--bottom", "3"], "No such option"),
    ],
)
def test_what_cannot_be_listed_is_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("empty").mkdir()
    write_history("good", made())
    write_history("idle", made(visits=np.zeros(6, np.int32)))
    write_history("broken", made()).write_bytes(b"PK\x03\x04 and no more")
    before = sorted(Path().rglob("*"))
    assert entry.main(["suspects", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gradsift: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(Path().rglob("*")) == before


def test_a_cap_on_the_command_line_reaches_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["train", "--model", "linear", "--clock", "virtual", "--budget", "2steps"]
    assert entry.main([*short, "--cap", "0.8", "--out", "capped"]) == 0
    assert read_run(tmp_path / "capped").event("settings")["cap"] == 0.8
    assert read_history(tmp_path / "capped").visits.sum() == 128
