"""The parts that engines are made of: bookkeeping, shared memory, records, order, identity."""

import pickle
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engines import CROSS_ENTROPY, N, collate, examples, noisy, swapped
from gradsift import DataError, UsageError, scores
from gradsift.data.split import split_batch
from gradsift.engine.identity import compare, content_hash, fingerprint, sampled_ids
from gradsift.engine.interface import Block, blocks_of
from gradsift.engine.ledger import TRIES, Lease, Ledger, back_off
from gradsift.engine.opening import open_examples
from gradsift.engine.snapshot import Reader, Writer, make_board
from gradsift.engine.sweep import OFTEN, RARELY, Sweep
from gradsift.engine.task import plain_module
from gradsift.engine.wire import FAILED, Record, read_text, write_text

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "lease", "done", "late", "failed", "lost"]),
        st.integers(0, 5),
        st.integers(0, 2),
    ),
    max_size=80,
)


@given(EVENTS)
def test_no_request_is_lost_and_none_is_answered_twice(events: list[tuple[str, int, int]]) -> None:
    """Whatever happens, asked = answered + waiting + leased + set aside, block by block."""
    blocks = blocks_of(12, 2)
    ledger = Ledger()
    asked: Counter[int] = Counter()
    answered: Counter[int] = Counter()
    leases: list[Lease] = []
    ended: list[Lease] = []
    for event, number, worker in events:
        if event == "ask":
            fresh = number not in ledger.under_way and number not in ledger.set_aside
            asked[number] += fresh
            ledger.ask([blocks[number]])
        elif event == "lease" and (lease := ledger.lease(worker)) is not None:
            leases.append(lease)
        elif event in ("done", "failed") and leases:
            lease = leases.pop(number % len(leases))
            ended.append(lease)
            if event == "done":
                assert ledger.done(lease.ticket) == lease.block
                answered[lease.block.number] += 1
            else:
                ledger.failed(lease.ticket, "a reason")
        elif event == "late" and ended:
            assert ledger.done(ended[number % len(ended)].ticket) is None
            ledger.failed(ended[number % len(ended)].ticket, "late")
        elif event == "lost":
            held = [lease for lease in leases if lease.worker == worker]
            assert held == ledger.held_by(worker)
            ledger.lost(worker, held[0].ticket if held else None, "killed")
            ended += held
            leases = [lease for lease in leases if lease.worker != worker]
        for block in blocks:
            open_now = int(block.number in ledger.under_way) + (block.number in ledger.set_aside)
            assert asked[block.number] == answered[block.number] + open_now
    assert ledger.delivered == sum(answered.values())
    assert ledger.waiting + len(leases) == len(ledger.under_way)


def test_only_the_block_in_work_is_charged_when_a_worker_is_lost() -> None:
    ledger = Ledger()
    ledger.ask(blocks_of(6, 2))
    for _ in range(TRIES):
        held = [ledger.lease(0) for _ in range(3)]
        poison = next(one for one in held if one is not None and one.block.number == 1)
        ledger.lost(0, poison.ticket, "killed")
    assert ledger.set_aside == {1}
    assert ledger.under_way == {0, 2}
    assert "block 1 (examples 2 to 3) failed 3 times" in ledger.news[-1]
    ledger.ask(blocks_of(6, 2))
    assert ledger.waiting == 2


def test_a_success_forgives() -> None:
    ledger = Ledger()
    for _ in range(5):
        ledger.ask([Block(0, 0, 2)])
        for end in (ledger.failed, ledger.failed):
            lease = ledger.lease(0)
            assert lease is not None
            end(lease.ticket, "once more")
        lease = ledger.lease(0)
        assert lease is not None
        assert ledger.done(lease.ticket) is not None
    assert not ledger.set_aside


def test_restarts_come_ever_later_up_to_a_minute() -> None:
    waits = [back_off(failures) for failures in range(1, 20)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.0, 60.0)


def test_a_board_gives_back_what_was_written_for_every_type() -> None:
    parameters = {
        "weight": torch.randn(3, 5),
        "half": torch.randn(7).bfloat16(),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 2),
        "flag": torch.tensor([True, False]),
        "wide": torch.randn(2, dtype=torch.float64),
    }
    board = make_board(parameters)
    reader = Reader(board)
    assert reader.read() is None
    Writer(board).write(parameters, 9)
    found = reader.read()
    assert found is not None
    assert found[1] == 9
    for name, value in parameters.items():
        assert torch.equal(found[0][name], value)
    with pytest.raises(UsageError, match="other parameters than it was started with, first 'half'"):
        Writer(board).write({**parameters, "half": torch.zeros(7)}, 10)


