"""Tickets, and the coordinator, under every fault: each batch ends in exactly one update."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import crowd
from crowd import DELIVER, DIE, LONGEST, SERVER_AFTER, SERVER_BEFORE, SILENCE, TWICE, Crowd
from gradsift.errors import DataError, TrainingError, UsageError
from gradsift.parallel import (
    Arrival,
    ConstantDelay,
    Coordinator,
    MeasuredTickets,
    PlannedTickets,
    Recording,
    TraceDelay,
    UniformDelay,
    arrivals_by_age,
    arrivals_by_race,
    asgd,
    longest_age,
    read_arrivals,
)
from gradsift.parallel.actors import ServerLostError
from gradsift.parallel.recording import Batches
from gradsift.parallel.service import Once
from gradsift.parallel.tickets import Ticket

TOTAL, FEW = 30, 16


@st.composite
def scripts(draw):
    """Who is heard of next, with fewer losses than end a run: of workers, and of the server."""
    which = st.integers(0, 7)
    script = draw(st.lists(st.tuples(st.sampled_from([DELIVER, TWICE]), which), max_size=50))
    for faults in ((DIE, SILENCE), (SERVER_BEFORE, SERVER_AFTER)):
        for fault in draw(st.lists(st.sampled_from(faults), max_size=4)):
            script.insert(draw(st.integers(0, len(script))), (fault, draw(which)))
    return [(DELIVER, 0)] * 3 + script


def begin(actors, tickets, workers=3, **changes):
    usual = {"rate": crowd.rate, "every": 7, "patience": 500.0, "clock": actors.clock}
    state = crowd.make_service().state_dict()
    stream = crowd.stream(tickets.total)
    return Coordinator(actors, tickets, stream, state, workers, **{**usual, **changes})


def assert_each_once(coordinator):
    """Nothing is lost, nothing is doubled, and what was done is what a simulation does."""
    tickets = coordinator.tickets
    assert sorted(ticket.batch for ticket in tickets.taken) == list(range(tickets.total))
    numbers = [ticket.number for ticket in tickets.taken]
    assert len(set(numbers)) == tickets.received == tickets.total == coordinator.saved
    assert tickets.issued == tickets.received + tickets.undone + tickets.lost + tickets.open
    server, guide, average = crowd.replayed(tickets.taken, crowd.stream(tickets.total))
    assert coordinator.state["server"]["received"] == tickets.total
    assert coordinator.state["server"]["version"] == server.version
    assert coordinator.state["guide"]["replays"] == guide.replays > 0
    assert crowd.weights_of(coordinator.state) == [w.tolist() for w in server.weights]
    mean = coordinator.state["average"]["mean"]
    assert [w.tolist() for w in mean] == [w.tolist() for w in average.weights]


@settings(max_examples=14)
@given(scripts(), st.sampled_from([None, 0, 2]))
def test_whoever_dies_every_batch_is_one_update(script, bound):
    actors = Crowd(script)
    coordinator = begin(actors, MeasuredTickets(FEW, LONGEST, bound))
    seen = [progress.received for progress in coordinator.run()]
    assert seen[-1] == FEW
    assert all(after == before + 1 or after <= before for before, after in itertools.pairwise(seen))
    assert_each_once(coordinator)
    for place, ticket in enumerate(coordinator.tickets.taken):
        assert 0 <= place - ticket.read <= LONGEST


@settings(max_examples=8)
@given(scripts(), st.integers(0, 4))
def test_a_planned_order_is_kept_whoever_dies(script, delay):
    arrivals = arrivals_by_age(ConstantDelay(delay), 3, FEW, torch.Generator())
    assert longest_age(arrivals) <= LONGEST
    coordinator = begin(Crowd(script), PlannedTickets(arrivals))
    for _ in coordinator.run():
        pass
    taken = coordinator.tickets.taken
    assert [Arrival(ticket.worker, ticket.read) for ticket in taken] == arrivals
    assert [ticket.batch for ticket in taken] == list(range(FEW))
    assert_each_once(coordinator)


@pytest.mark.parametrize("delay", [ConstantDelay(3), UniformDelay(0, 6)])
def test_a_planned_run_is_the_simulation_to_the_bit(delay):
    arrivals = arrivals_by_age(delay, 4, TOTAL, torch.Generator().manual_seed(3))
    coordinator = begin(Crowd(), PlannedTickets(arrivals), workers=2)
    for _ in coordinator.run():
        pass
    server, guide = crowd.make_parts(memory=longest_age(arrivals))
    rounds = asgd(server, crowd.lines(), arrivals, crowd.stream(TOTAL), guide)
    for received in range(TOTAL):
        for group in server.optimizer.param_groups:
            group["lr"] = crowd.rate(received)
        next(rounds)
    assert crowd.weights_of(coordinator.state) == [w.tolist() for w in server.weights]
    assert coordinator.state["server"]["version"] == server.version


def test_losses_are_counted_told_and_replaced():
    script = [*[(0, 0)] * 5, (DIE, 0), (0, 0), (TWICE, 0), (0, 0), (SILENCE, 0)]
    actors = Crowd(script)
    coordinator = begin(actors, MeasuredTickets(TOTAL, LONGEST))
    for _ in coordinator.run():
        pass
    tickets = coordinator.tickets
    # One died; when nothing was heard for long, all three of that moment were given up.
    assert coordinator.workers_lost == 4
    assert coordinator.restarts == 4
    assert (tickets.lost, tickets.undone, tickets.refused) == (4, 0, 1)
    assert coordinator.news[0] == "worker 2 was killed: another one takes its place"
    assert sum("was silent for 1" in line for line in coordinator.news) == 3
    assert actors.applied == TOTAL
    assert_each_once(coordinator)


@pytest.mark.parametrize("moment", [SERVER_BEFORE, SERVER_AFTER])
def test_a_lost_server_goes_on_from_its_last_state(moment):
    """Whether or not the update was made before it died: the one in its state counts."""
    script = [*[(0, 0)] * 3, *[(0, 0)] * 12, (moment, 0)]
    actors = Crowd(script)
    coordinator = begin(actors, MeasuredTickets(TOTAL, LONGEST))
    seen = [progress.received for progress in coordinator.run()]
    assert seen[:13] == [*range(1, 13), 8]
    tickets = coordinator.tickets
    # 12 were there and the 13th was taken; the state had 7; two others were on their way.
    assert (tickets.undone, tickets.lost, tickets.refused) == (6, 2, 2)
    assert (actors.opened, coordinator.restarts, coordinator.workers_lost) == (2, 1, 0)
    assert coordinator.news == ["the server ended: goes on after 7 gradients"]
    assert actors.applied == TOTAL + 5 + (moment == SERVER_AFTER)
    assert_each_once(coordinator)


def test_a_worker_is_added_while_training():
    coordinator = begin(Crowd(), MeasuredTickets(TOTAL, LONGEST), workers=2)
    for progress in coordinator.run():
        if progress.received == 5:
            assert coordinator.add() == 2
    workers = [ticket.worker for ticket in coordinator.tickets.taken]
    assert set(workers[:5]) == {0, 1}
    assert set(workers[8:]) == {0, 1, 2}
    assert_each_once(coordinator)


def test_a_run_goes_on_in_other_processes():
    first = begin(Crowd(), MeasuredTickets(TOTAL, LONGEST))
    for progress in first.run():
        if progress.received == 17:
            break
    state = first.current()
    tickets = MeasuredTickets(TOTAL, LONGEST)
    tickets.go_on(first.tickets.taken[: first.saved])
    actors = Crowd()
    second = begin(actors, tickets)
    second.state = state
    assert [progress.received for progress in second.run()] == list(range(18, TOTAL + 1))
    assert actors.applied == TOTAL - 17
    assert_each_once(second)
    wrong = begin(Crowd(), MeasuredTickets(TOTAL, LONGEST))
    wrong.state = state
    with pytest.raises(UsageError, match="state has 17 gradients, the tickets 0"):
        next(iter(wrong.run()))


def test_who_cannot_start_or_is_always_lost_stops_the_run():
    class Stillborn(Crowd):
        def hear(self, wait):
            self.now += 1000.0
            return []

    with pytest.raises(UsageError, match="worker 0 cannot start: it was silent for 1000 s"):
        list(begin(Stillborn(), MeasuredTickets(TOTAL, LONGEST)).run())
    deadly = Crowd([(DIE, 0)] * 400)
    with pytest.raises(TrainingError, match="every worker was lost 5 times in a row"):
        list(begin(deadly, MeasuredTickets(TOTAL, LONGEST), workers=1).run())

    class Headless(Crowd):
        def apply(self, ticket, gradients, batch, rate):
            raise ServerLostError("ended")

    with pytest.raises(TrainingError, match="the parameter server was lost 5 times"):
        list(begin(Headless(), MeasuredTickets(TOTAL, LONGEST)).run())

    class Doubling(Crowd):
        def apply(self, ticket, gradients, batch, rate):
            super().apply(ticket, gradients, batch, rate)
            other = Ticket(ticket.number + 1000, ticket.worker, ticket.read, ticket.batch)
            return super().apply(other, gradients, batch, rate)

    with pytest.raises(TrainingError, match="an update was lost or made twice"):
        list(begin(Doubling(), MeasuredTickets(TOTAL, LONGEST)).run())
    refused: tuple[dict[str, Any], ...] = ({"every": 0}, {"patience": 0.0}, {"workers": 0})
    for changes in refused:
        with pytest.raises(UsageError, match="expected at least 1, 1"):
            begin(Crowd(), MeasuredTickets(TOTAL, LONGEST), **changes)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.sampled_from([0, 1, 3]))
def test_stale_synchronous_workers_wait_for_the_slowest(turns, bound):
    """Whoever starts is at most the bound ahead of the slowest that is present."""
    tickets = MeasuredTickets(1000, 1000, bound)
    for worker in range(3):
        tickets.join(worker)
    held, delivered = {}, dict.fromkeys(range(3), 0)
    for turn in turns:
        worker = turn % 5
        if worker in held:
            assert tickets.deliver(held.pop(worker).number)
            delivered[worker] += 1
            continue
        if worker not in delivered:
            delivered[worker] = min(delivered.values())
        ticket = tickets.issue(worker)
        assert (ticket is None) == (delivered[worker] - min(delivered.values()) > bound)
        if ticket is not None:
            held[worker] = ticket


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([None, 0, 1, 2]),
)
def test_a_race_on_tickets_is_the_simulated_race(seconds, workers, bound):
    """Who ends first delivers; then all that wait ask again, in order."""
    tickets = MeasuredTickets(1000, 1000, bound)
    lasting = itertools.cycle(seconds)
    for worker in range(workers):
        tickets.join(worker)
    running = [(next(lasting), worker, tickets.issue(worker)) for worker in range(workers)]
    waiting = set()
    while tickets.received < 40:
        now, worker, ticket = running.pop(running.index(min(running, key=lambda run: run[:2])))
        assert ticket is not None
        assert tickets.deliver(ticket.number) == [ticket]
        waiting.add(worker)
        for other in sorted(waiting):
            if (following := tickets.issue(other)) is not None:
                waiting.remove(other)
                running.append((now + next(lasting), other, following))
    trace = TraceDelay([float(second) for second in seconds])
    expected = arrivals_by_race(trace, workers, 40, torch.Generator(), bound)
    assert [Arrival(ticket.worker, ticket.read) for ticket in tickets.taken] == expected


@given(st.lists(st.integers(0, 12), max_size=60))
def test_once_is_a_set(numbers):
    once, seen = Once(), set()
    for number in numbers:
        assert once.first(number) == (number not in seen)
        seen.add(number)
    again = Once()
    again.load_state_dict(once.state_dict())
    assert [again.first(number) for number in range(13)] == [n not in seen for n in range(13)]
    runs = sum(number - 1 not in seen for number in seen)
    assert len(once.state_dict()["starts"]) == runs


@given(st.permutations(range(9)), st.integers(0, 9))
def test_batches_stay_until_they_are_dropped(order, cut):
    whole = list(torch.arange(18).split(2))
    kept = Batches(whole)
    for place in order[:cut]:
        assert torch.equal(kept[place], whole[place])
        assert torch.equal(kept[place], whole[place])
        kept.drop([place])
    assert len(kept) == (max(order[:cut]) + 1 - cut if cut else 0)
    again = Batches(whole)
    again.skip(order[:cut])
    for place in order[cut:]:
        assert torch.equal(again[place], whole[place])
    with pytest.raises(UsageError, match="batch 10 asked for, but there are 9"):
        again[9]


def test_a_recording_comes_back_from_its_file(tmp_path):
    taken = [Ticket(4, 1, 0, 2), Ticket(9, 0, 1, 0), Ticket(2, 1, 0, 1)]
    recording = Recording.of(taken)
    recording.write(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "worker,read,batch\n1,0,2\n0,1,0\n1,0,1\n"
    assert read_arrivals(tmp_path / "a.csv") == recording
    whole = list(torch.arange(6).split(2))
    assert [batch.tolist() for batch in recording.reordered(whole)] == [[4, 5], [0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no record of arrivals: expected a line 'worker,read,batch'"),
        ("worker,read,batch\n", "is no record of arrivals"),
        ("worker,read,batch\n0,0\n", "three whole numbers"),
        ("worker,read,batch\n0,zero,0\n", "invalid literal"),
        ("worker,read,batch\n0,0,0\n0,2,1\n", "arrival 2 has worker 0 and read 2"),
        ("worker,read,batch\n-1,0,0\n", "arrival 1 has worker -1"),
        ("worker,read,batch\n0,0,0\n0,0,0\n", "each once"),
        ("worker,read,batch\n0,0,1\n", "each once"),
        (None, "cannot be read"),
    ],
)
def test_broken_recordings_are_one_line(text, message, tmp_path):
    path = Path(tmp_path / "a.csv")
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_arrivals(path)
    assert "\n" not in str(caught.value)


def test_tickets_that_cannot_work_are_refused():
    with pytest.raises(UsageError, match="0 batches received"):
        MeasuredTickets(0, 3)
    for longest, bound in ((-1, None), (3, -1)):
        with pytest.raises(UsageError, match="expected numbers of at least 0"):
            MeasuredTickets(3, longest, bound)
