"""Problems made from data sets: what is inferred, and everything that is refused at once."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from gradsift.data.digits import digits, stratified_part
from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.problem import Problem, from_datasets, squared_error, wrong_class
from gradsift.errors import DataError, UsageError

INPUTS = torch.arange(12.0).reshape(4, 3)
LABELS = torch.tensor([0, 2, 1, 0])


class Listed(Dataset):
    """Whatever examples a test needs."""

    def __init__(self, *examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2), 0


def classes(labels=LABELS, inputs=INPUTS):
    return TensorDataset(inputs, labels)


def test_whole_numbers_are_classes():
    problem = from_datasets("toy", classes(), classes(torch.tensor([0, 3, 0, 0])))
    assert (problem.task, problem.outputs, problem.input_shape) == ("classification", 4, (3,))
    assert isinstance(problem.loss_fn, nn.CrossEntropyLoss)
    outputs = torch.eye(4)[[0, 3, 2, 1]]
    targets = torch.tensor([0, 3, 0, 0])
    slow = [-torch.log_softmax(row, 0)[t].item() for row, t in zip(outputs, targets, strict=True)]
    assert problem.loss_fn(outputs, targets).tolist() == pytest.approx(slow)
    assert problem.error_fn(outputs, targets).tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("target", [torch.tensor([1.0, -2.0]), torch.tensor(0.5), 0.5])
def test_floating_numbers_are_a_regression(target):
    data = Listed((torch.zeros(3), target), (torch.ones(3), target))
    problem = from_datasets("toy", data, data)
    width = torch.as_tensor(target).numel()
    assert (problem.task, problem.outputs) == ("regression", width)
    outputs = torch.zeros(2, width, dtype=torch.float64)
    targets = torch.as_tensor([target, target]) if width == 1 else torch.stack([target, target])
    slow = sum(float(value) ** 2 for value in torch.as_tensor(target).reshape(-1)) / width
    assert problem.loss_fn(outputs, targets).tolist() == pytest.approx([slow, slow])
    assert torch.equal(problem.error_fn(outputs, targets), problem.loss_fn(outputs, targets))


def test_python_integers_are_classes_too():
    data = Listed((torch.zeros(2), 1), (torch.zeros(2), 0))
    assert from_datasets("toy", data, data).outputs == 2


def test_errors_per_example_by_hand():
    outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert squared_error(outputs, torch.tensor([[0.0, 0.0], [3.0, 0.0]])).tolist() == [2.5, 4.5]
    assert wrong_class(outputs, torch.tensor([0, 0])).tolist() == [1.0, 0.0]


GOOD = (torch.zeros(2), 0)
BAD_SETS = {
    "empty": (Listed(), "is empty"),
    "a stream": (Stream(), "map-style"),
    "no pair": (Listed(torch.zeros(2)), "expected a pair"),
    "three parts": (Listed((torch.zeros(2), 0, 1)), "expected a pair"),
    "not a tensor": (Listed((np.zeros(2), 0)), "expected a tensor"),
    "double input": (Listed((torch.zeros(2, dtype=torch.float64), 0)), "float64"),
    "integer input": (Listed((torch.zeros(2, dtype=torch.uint8), 0)), "uint8"),
    "scalar input": (Listed((torch.tensor(1.0), 0)), "no features"),
    "no features": (Listed((torch.zeros(0), 0)), "no features"),
    "NaN input": (Listed(GOOD, (torch.tensor([0.0, torch.nan]), 0)), "example 1 .* NaN"),
    "infinite input": (Listed((torch.tensor([torch.inf, 0.0]), 0)), "infinite"),
    "negative label": (Listed(GOOD, (torch.zeros(2), -1)), "label of example 1 .* is -1"),
    "row of labels": (Listed((torch.zeros(2), torch.tensor([0, 1]))), "one whole number"),
    "bool label": (Listed((torch.zeros(2), True)), "bool"),
    "int32 label": (Listed((torch.zeros(2), torch.tensor(1, dtype=torch.int32))), "int32"),
    "word label": (Listed((torch.zeros(2), "cat")), "str"),
    "NaN target": (Listed((torch.zeros(2), torch.nan)), "not finite"),
    "matrix target": (Listed((torch.zeros(2), torch.zeros(2, 2))), "row of numbers"),
    "shapes differ": (Listed(GOOD, (torch.zeros(3), 0)), "all must be alike"),
    "kinds differ": (Listed(GOOD, (torch.zeros(2), 0.5)), "all must be alike"),
    "widths differ": (
        Listed((torch.zeros(2), torch.zeros(2)), (torch.zeros(2), torch.zeros(3))),
        "all must be alike",
    ),
}


@pytest.mark.parametrize("case", BAD_SETS)
@pytest.mark.parametrize("part", ["training", "test"])
def test_bad_data_is_found_at_once(case, part):
    dataset, message = BAD_SETS[case]
    pair = (dataset, Listed(GOOD)) if part == "training" else (Listed(GOOD), dataset)
    with pytest.raises(DataError, match=message) as caught:
        from_datasets("toy", *pair)
    assert f"{part} set of 'toy'" in str(caught.value)


@pytest.mark.parametrize(
    "test",
    [
        classes(inputs=torch.zeros(4, 5)),
        TensorDataset(INPUTS, torch.zeros(4)),
    ],
)
def test_train_and_test_must_match(test):
    with pytest.raises(DataError, match="differ"):
        from_datasets("toy", classes(), test)


def test_regressions_of_different_width_do_not_match():
    wide, narrow = TensorDataset(INPUTS, torch.zeros(4, 2)), TensorDataset(INPUTS, torch.zeros(4))
    with pytest.raises(DataError, match=r"targets of 2 numbers .* targets of 1 numbers"):
        from_datasets("toy", wide, narrow)


def test_an_example_that_cannot_be_read_is_named():
    class Broken(Listed):
        def __getitem__(self, index):
            if index == 2:
                raise OSError("no such image")
            return GOOD[0], 0

    with pytest.raises(DataError, match=r"example 2 .*OSError: no such image"):
        from_datasets("toy", Broken(0, 1, 2), Listed(GOOD))


def rows(dataset):
    return {(*inputs.flatten().tolist(), int(label)) for inputs, label in dataset}


def test_digits_are_split_by_class_and_by_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = digits(seed=0), digits(seed=0), digits(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert rows(first.test) == rows(again.test) != rows(other.test)
    assert not rows(first.train) & rows(first.test)
    assert len(rows(first.train) | rows(first.test)) == 1797
    labels = torch.tensor([int(label) for _, label in first.test])
    assert torch.bincount(labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    pixels = torch.stack([inputs for inputs, _ in first.train])
    assert (pixels.min().item(), pixels.max().item()) == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_a_stratified_part_takes_the_floor_of_each_class(share):
    labels = torch.tensor([0] * 7 + [3] * 10 + [1])
    part = stratified_part(labels, share, torch.Generator().manual_seed(0))
    taken = [int((labels[part] == label).sum()) for label in (0, 3, 1)]
    assert taken == [int(share * 7), int(share * 10), int(share * 1)]
    assert part.tolist() == sorted(set(part.tolist()))


MODULE = """
import torch
from torch.utils.data import TensorDataset
from gradsift.data.problem import from_datasets
data = TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
value = 3
def pair(): return data, data
def problem(): return from_datasets("mine", data, data)
def broken(): raise ZeroDivisionError("two\\nlines")
def needy(path): return data, data
def one(): return data
def lists(): return [1, 2]
def nothing(): return None
def bad(): return data, TensorDataset(torch.zeros(3, 2), torch.tensor([0, -1, 0]))
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working directory with two modules of a user, one of which cannot be imported."""
    (tmp_path / "users_own_data.py").write_text(MODULE)
    (tmp_path / "users_broken_data.py").write_text("import no_such_module_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("users_own_data", None)


def test_a_callable_gives_a_pair_or_a_problem(workplace):
    assert load_problem("users_own_data:pair", ReadOptions()).name == "users_own_data:pair"
    problem = load_problem("users_own_data:problem", ReadOptions())
    assert isinstance(problem, Problem)
    assert problem.name == "mine"


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("mnits", UsageError, r"give digits, mnist, .* or module:callable"),
        ("text", UsageError, "unknown"),
        ("", UsageError, "unknown"),
        (":pair", UsageError, "unknown"),
        ("users_own_data:", UsageError, "unknown"),
        ("no_such_module_anywhere:pair", UsageError, "ModuleNotFoundError"),
        ("..:pair", UsageError, "cannot import"),
        ("users_broken_data:pair", UsageError, "no_such_module_anywhere"),
        ("users_own_data:absent", UsageError, "has no 'absent'"),
        ("users_own_data:value", UsageError, "cannot call"),
        ("users_own_data:broken", UsageError, "ZeroDivisionError: two lines"),
        ("users_own_data:needy", UsageError, "without arguments"),
        ("users_own_data:one", DataError, "returned a TensorDataset"),
        ("users_own_data:lists", DataError, "returned a list"),
        ("users_own_data:nothing", DataError, "returned a NoneType"),
        ("users_own_data:bad", DataError, "label of example 1 of the test set"),
    ],
)
def test_every_mistake_in_a_data_name_is_one_line(workplace, spec, kind, message):
    with pytest.raises(kind, match=message) as caught:
        load_problem(spec, ReadOptions())
    assert "\n" not in str(caught.value)
