"""However examples are taken, none is lost, none comes twice, and data stay with their ids."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradsift.data.passes import Passes, Portion, join

many = settings(derandomize=True, max_examples=200, deadline=None)
Sizes = list[list[int]]
"""Batch sizes of successive passes."""

PASSES = st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=5)
ACTIONS = st.lists(st.sampled_from(["next", "begin", 1, 2, 3, 5, 8, 13]), max_size=14)


def planted(ids: Tensor) -> dict[str, object]:
    """Data from which an id can be read back, in two ways."""
    return {"x": ids * 10 + 7, "name": [f"n{number}" for number in ids.tolist()]}


def source(sizes: Sizes) -> tuple[Callable[[], Iterator[Portion]], list[int]]:
    """Passes of the given batch sizes over growing ids, then nothing; and all ids in order."""
    total = sum(map(sum, sizes))
    batches: list[list[Portion]] = []
    start = 0
    for one_pass in sizes:
        batches.append([])
        for size in one_pass:
            ids = torch.arange(start, start + size)
            batches[-1].append(Portion(ids, planted(ids)))
            start += size
    remaining = iter(batches)
    return lambda: iter(next(remaining, [])), list(range(total))


def check(portion: Portion) -> list[int]:
    ids = portion.ids.tolist()
    assert portion.data["x"].tolist() == [10 * number + 7 for number in ids]
    assert portion.data["name"] == [f"n{number}" for number in ids]
    assert portion.ids.dtype == torch.int64
    return ids


@given(sizes=PASSES, actions=ACTIONS)
@many
def test_any_sequence_returns_the_concatenation(sizes: Sizes, actions: list[str | int]) -> None:
    sizes = [one_pass if sum(one_pass) else [1] for one_pass in sizes]
    restart, expected = source(sizes)
    passes = Passes(restart)
    passes.begin()
    passes.carries_over = True
    seen: list[int] = []
    for action in [*actions, *["next"] * (len(expected) + 1)]:
        if action == "begin":
            passes.begin()
            continue
        portion = passes.next() if action == "next" else passes.take(int(action))
        if portion is None:
            assert seen == expected
            continue
        ids = check(portion)
        if action != "next":
            left = len(expected) - len(seen)
            assert len(ids) == min(int(action), left)
        seen += ids
        assert seen == expected[: len(seen)]
    assert seen == expected


@given(sizes=PASSES)
@many
def test_plain_iteration_is_the_users_own(sizes: Sizes) -> None:
    restart, expected = source(sizes)
    passes = Passes(restart)
    seen: list[int] = []
    for one_pass in sizes:
        passes.begin()
        nonempty = [size for size in one_pass if size]
        for size in nonempty:
            ahead = passes.peek(restart=False)
            portion = passes.next()
            assert portion is ahead
            assert portion is not None
            assert len(portion) == size
            seen += check(portion)
        assert passes.next() is None
        assert passes.next() is None
        if nonempty:
            assert passes.batches_in_pass == len(nonempty)
    assert seen == expected
    assert not passes.carries_over


def test_an_epoch_that_was_left_early_begins_anew() -> None:
    passes = Passes(lambda: iter([Portion(torch.tensor([n])) for n in range(3)]))
    passes.begin()
    first = passes.next()
    passes.peek(restart=False)
    passes.begin()
    again = passes.next()
    assert first is not None
    assert again is not None
    assert first.ids.tolist() == again.ids.tolist() == [0]


def test_what_was_cut_off_is_carried_into_the_next_epoch() -> None:
    restart, _ = source([[4, 4], [4, 4]])
    passes = Passes(restart)
    passes.begin()
    taken = passes.take(3)
    passes.begin()
    rest = passes.take(7)
    assert taken is not None
    assert rest is not None
    assert check(taken) + check(rest) == list(range(10))


def test_restarting_is_asked_for_only_when_a_pass_has_ended() -> None:
    calls: list[int] = []

    def restart() -> Iterator[Portion]:
        calls.append(len(calls))
        return iter([Portion(torch.arange(2)), Portion(torch.arange(2, 4))])

    passes = Passes(restart)
    passes.begin()
    passes.take(4)
    assert calls == [0]
    passes.take(1)
    assert calls == [0, 1]


@pytest.mark.parametrize("wanted", [1, 5, 100])
def test_a_one_pass_source_ends(wanted: int) -> None:
    stream = iter([Portion(torch.arange(3)), Portion(torch.arange(3, 5))])
    passes = Passes(lambda: stream)
    passes.begin()
    seen: list[int] = []
    while (portion := passes.take(wanted)) is not None:
        seen += portion.ids.tolist()
    assert seen == [0, 1, 2, 3, 4]
    assert passes.peek(restart=True) is None


def test_an_empty_source_gives_nothing() -> None:
    passes = Passes(lambda: iter(()))
    passes.begin()
    assert passes.take(3) is None
    assert passes.next() is None
    assert passes.batches_in_pass is None


@given(count=st.integers(2, 8), cut=st.integers(1, 8))
@many
def test_splitting_and_joining_cancel(count: int, cut: int) -> None:
    ids = torch.arange(count)
    cut = min(cut, count - 1)
    head, tail = Portion(ids, planted(ids)).split(cut)
    assert len(head) == cut
    assert check(head) + check(tail) == check(join([head, tail])) == ids.tolist()


def test_portions_without_data_stay_without() -> None:
    head, tail = Portion(torch.arange(3)).split(1)
    assert head.data is tail.data is join([head, tail]).data is None


def test_a_list_of_ids_stays_the_batch_samplers_own() -> None:
    given = [3, 1]
    portion = Portion(given)
    assert portion.listed is given
    assert torch.equal(portion.ids, torch.tensor([3, 1]))
    assert Portion(torch.tensor([3, 1])).listed == given
