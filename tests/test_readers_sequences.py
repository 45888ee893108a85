"""Sparse rows and texts: what arrives is what the file says, and every format trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from datafiles import arrays, attempt, cifar10, cifar100, mnist, svmlight, table
from gradsift.budget import Budget
from gradsift.cli import entry
from gradsift.clock import VirtualClock
from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.readers.svmlight import parse_svmlight
from gradsift.data.readers.text import encode, learn_vocabulary, split
from gradsift.errors import DataError
from gradsift.models.sparse import Densify
from gradsift.report.runs import read_run
from gradsift.report.summary import Summary
from gradsift.trainer import Settings, run
from gradsift.trainer.evaluation import Quality

READ = ReadOptions()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADSIFT_DATA", raising=False)
    return tmp_path


def whole(data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All examples as one batch, as a loader makes it."""
    return next(iter(DataLoader(data, batch_size=len(data))))


def dense(content: str, width: int) -> tuple[np.ndarray, list[float]]:
    """The slow way, word by word."""
    rows, labels = [], []
    for line in content.splitlines():
        label, *entries = line.partition("#")[0].split()
        row = np.zeros(width, dtype=np.float32)
        for entry_ in entries:
            column, value = entry_.split(":")
            row[int(column) - 1] = float(value)
        rows.append(row)
        labels.append(float(label))
    return np.array(rows), labels


def test_sparse_rows_stand_for_the_dense_ones(here: Path) -> None:
    train, test = svmlight(30) + "-1 2:3 9:0.5 # one more\n", svmlight(10) + "+1\n"
    (here / "s").write_text(train)
    (here / "s.t").write_text(test)
    problem = load_problem("libsvm:s", READ)
    assert (problem.sparse, problem.input_shape, problem.outputs) == (True, (9,), 2)
    for data, content in ((problem.train, train), (problem.test, test)):
        pairs, classes = whole(data)
        rows, labels = dense(content, 9)
        assert pairs.shape == (len(rows), 2, 2)
        assert np.array_equal(Densify(9)(pairs).numpy(), rows)
        assert classes.tolist() == [(label + 1) / 2 for label in labels]


def test_a_file_without_test_part_is_split_by_class(here: Path) -> None:
    (here / "s").write_text(svmlight(50))
    problem = load_problem("libsvm:s", READ)
    assert torch.bincount(whole(problem.train)[1]).tolist() == [20, 20]
    assert torch.bincount(whole(problem.test)[1]).tolist() == [5, 5]
    assert load_problem("libsvm:s", ReadOptions(task="regression")).task == "regression"


@given(content=st.binary(max_size=40) | st.text("+-1 2:.#e\n", max_size=40).map(str.encode))
def test_any_bytes_are_sparse_rows_or_an_error(content: bytes) -> None:
    parsed = attempt(lambda: parse_svmlight(Path("any"), content), DataError)
    if isinstance(parsed, str):
        assert "any" in parsed
        assert parsed.isprintable()
    else:
        assert len(parsed.columns) == len(parsed.values) == parsed.starts[-1]
        assert parsed.columns.min() >= 0


