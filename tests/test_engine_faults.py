"""Faults of real processes: killed, stopped, silent, slow, gone. Training goes on in every case."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import gradsift
from engines import (
    BLOCK,
    CROSS_ENTROPY,
    HANG,
    KILL,
    NONE,
    SLOW,
    Commanded,
    N,
    examples,
    faulty_task,
    model,
    noisy,
    norm_task,
)
from gradsift import UsageError, engines
from gradsift.engine.interface import Options, Scored, blocks_of
from gradsift.engine.local import LocalEngine

BLOCKS = blocks_of(N, BLOCK)


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """Workers import this folder's modules by name."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    yield
    patch.undo()


class Watched:
    """An engine with what has come out of it, and what it said."""

    def __init__(self, scorers: int = 1, **options: Any) -> None:
        self.engine = LocalEngine(Options(block=BLOCK), scorers, **options)
        self.engine.start(faulty_task())
        self.version = 0
        self.told: list[str] = []

    def publish(self, fault: int = NONE, at: int = 0) -> None:
        self.version += 1
        sent = Commanded(fault, at)
        with torch.no_grad():
            sent.weight.fill_(self.version / 4096)
        self.engine.publish(sent.state_dict(), self.version)

    def until(self, reached: Any, seconds: float = 60.0) -> list[Scored]:
        found: list[Scored] = []
        deadline = time.monotonic() + seconds
        while not reached(found) and time.monotonic() < deadline:
            found += self.engine.collect(wait=0.1)
            self.told += self.engine.news()
        assert reached(found), self.told
        numbers = [scored.block.number for scored in found]
        assert len(numbers) == len(set(numbers)), "counted twice"
        for scored in found:
            expected = (scored.block.ids + 1.0) * scored.version
            torch.testing.assert_close(scored.scores, expected)
        return found

    def pids(self) -> list[int]:
        return [seat.pid for seat in self.engine.seats if seat.pid is not None]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def one() -> Iterator[Watched]:
    made = Watched(patience=2.0)
    yield made
    pids = made.pids()
    made.engine.close()
    assert all(gone(pid) for pid in pids)


def test_killed_from_outside_and_replaced(one: Watched) -> None:
    (pid,) = one.pids()
    os.kill(pid, signal.SIGKILL)
    one.publish()
    one.engine.request(BLOCKS)
    one.until(lambda found: len(found) == len(BLOCKS))
    state = one.engine.state
    assert (state.workers_lost, state.restarts, state.workers) == (1, 1, 1)
    assert one.told == ["worker 0 ended (exit code -9): started again now"]
    assert one.pids() != [pid]


@pytest.mark.slow
def test_a_block_that_kills_its_workers_is_named_and_left_alone(one: Watched) -> None:
    one.publish(KILL, at=2 * BLOCK)
    one.engine.request(BLOCKS)
    found = one.until(lambda found: len(found) == len(BLOCKS) - 1)
    one.until(lambda _: bool(one.engine.state.set_aside))
    assert 2 not in {scored.block.number for scored in found}
    assert one.engine.state.set_aside == (2,)
    assert one.engine.state.workers_lost == 3
    assert any("block 2 (examples 16 to 23) failed 3 times" in line for line in one.told)


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced_after_the_patience(one: Watched) -> None:
    one.publish(HANG, at=BLOCK)
    one.engine.request(BLOCKS)
    one.until(lambda _: one.engine.state.workers_lost == 1)
    one.publish()
    one.until(lambda found: any(scored.block.number == 1 for scored in found))
    assert one.told[0].startswith("worker 0 was silent for")
    assert "block 1 (examples 8 to 15) failed and is tried again" in one.told[1]


@pytest.mark.slow
def test_a_stopped_process_is_killed_and_replaced(one: Watched) -> None:
    """SIGSTOP at any moment: the trainer's calls return at once all the same."""
    (pid,) = one.pids()
    one.publish(SLOW, at=-1)
    one.engine.request(BLOCKS)
    time.sleep(0.3)
    os.kill(pid, signal.SIGSTOP)
    before = time.monotonic()
    for _ in range(10):
        one.publish()
        one.engine.request(BLOCKS)
        one.engine.collect()
    assert time.monotonic() - before < 1.5
    one.until(lambda _: one.engine.state.restarts == 1)
    assert gone(pid)
    one.until(lambda found: len(found) >= 2)


