"""Batches of any nesting, cut and joined against a loop over their examples."""

from collections import OrderedDict, UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import default_collate

from gradsift.errors import UsageError
from gradsift.nested import concatenate, length, move, per_leaf, take, tensors

few = settings(derandomize=True, max_examples=80, deadline=None)


class Pair(NamedTuple):
    left: Any
    right: Any


def example(number: int, shape: int) -> Any:
    """Example ``number`` in one of several nestings, as a data set would return it."""
    vector = torch.tensor([number, -number])
    kinds: list[Any] = [
        vector,
        (vector, torch.tensor(number)),
        {"x": vector, "name": f"n{number}"},
        [vector, {"deep": (torch.tensor(number), f"n{number}")}],
        Pair(vector, Pair(torch.tensor(number), vector)),
    ]
    return kinds[shape]


SHAPES = st.integers(0, 4)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        pairs = zip(one, other, strict=True)
        return type(one) is type(other) and all(same(*pair) for pair in pairs)
    return one == other


def collated(numbers: list[int], shape: int) -> Any:
    return default_collate([example(number, shape) for number in numbers])


@given(
    numbers=st.lists(st.integers(0, 99), min_size=1, max_size=8),
    shape=SHAPES,
    data=st.data(),
)
@few
def test_take_is_collation_of_the_chosen(numbers: list[int], shape: int, data: Any) -> None:
    places = st.integers(0, len(numbers) - 1)
    chosen = data.draw(st.lists(places, min_size=1, max_size=10))
    batch = collated(numbers, shape)
    taken = take(batch, torch.tensor(chosen), len(numbers))
    assert same(taken, collated([numbers[place] for place in chosen], shape))
    assert same(batch, collated(numbers, shape))


@given(shape=SHAPES, start=st.integers(0, 5), stop=st.integers(0, 6), step=st.integers(1, 3))
@few
def test_a_slice_is_its_positions(shape: int, start: int, stop: int, step: int) -> None:
    batch = collated(list(range(6)), shape)
    positions = torch.arange(6)[start:stop:step]
    assert same(take(batch, slice(start, stop, step), 6), take(batch, positions, 6))


@given(
    parts=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=1, max_size=4),
    shape=SHAPES,
)
@few
def test_joined_batches_are_one_collation(parts: list[list[int]], shape: int) -> None:
    joined = concatenate([collated(part, shape) for part in parts])
    numbers = [number for part in parts for number in part]
    assert same(joined, collated(numbers, shape))
    assert length(joined) == len(numbers)


def test_a_slice_copies_nothing_and_positions_do() -> None:
    batch = torch.arange(6.0)
    assert take(batch, slice(2, 4), 6).data_ptr() == batch[2:].data_ptr()
    assert take(batch, torch.tensor([2, 3]), 6).data_ptr() != batch[2:].data_ptr()


def test_what_is_no_example_is_kept() -> None:
    batch = {"x": torch.arange(3), "mask": None, "task": "digits", "rate": 0.5, "empty": []}
    taken = take(batch, torch.tensor([1]), 3)
    assert same(taken, {**batch, "x": torch.tensor([1])})
    joined = concatenate([batch, batch])
    assert same(joined, {**batch, "x": torch.tensor([0, 1, 2, 0, 1, 2])})


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x: OrderedDict(a=x, b=x), OrderedDict),
        (lambda x: {"a": x}, dict),
        (lambda x: Pair(x, x), Pair),
        (lambda x: [x], list),
        (lambda x: (x,), tuple),
    ],
)
def test_containers_keep_their_type(make: Callable[[Tensor], Any], kind: type) -> None:
    batch = make(torch.arange(4))
    results = [
        take(batch, torch.tensor([0]), 4),
        take(batch, slice(0, 1), 4),
        concatenate([batch, batch]),
        move(batch, "cpu"),
        per_leaf(batch, torch.neg),
    ]
    assert [type(result) for result in results] == [kind] * 5