ROWS = st.lists(
    st.tuples(
        st.integers(-3, 3),
        st.dictionaries(st.integers(1, 50), st.floats(-100, 100, width=32), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=5,
)


@given(rows=ROWS)
def test_sparse_rows_survive_their_file(rows: list[tuple[int, dict[int, float]]]) -> None:
    lines = [
        " ".join([str(label), *(f"{column}:{row[column]!r}" for column in sorted(row))])
        for label, row in rows
    ]
    parsed = parse_svmlight(Path("s"), "\n".join(lines).encode())
    assert parsed.labels.tolist() == [label for label, _ in rows]
    for k, (_, row) in enumerate(rows):
        part = slice(parsed.starts[k], parsed.starts[k + 1])
        columns, values = parsed.columns[part] + 1, parsed.values[part].tolist()
        assert dict(zip(columns.tolist(), values, strict=True)) == row


TEXT = "to be, or not to be: that is the question. "


def test_every_character_with_a_full_context_is_an_example(here: Path) -> None:
    (here / "a.txt").write_text(TEXT * 3 + "Zz" * 8)
    problem = load_problem("text:a.txt", ReadOptions(context=4))
    text = (here / "a.txt").read_text()
    cut = int(0.9 * len(text))
    vocabulary = ("<unk>", *sorted(set(text[:cut])))
    assert problem.vocabulary == vocabulary
    assert (problem.outputs, problem.input_shape) == (len(vocabulary), (4,))
    for data, part in ((problem.train, text[:cut]), (problem.test, text[cut:])):
        numbers = [vocabulary.index(c) if c in vocabulary else 0 for c in part]
        contexts, targets = whole(data)
        assert contexts.dtype == targets.dtype == torch.int64
        assert contexts.tolist() == [numbers[k : k + 4] for k in range(len(part) - 4)]
        assert targets.tolist() == numbers[4:]


def test_words_of_two_files_share_the_vocabulary_of_the_first(here: Path) -> None:
    (here / "a.txt").write_text("to be or <unk> to be\n" * 9)
    (here / "b.txt").write_text("to see or not\n" * 9)
    problem = load_problem("text:a.txt,b.txt", ReadOptions(unit="words", context=2))
    assert problem.vocabulary == ("<unk>", "<eos>", "be", "or", "to")
    contexts, targets = whole(problem.test)
    assert contexts[0].tolist() == [4, 0]
    assert targets[:3].tolist() == [3, 0, 1]


@given(text=st.text(max_size=50), unit=st.sampled_from(["characters", "words"]))
def test_what_is_encoded_can_be_read_again(text: str, unit: str) -> None:
    tokens = split(text, unit)
    vocabulary = learn_vocabulary(tokens)
    assert [vocabulary[number] for number in encode(tokens, vocabulary).tolist()] == tokens


def prepare(here: Path) -> None:
    mnist(here / "mnist")
    mnist(here / "fashion-mnist", packed=True)
    cifar10(here / "cifar10")
    cifar100(here / "cifar100")
    np.savez(here / "a.npz", **arrays())  # pyright: ignore[reportArgumentType]
    (here / "t.csv").write_text(table(40, "x,y,kind"))
    (here / "r.data").write_text("".join(f"{k} {k / 7}\n" for k in range(40)))
    (here / "s").write_text(svmlight(60))
    (here / "a.txt").write_text(TEXT * 9)


def learn(data: str, model: str, steps: int, options: ReadOptions = READ, **more: Any) -> Summary:
    settings = Settings(model=model, budget=Budget("steps", steps), batch_size=8, **more)
    return run(load_problem(data, options), settings, clock=VirtualClock()).summary


@pytest.mark.parametrize(
    ("data", "model", "options"),
    [
        ("mnist", "cnn", READ),
        ("fashion-mnist", "lstm", READ),
        ("cifar10", "wrn-10-1", READ),
        ("cifar100", "linear", READ),
        ("a.npz", "mlp", READ),
        ("t.csv", "mlp", ReadOptions(label="x", drop=("kind",))),
        ("r.data", "linear", READ),
        ("libsvm:s", "mlp", READ),
        ("libsvm:s", "linear", READ),
        ("libsvm:s", "lstm", READ),
        ("text:a.txt", "lstm", ReadOptions(context=5)),
        ("text:a.txt", "lstm", ReadOptions(unit="words", context=3)),
    ],
)
def test_every_format_trains_with_scores(
    here: Path, monkeypatch: pytest.MonkeyPatch, data: str, model: str, options: ReadOptions
) -> None:
    prepare(here)
    monkeypatch.setenv("GRADSIFT_DATA", str(here))
    (here / "work").mkdir()
    monkeypatch.chdir(here / "work")
    summary = learn(data, model, 2, options, recipe="pool")
    assert (summary.data, summary.steps) == (data, 2)
    assert summary.examples_scored > summary.examples_trained
    assert np.isfinite([summary.train_loss, summary.test_error]).all()


def test_the_flags_reach_the_reader(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(here)
    command = "train --data text:a.txt --unit words --context 3 --model lstm --budget 2steps"
    assert entry.main([*command.split(), "--clock", "virtual", "--out", "o"]) == 0
    words = set(split(TEXT * 9, "words"))
    settings = read_run(here / "o").event("settings")
    assert settings["parameters"] == 64 * (len(words) + 1) + 99328 + 129 * (len(words) + 1)
    command = "train --data t.csv --label y --drop 1 --drop kind --task regression"
    assert entry.main([*command.split(), "--out", "p"]) == 2
    assert "no column left" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_sparse_rows_are_learnt(here: Path, model: str) -> None:
    """The label is one of many columns."""
    lines = [f"{1 - k % 2 * 2:+d} {1 + k % 7}:1 {20 + k % 2}:1\n" for k in range(200)]
    (here / "s").write_text("".join(lines))
    assert learn("libsvm:s", model, 60).test_error == 0


def test_a_text_is_learnt(here: Path) -> None:
    (here / "a.txt").write_text(TEXT * 15)
    options = ReadOptions(context=8)
    summary = learn("text:a.txt", "lstm", 150, options, optimizer="adam", lr=0.01)
    assert summary.test_error < 0.1


def test_the_curve_of_a_long_test_part_follows_a_sample_of_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def count(model: Any, problem: Any, data: Any, device: Any) -> Quality:
        sizes.append(len(data))
        return Quality(1.0, 1.0)

    monkeypatch.setattr("gradsift.trainer.evaluation.TEST_SUBSAMPLE", 7)
    monkeypatch.setattr("gradsift.trainer.loop.evaluate", count)
    (here / "s").write_text(svmlight(100))
    learn("libsvm:s", "linear", 2)
    assert sizes[:2] == [80, 7]
    assert sizes[-2:] == [80, 20]