def test_a_reader_never_sees_a_mixture_while_a_writer_laps_it() -> None:
    """Every element of a set is its version: a mixture would show."""
    board = make_board({"weight": torch.zeros(200_000), "more": torch.zeros(50)})
    writer, stop = Writer(board), threading.Event()

    def write() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            writer.write(
                {"weight": torch.full((200_000,), float(version)), "more": torch.full((50,), 1.0)},
                version,
            )

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    reader, seen = Reader(board), set()
    try:
        while len(seen) < 30:
            found = reader.read()
            if found is not None:
                values, version = found
                assert bool((values["weight"] == version).all())
                seen.add(version)
    finally:
        stop.set()
        thread.join()


def test_a_set_that_is_being_written_is_not_read() -> None:
    """A writer that died in the middle leaves an odd sequence; the reader keeps to whole sets."""
    board = make_board({"weight": torch.zeros(2)})
    Writer(board).write({"weight": torch.ones(2)}, 1)
    slot_of_next = 0
    board.header[1 + slot_of_next] += 1
    board.slots[slot_of_next] = 255
    found = Reader(board).read()
    assert found is not None
    assert found[1] == 1
    assert found[0]["weight"].tolist() == [1.0, 1.0]


@given(st.integers(0, 2**40), st.integers(0, 2**31), st.integers(0, 2**50), st.floats(0, 1e9))
def test_records_survive_the_wire(ticket: int, lane: int, version: int, seconds: float) -> None:
    record = Record(FAILED, ticket, lane, 2**33, 2**34, version, seconds)
    assert Record.unpack(record.pack()) == record
    assert len(record.pack()) + 4 <= 512  # what POSIX lets a pipe take whole, at least


@given(st.text(max_size=300))
def test_texts_fit_into_a_lane(text: str) -> None:
    lanes = torch.zeros(2, 16)
    found = read_text(lanes, 1, write_text(lanes, 1, text))
    assert "\n" not in found
    assert not bool(lanes[0].any())
    if len(text.encode()) <= 64:
        assert found == " ".join(text.split())


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 7))
def test_round_robin_visits_all_before_any_again(examples: int, size: int, ask: int) -> None:
    sweep = Sweep(examples, size)
    count = len(sweep.blocks)
    seen = [block.number for _ in range(3 * count) for block in sweep.next(ask, ())]
    for start in range(0, len(seen) - count + 1, count):
        if ask <= count:
            assert sorted(seen[start : start + count]) == list(range(count))
    assert [i for block in sweep.blocks for i in block.ids.tolist()] == list(range(examples))


def slow_rates(costs: list[float]) -> list[float]:
    """The formula of `Sweep`, block by block; one without a cost counts as the mean of others."""
    known = [cost for cost in costs if not np.isnan(cost)]
    filled = [sum(known) / len(known) if np.isnan(cost) else cost for cost in costs]
    roots = [cost**0.5 for cost in filled]
    return [min(max(root / (sum(roots) / len(roots)), RARELY), OFTEN) for root in roots]


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=12).filter(any),
    st.integers(0, 12),
    st.integers(1, 9),
)
def test_adaptive_rates_are_the_formula(costs: list[float], unknown: int, steps: int) -> None:
    """A cost counts per step of age; the first is taken whole, later ones by half.

    Scores that are not newer than those from before tell nothing about ageing.
    """
    sweep = Sweep(10 * len(costs), 10, "adaptive")
    expected = list(costs)
    for block, cost in zip(sweep.blocks, costs, strict=True):
        if block.number == unknown and any(costs[:unknown] + costs[unknown + 1 :]):
            expected[unknown] = float("nan")
            continue
        sweep.came(block, 4, 0.0, None)
        sweep.came(block, 4 + steps, 0.0, steps * (cost / 2))
        sweep.came(block, 4 + 2 * steps, 0.0, steps * (cost * 1.5))
        sweep.came(block, 4 + 2 * steps, 0.0, 0.0)
        sweep.came(block, 5, 0.0, 1e9)
    np.testing.assert_allclose(sweep.rates, slow_rates(expected), rtol=1e-9)
    again = Sweep(10 * len(costs), 10, "adaptive")
    again.load_state_dict(sweep.state_dict())
    assert again.rates.tolist() == sweep.rates.tolist()