def test_strings_travel_with_their_examples_in_lists_and_tuples() -> None:
    batch = {"list": ["a", "b", "c"], "tuple": ("d", "e", "f"), "bytes": (b"g", b"h", b"i")}
    assert take(batch, torch.tensor([2, 0]), 3) == {
        "list": ["c", "a"],
        "tuple": ("f", "d"),
        "bytes": (b"i", b"g"),
    }
    assert concatenate([batch, batch])["tuple"] == ("d", "e", "f", "d", "e", "f")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(3), "y": torch.zeros(4)}, r"leaf \['y'\] .* shape \[4\], expected 3"),
        ((torch.zeros(3), torch.tensor(1.0)), r"leaf \[1\] .* shape \[\], expected 3 examples"),
        ({"x": torch.zeros(3), "name": ["a"]}, r"\['name'\] .* a list of 1 entries, expected 3"),
        (
            (torch.zeros(3), ("a", "b")),
            r"leaf \[1\] of the batch is a tuple of 2 entries, expected 3",
        ),
        (Pair(torch.zeros(3), torch.zeros(2)), r"leaf \.right .* shape \[2\]"),
        (torch.zeros(4, 3), r"leaf \(the batch itself\) .* shape \[4, 3\], expected 3"),
        ({"x": torch.zeros(3), "y": np.zeros(3)}, r"leaf \['y'\] of the batch is a ndarray"),
        (UserDict(x=torch.zeros(3)), r"leaf \(the batch itself\) of the batch is a UserDict"),
        (pack_sequence([torch.ones(2)] * 3), r"leaf \.data .* shape \[6\], expected 3"),
    ],
)
@pytest.mark.parametrize("positions", [torch.tensor([0]), slice(0, 1)])
def test_a_leaf_that_cannot_be_cut_is_named(batch: Any, message: str, positions: Any) -> None:
    with pytest.raises(UsageError, match=message):
        take(batch, positions, 3)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"ids": torch.zeros(2, 5)},
            {"ids": torch.zeros(2, 7)},
            r"leaf \['ids'\] is ragged: shapes \[2, 5\] and \[2, 7\]",
        ),
        ((torch.tensor(1.0),), (torch.tensor(2.0),), r"leaf \[0\] is ragged: shapes \[\]"),
        (torch.zeros(2), torch.tensor(2.0), r"leaf \(the batch itself\) is ragged"),
        ({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, "differ in their nesting"),
        ((torch.zeros(1),), [torch.zeros(1)], "differ in their nesting"),
        ((torch.zeros(1),), (torch.zeros(1),) * 2, "differ in their nesting"),
        ((None,), (torch.zeros(1),), r"leaf \[0\] .* types NoneType and Tensor"),
        ((torch.zeros(1),), (None,), r"leaf \[0\] .* types NoneType and Tensor"),
        ((["a"],), (torch.zeros(1),), r"leaf \[0\] .* types Tensor and list"),
        ((np.zeros(2),), (np.zeros(2),), r"leaf \[0\] of the batch is a ndarray"),
    ],
)
def test_batches_that_cannot_be_joined_are_refused(first: Any, second: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        concatenate([first, second])
    assert "\n" not in str(error.value)


def test_keys_decide_what_is_joined_and_not_their_order() -> None:
    first = {"x": torch.tensor([1]), "y": torch.tensor([10])}
    second = {"y": torch.tensor([20]), "x": torch.tensor([2])}
    assert same(
        concatenate([first, second]), {"x": torch.tensor([1, 2]), "y": torch.tensor([10, 20])}
    )


def test_one_batch_is_itself() -> None:
    batch = {"x": torch.zeros(2)}
    assert concatenate([batch]) is batch


def test_move_reaches_every_tensor_and_nothing_else() -> None:
    batch = {"x": [torch.zeros(2), (torch.ones(3),)], "name": "a", "none": None, "ids": ["b"]}
    moved = move(batch, "meta")
    assert [leaf.device.type for leaf in tensors(moved)] == ["meta", "meta"]
    assert (moved["name"], moved["none"], moved["ids"]) == ("a", None, ["b"])
    assert move(batch, "cpu")["x"][0] is batch["x"][0]


def test_what_can_move_itself_does() -> None:
    packed = move({"text": pack_sequence([torch.ones(3), torch.ones(2)])}, "meta")["text"]
    assert packed.data.device.type == "meta"
    assert packed.batch_sizes.device.type == "cpu"


def test_length_is_that_of_the_first_tensor_with_rows() -> None:
    assert length({"n": torch.tensor(3), "name": ["a"], "x": torch.zeros(5, 2)}) == 5
    assert length(torch.zeros(0, 2)) == 0


@pytest.mark.parametrize("batch", [{"name": ["a"]}, torch.tensor(1.0), None, UserDict(), ()])
def test_a_batch_without_rows_is_refused(batch: Any) -> None:
    with pytest.raises(UsageError, match=f"a {type(batch).__name__} without any tensor"):
        length(batch)


def test_channels_last_stays_channels_last() -> None:
    pictures = torch.randn(5, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    for chosen in (take(pictures, torch.tensor([4, 0, 4]), 5), take(pictures, slice(1, 3), 5)):
        assert chosen.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(take(pictures, torch.tensor([4, 0]), 5), pictures[[4, 0]])
    joined = concatenate([pictures, pictures])
    assert joined.is_contiguous(memory_format=torch.channels_last)