@pytest.mark.slow
def test_a_process_that_is_stopped_while_it_rests_is_noticed_too(one: Watched) -> None:
    os.kill(one.pids()[0], signal.SIGSTOP)
    one.publish()
    one.engine.request(BLOCKS)
    one.until(lambda found: len(found) == len(BLOCKS))
    assert one.engine.state.workers_lost == 1
    assert not one.engine.state.set_aside


@pytest.mark.slow
def test_of_two_workers_the_other_takes_over() -> None:
    both = Watched(scorers=2)
    both.until(lambda _: both.engine.state.workers == 2)
    both.publish(SLOW, at=-1)
    both.engine.request(BLOCKS)
    both.until(lambda found: len(found) >= 1)
    os.kill(both.pids()[0], signal.SIGKILL)
    both.until(lambda found: not both.engine._ledger.under_way)
    assert both.engine.state.workers_lost == 1
    both.engine.close()


@pytest.mark.slow
def test_with_all_dead_it_returns_at_once_and_comes_back() -> None:
    both = Watched(scorers=2)
    both.publish()
    for _ in range(2):
        for pid in both.pids():
            os.kill(pid, signal.SIGKILL)
        both.until(lambda _: both.engine.state.workers == 0)
        both.engine.request(BLOCKS)
        before = time.monotonic()
        both.engine.collect()
        assert time.monotonic() - before < 1.0
        both.until(lambda found: len(found) == len(BLOCKS))
    both.engine.close()


@pytest.mark.slow
def test_workers_end_with_a_trainer_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(
        "import time\n"
        "from engines import faulty_task\n"
        "from gradsift import engines\n"
        "if __name__ == '__main__':\n"
        "    engine = engines.local(block=8, scorers=2)\n"
        "    engine.start(faulty_task())\n"
        "    print(*[seat.pid for seat in engine.seats], flush=True)\n"
        "    time.sleep(1000)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while not all(gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


@pytest.mark.slow
def test_random_transforms_are_said(caplog: pytest.LogCaptureFixture) -> None:
    engine = engines.local(block=BLOCK)
    engine.start(norm_task(opening="engines:noisy", trainers=noisy()))
    assert any("targets alone were compared" in line for line in engine.news())
    engine.close()


@pytest.mark.slow
def test_what_cannot_be_sent_is_said() -> None:
    engine = engines.local(block=BLOCK)
    sifted = gradsift.sift(
        DataLoader(examples(), batch_size=8, shuffle=True),
        model(),
        lambda outputs, targets: CROSS_ENTROPY(outputs, targets),
        engine=engine,
    )
    with pytest.raises(UsageError, match="cannot be sent to a worker"):
        next(iter(sifted))


@pytest.mark.slow
def test_training_with_workers_that_are_killed_all_the_time_ends_and_learns() -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    engine = engines.local("engines:examples", scorers=2, block=BLOCK, every=4)
    loader = DataLoader(examples(), batch_size=8, shuffle=True)
    train = gradsift.sift(loader, network, CROSS_ENTROPY, engine=engine)
    inputs, targets = examples().tensors
    before = CROSS_ENTROPY(network(inputs), targets).mean().item()
    assert isinstance(engine, LocalEngine)
    for epoch in range(60):
        for batch in train:
            optimizer.zero_grad()
            batch.loss(network(batch.inputs)).backward()
            optimizer.step()
            time.sleep(0.005)
        if epoch % 10 == 9:
            for seat in engine.seats:
                if seat.pid is not None:
                    os.kill(seat.pid, signal.SIGKILL)
    assert CROSS_ENTROPY(network(inputs), targets).mean().item() < before
    assert train.engine is not None
    assert train.engine["workers_lost"] >= 2
    assert train.engine["kind"] == "local"
    train.close()