def test_adaptive_rates_are_kept() -> None:
    sweep, costs = Sweep(320, 10, "adaptive"), [0.1, 0.4, 0.0, 0.9]
    for block, cost in zip(sweep.blocks, 8 * costs, strict=True):
        sweep.came(block, 4, 0.0, None)
        sweep.came(block, 5, 0.0, cost)
    visits = Counter(sweep.next(1, ())[0].number for _ in range(4000))
    shares = np.array([visits[k] for k in range(32)]) / 4000
    np.testing.assert_allclose(shares, sweep.rates / sweep.rates.sum(), rtol=0.15)


def test_a_sweep_leaves_out_what_is_set_aside_and_knows_what_is_old() -> None:
    sweep = Sweep(8, 2)
    assert [block.number for block in sweep.next(9, {1, 4, 900})] == [0, 2, 3]
    assert not sweep.older(100, 100.0).any()
    sweep.came(sweep.blocks[0], 5, 1.0, None)
    sweep.came(sweep.blocks[2], 9, 2.0, None)
    assert sweep.older(7, -np.inf).tolist() == [True, False, False, False]
    assert sweep.older(-1, 2.5).tolist() == [True, False, True, False]
    sweep.came(sweep.blocks[2], 8, 3.0, None)
    assert sweep.versions[2] == 9
    sweep.forgotten(sweep.blocks[0])
    assert not sweep.older(7, -np.inf).any()


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100, 12_345, 10**9, 2**31 - 1])
def test_the_sample_of_ids_is_spread_and_in_range(length: int) -> None:
    ids = sampled_ids(length)
    assert ids == sorted(set(ids))
    assert (ids[0], ids[-1]) == (0, length - 1)
    assert min(length, 24) <= len(ids) <= 32
    if length > 100:
        assert max(np.diff(ids)) < length / 8


def test_identity_is_content() -> None:
    mine = fingerprint(examples(), collate, split_batch)
    assert compare(mine, fingerprint(examples(), collate, split_batch)) is None
    with pytest.raises(DataError, match=r"at example 0: its content is another one"):
        compare(mine, fingerprint(swapped(), collate, split_batch))
    shorter = torch.utils.data.Subset(examples(), range(N - 1))
    with pytest.raises(DataError, match=f"has {N - 1} examples, but the loader's has {N}"):
        compare(mine, fingerprint(shorter, collate, split_batch))


def test_under_random_transforms_targets_are_compared_and_it_says_so() -> None:
    mine = fingerprint(noisy(), collate, split_batch)
    assert set(mine.contents) == {""}
    told = compare(mine, fingerprint(noisy(), collate, split_batch))
    assert told is not None
    looked = len(sampled_ids(N))
    assert told.startswith(f"two reads of {looked} of {looked} examples differ")
    with pytest.raises(DataError, match="at example 0: its target is another one"):
        compare(mine, fingerprint(swapped(), collate, split_batch))


def test_hashes_tell_types_shapes_values_and_nesting_apart() -> None:
    trees = [
        torch.zeros(2),
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(1, 2),
        torch.tensor([0.0, 1.0]),
        np.zeros(2),
        (torch.zeros(2),),
        {"a": torch.zeros(2)},
        {"b": torch.zeros(2)},
        0,
        0.0,
        "0",
        None,
    ]
    assert len({content_hash(tree) for tree in trees}) == len(trees)
    strided: Tensor = torch.arange(6.0).reshape(2, 3).T
    assert content_hash(strided) == content_hash(strided.contiguous())


def test_openings() -> None:
    assert len(open_examples("engines:examples")) == N
    assert len(open_examples(examples)) == N
    assert len(open_examples(examples())) == N
    assert len(open_examples(lambda: (examples(), swapped()))) == N
    with pytest.raises(UsageError, match="data set 'nowhere' is unknown"):
        open_examples("nowhere")
    with pytest.raises(DataError, match="is a int, expected a map-style"):
        open_examples(lambda: 3)


def test_wrappers_are_looked_through() -> None:
    inner = nn.Linear(1, 1)
    compiled = nn.Module()
    compiled._orig_mod = nn.DataParallel(inner)
    assert plain_module(compiled) is inner
    assert plain_module(inner) is inner


def test_a_gradient_norm_travels_without_the_models_that_it_knows() -> None:
    score, model = scores.GradientNorm(params="last", check=False), nn.Linear(2, 2)
    score(model, CROSS_ENTROPY, torch.ones(1, 2), torch.zeros(1).long())
    assert len(score._whole) == 1
    there = pickle.loads(pickle.dumps(score))
    assert (there.params, there.mode, there.check) == ("last", "eval", False)
    assert len(there._whole) == 0
