"""Tables and NumPy archives: what is learnt, what is missing, how it is split and scaled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datafiles import arrays, attempt, table
from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.problem import Problem
from gradsift.data.readers.cells import read_cells
from gradsift.errors import DataError, UsageError

READ = ReadOptions()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADSIFT_DATA", raising=False)
    return tmp_path


def read(content: str, options: ReadOptions = READ, name: str = "t.csv") -> Problem:
    Path(name).write_text(content)
    return load_problem(name, options)


def examples_of(data: Any) -> list[tuple[torch.Tensor, Any]]:
    return [data[k] for k in range(len(data))]


def columns(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    parts = []
    for data in (problem.train, problem.test):
        examples = examples_of(data)
        parts.append(np.stack([x.numpy() for x, _ in examples]))
        parts.append(np.array([float(y) for _, y in examples]))
    return parts[0], parts[1], parts[2], parts[3]


def same(first: Problem, second: Problem) -> bool:
    return all(map(np.array_equal, columns(first), columns(second)))


def test_a_fifth_of_each_class_is_the_test_part() -> None:
    problem = read(table(100, label="aaab"))
    assert (problem.task, problem.outputs, problem.input_shape) == ("classification", 2, (2,))
    _, train, _, test = columns(problem)
    assert (np.bincount(train.astype(int)).tolist(), np.bincount(test.astype(int)).tolist()) == (
        [60, 20],
        [15, 5],
    )


def test_the_split_depends_on_the_seed_alone() -> None:
    content = table(60)
    assert same(read(content), read(content))
    assert same(read(content, ReadOptions(seed=1)), read(content, ReadOptions(seed=1)))
    assert not same(read(content), read(content, ReadOptions(seed=1)))


def test_columns_are_standardised_on_the_training_part() -> None:
    numbers = np.random.default_rng(0).normal(3, 5, (50, 2))
    content = "".join(f"{a},7,{b},{k % 2}\n" for k, (a, b) in enumerate(numbers.tolist()))
    train, _, test, _ = columns(read(content))
    assert train[:, 1].tolist() == [0.0] * 40
    for place in (0, 2):
        raw = numbers[:, place // 2]
        found = np.concatenate([train[:, place], test[:, place]])
        np.testing.assert_allclose(train[:, place].mean(), 0, atol=1e-6)
        np.testing.assert_allclose(train[:, place].std(), 1, atol=1e-6)
        ratio = (np.sort(raw) - np.sort(raw)[0]) / (np.sort(found) - np.sort(found)[0]).clip(1e-9)
        np.testing.assert_allclose(ratio[1:], ratio[1], rtol=1e-5)


@pytest.mark.parametrize("separator", [",", ";", "\t", " ", "  \t ", ", "])
@pytest.mark.parametrize("header", ["", "x,y,kind"])
def test_separator_and_header_are_found(separator: str, header: str) -> None:
    header = header.replace(",", separator)
    assert same(read(table(40, header, separator), name="t.data"), read(table(40)))


def test_quotes_marks_and_blank_lines_change_nothing() -> None:
    plain = table(40, "x,y,kind")
    quoted = '\ufeff"x","y","the\n kind"\n\n' + plain.partition("\n")[2].replace("a\n", '"a"\n\n')
    assert same(read(plain), read(quoted))
    assert same(read(plain), read(plain.replace("\n", "\r\n")))


@pytest.mark.parametrize("label", ["kind", "3", "-1"])
def test_a_column_is_its_name_or_its_number(label: str) -> None:
    content = table(40, "x,y,kind")
    assert same(read(content, ReadOptions(label=label)), read(content))
    turned = "".join(
        ",".join(reversed(line.split(","))) + "\n" for line in content.strip().split("\n")
    )
    first = {"kind": "kind", "3": "1", "-1": "-3"}[label]
    train, labels, _, _ = columns(read(turned, ReadOptions(label=first)))
    expected, expected_labels, _, _ = columns(read(content))
    assert np.array_equal(train[:, ::-1], expected)
    assert np.array_equal(labels, expected_labels)


def test_dropped_columns_are_gone() -> None:
    numbered = "".join(f"{k},{line}\n" for k, line in enumerate(table(40).split()))
    assert same(read(numbered, ReadOptions(drop=("1",))), read(table(40)))
    assert read(table(40), ReadOptions(drop=("1",))).input_shape == (1,)
    named = table(40, "x,y,kind")
    assert read(named, ReadOptions(drop=("-1",), label="y")).task == "regression"


@pytest.mark.parametrize(
    ("values", "asked", "task", "outputs"),
    [
        (["no", "yes"], None, "classification", 2),
        ([-1, 1], None, "classification", 2),
        ([2, 4, 7], None, "classification", 3),
        (["1", "1.0", "2"], None, "classification", 2),
        (range(20), None, "classification", 20),
        (range(21), None, "regression", 1),
        ([0.5, 1, 2], None, "regression", 1),
        ([1, 2], "regression", "regression", 1),
        (range(21), "classification", "classification", 21),
        ([1, 2, "x"], None, "classification", 3),
    ],
)
def test_the_task_follows_the_labels(
    values: list[object], asked: str | None, task: str, outputs: int
) -> None:
    content = "".join(f"{k},{value}\n" for k in range(10) for value in values)
    problem = read(content, ReadOptions(task=asked))
    assert (problem.task, problem.outputs) == (task, outputs)
    if task == "regression":
        _, labels, test, more = columns(problem)
        assert sorted([*labels, *more]) == sorted([float(str(value)) for value in values] * 10)
        assert len(test) == len(values) * 10 // 5


def test_classes_are_numbered_in_order() -> None:
    content = "".join(f"{value},{value}\n" for value in (10, 9, 2) for _ in range(10))
    train, labels, _, _ = columns(read(content, ReadOptions(task="classification")))
    order = {float(label): float(x) for x, label in zip(train[:, 0], labels, strict=True)}
    assert order[0] < order[1] < order[2]


GAPS = table(40) + "?,2,a\n3,,b\nnan,NA,a\n"


def test_missing_values_are_dropped_with_their_rows() -> None:
    assert same(read(GAPS, ReadOptions(missing="drop")), read(table(40)))
    with pytest.raises(DataError, match="4 such in all"):
        read(GAPS)
    without_gaps = GAPS.replace(",,", ",5,").replace("NA", "6")
    assert read(without_gaps, ReadOptions(drop=("1",))).input_shape == (1,)


def test_missing_values_are_the_mean_of_the_training_part() -> None:
    content = "".join(f"{k},{k % 2}\n" for k in range(40)) + "?,0\n" * 20
    train, _, test, _ = columns(read(content, ReadOptions(missing="mean")))
    filled = [x for x in (*train[:, 0], *test[:, 0]) if abs(x) < 1e-6]
    assert len(filled) >= 20


def test_any_name_can_be_a_table() -> None:
    Path("iris.txt").write_text(table(40))
    assert load_problem("table:iris.txt", READ).input_shape == (2,)
    Path("sonar.all-data").write_text(table(40))
    assert load_problem("sonar.all-data", READ).input_shape == (2,)


@given(text=st.text(max_size=60) | st.text('1,a.;?"\n\t ', max_size=60))
@pytest.mark.parametrize("missing", ["error", "drop", "mean"])
def test_any_text_is_a_table_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, missing: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    options = ReadOptions(missing=missing)
    found = attempt(lambda: load_problem(str(path), options), DataError, UsageError)
    assert isinstance(found, Problem) or str(path) in found


CELL = st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=5)


@given(
    rows=st.integers(1, 4).flatmap(
        lambda wide: st.lists(st.lists(CELL, min_size=wide, max_size=wide), min_size=1, max_size=5)
    )
)
def test_quoted_cells_survive_their_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    rows = [["1,0", "2", *row] for row in rows]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    path.write_text("\n".join(map(",".join, quoted)))
    separators = [mark for mark in ";\t" if mark in path.read_text().partition("\n")[0]]
    if not separators:
        assert read_cells(path).rows == [[cell.strip() for cell in row] for row in rows]


def test_archives_keep_their_parts_and_their_numbers() -> None:
    given_arrays = arrays()
    np.savez("a.npz", **given_arrays)  # pyright: ignore[reportArgumentType]
    problem = load_problem("a.npz", READ)
    assert (problem.task, problem.outputs, problem.input_shape) == ("classification", 2, (3,))
    train, labels, test, more = columns(problem)
    assert np.array_equal(train, given_arrays["x_train"].astype(np.float32))
    assert np.array_equal(test, given_arrays["x_test"].astype(np.float32))
    assert np.array_equal(labels, given_arrays["y_train"])
    assert np.array_equal(more, given_arrays["y_test"])


@pytest.mark.parametrize(
    ("y", "asked", "task"),
    [
        (np.arange(40) % 3, None, "classification"),
        (np.arange(40) % 2 == 0, None, "classification"),
        (np.array(["a", "b"] * 20), None, "classification"),
        (np.arange(40) % 3 + 0.0, None, "regression"),
        (np.arange(40) % 3, "regression", "regression"),
        (np.arange(40) % 3 + 0.0, "classification", "classification"),
    ],
)
def test_one_array_is_split(y: np.ndarray, asked: str | None, task: str) -> None:
    np.savez("a.npz", x=np.arange(80.0).reshape(40, 2), y=y)
    problem = load_problem("a.npz", ReadOptions(task=asked))
    train, _, test, _ = columns(problem)
    assert problem.task == task
    assert sorted([*train[:, 0], *test[:, 0]]) == list(range(0, 80, 2))
    assert len(test) in (6, 8)


@pytest.mark.parametrize("shape", [(40, 9, 8), (40, 1, 9, 8), (40, 9, 8, 1)])
def test_bytes_in_a_grid_are_images(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 8), dtype=np.uint8)
    np.savez("a.npz", x=images.reshape(shape), y=np.arange(40) % 2)
    problem = load_problem("a.npz", READ)
    assert problem.input_shape == (1, 9, 8)
    pixels = torch.stack([x for x, _ in examples_of(problem.train)])
    assert abs(float(pixels.mean())) < 1e-5
    assert float(pixels.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_colours_last_become_colours_first() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 6, 3), dtype=np.uint8)
    np.savez("last.npz", x=images, y=np.arange(40) % 2)
    np.savez("first.npz", x=images.transpose(0, 3, 1, 2), y=np.arange(40) % 2)
    assert same(load_problem("last.npz", READ), load_problem("first.npz", READ))
