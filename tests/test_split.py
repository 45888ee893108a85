"""Batches of the usual kinds are split; others are refused with what was found."""

from collections import UserDict
from typing import Any

import pytest

from gradsift.data.split import split_batch
from gradsift.errors import UsageError


@pytest.mark.parametrize("batch", [("x", "y"), ["x", "y"]])
def test_pairs(batch: Any) -> None:
    assert split_batch(batch) == ("x", "y")


def test_nested_inputs_are_handed_on() -> None:
    inputs, targets = {"a": 1}, object()
    assert split_batch((inputs, targets)) == (inputs, targets)
    assert split_batch((inputs, targets))[0] is inputs


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mappings_with_labels(kind: Any) -> None:
    batch = kind({"ids": 1, "labels": 2, "mask": 3})
    assert split_batch(batch) == ({"ids": 1, "mask": 3}, 2)
    assert dict(batch) == {"ids": 1, "labels": 2, "mask": 3}


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"x": 1, "y": 2}, r"a mapping with the keys 'x', 'y'"),
        ({}, r"a mapping with the keys"),
        ((1, 2, 3), r"a tuple of 3"),
        ([1], r"a list of 1"),
        ((), r"a tuple of 0"),
        ("xy", r"a str"),
        (None, r"a NoneType"),
    ],
)
def test_others_are_refused_with_what_was_found(batch: Any, found: str) -> None:
    with pytest.raises(UsageError, match=found + r".*, expected \(inputs, targets\).*pass split="):
        split_batch(batch)
