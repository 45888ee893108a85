"""Several processes and one engine, without processes: what one says, another hears."""

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import gradsift
from engines import BLOCK, CROSS_ENTROPY, N, examples, model
from gradsift import UsageError, engines
from gradsift.clock import VirtualClock
from gradsift.engine.inline import InlineEngine
from gradsift.engine.interface import Scored
from gradsift.sifting import loop
from gradsift.sifting.memory import WINDOW
from gradsift.sifting.ranks import Alone
from gradsift.sifting.setup import described
from test_searched import recipe

BATCH, STEPS = 4, 40


class Spoken(Alone):
    """One of two processes; what the first says is kept for the second."""

    def __init__(self, rank: int, tape: list[bytes]) -> None:
        super().__init__(rank)
        self.size = 2
        self.tape = tape
        self.heard = 0

    def agree(self, examples: int | None, *, wish: bool) -> list[int]:
        del wish
        return [examples or 0] * 2

    def lead(self, value: Any) -> Any:
        if self.rank == 0:
            self.tape.append(pickle.dumps(value))
        self.heard += 1
        return pickle.loads(self.tape[self.heard - 1])


class Mute(InlineEngine):  # pyright: ignore[reportGeneralTypeIssues]
    """Must not be spoken to."""

    def start(self, task: object) -> None:
        raise AssertionError("started in a process that does not lead")

    def publish(self, parameters: object, version: int) -> None:
        raise AssertionError("published to in a process that does not lead")

    def collect(self, wait: float = 0.0) -> list[Scored]:
        raise AssertionError("asked in a process that does not lead")


Seen = tuple[gradsift.SiftedLoader, list[tuple[Tensor, Tensor, bool]], Spoken]


def run(
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    tape: list[bytes],
    recipe: Any = "issgd",
    block: int = BLOCK,
) -> Seen:
    """The steps of one of two processes."""
    ranks = Spoken(rank, tape)
    monkeypatch.setattr(loop, "find_ranks", lambda *_, **__: ranks)
    network, clock = model(), VirtualClock(train=1.0, score=0.25)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    data = DataLoader(
        examples(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(rank)
    )
    made = engines.inline(block=block, every=8)
    engine = made if rank == 0 else Mute(made.options)
    train = gradsift.sift(data, network, CROSS_ENTROPY, recipe=recipe, engine=engine, clock=clock)
    seen: list[tuple[Tensor, Tensor, bool]] = []
    while train.steps < STEPS:
        for batch in train:
            optimizer.zero_grad()
            batch.loss(network(batch.inputs)).backward()
            optimizer.step()
            clock.charge(trained=len(batch))
            seen.append((batch.indices, batch.weights, batch.drawn))
    train.settle()
    return train, seen, ranks


def run_both(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Seen, Seen]:
    tape: list[bytes] = []
    return run(monkeypatch, 0, tape, **options), run(monkeypatch, 1, tape, **options)


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Seen, Seen]]:
    """What every test of the usual recipe looks at."""
    with pytest.MonkeyPatch.context() as patch:
        yield run_both(patch)


def test_the_second_process_has_the_table_of_the_first(both: tuple[Seen, Seen]) -> None:
    (first, _, led), (second, _, followed) = both
    assert led.heard == followed.heard == len(led.tape)
    mine, theirs = (train.table.state_dict() for train in (first, second) if train.table)
    for name in ("relative", "versions"):
        assert torch.equal(mine[name], theirs[name])
    assert mine["level"] == theirs["level"]
    assert mine["law"] == theirs["law"]
    assert first.gate == second.gate
    assert first.engine == second.engine == {"kind": "inline", "workers_lost": 0, "restarts": 0}
    assert first.examples_scored == second.examples_scored == STEPS * BLOCK
    assert first.seconds["scoring"] == second.seconds["scoring"] == 0.25 * STEPS * BLOCK
    status, told = first.engine_status, second.engine_status
    assert status == told


def test_both_take_shares_of_one_draw(both: tuple[Seen, Seen]) -> None:
    (_, mine, _), (_, theirs, _) = both
    assert [drawn for *_, drawn in mine] == [drawn for *_, drawn in theirs]
    steps = [pair for pair in zip(mine, theirs, strict=True) if pair[0][2]]
    together = min(WINDOW, N // (2 * BATCH))
    assert len(steps) > 5 * together
    assert any(not torch.equal(a[0], b[0]) for a, b in steps)
    for start in range(0, len(steps) - together + 1, together):
        window = steps[start : start + together]
        ids = torch.cat([part[0] for pair in window for part in pair])
        masses = torch.cat([1 / part[1].double() for pair in window for part in pair])
        expected = torch.zeros(N, dtype=torch.float64)
        expected[ids] = len(ids) * masses / N
        counts = torch.bincount(ids, minlength=N)
        assert bool((counts <= expected.floor() + 2).all()), "one stratified draw"


def test_scores_are_passed_on_once_in_a_window_and_at_publications(
    both: tuple[Seen, Seen],
) -> None:
    (_, _, led), _ = both
    deliveries = [pickle.loads(said) for said in led.tape[1:]]
    assert len(deliveries) == 1 + STEPS // 8
    assert sum(len(one.found) for one in deliveries) == STEPS
    assert not deliveries[0].found


def test_forgetting_by_seconds_is_decided_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its clock: eight of ten blocks come in forty seconds, the others are too old."""
    asked = recipe("issgd2015", seconds=40.0)
    (first, mine, led), (second, theirs, _) = run_both(monkeypatch, recipe=asked, block=4)
    assert any(pickle.loads(said).old for said in led.tape[1:])
    assert any(drawn for *_, drawn in mine)
    assert [drawn for *_, drawn in mine] == [drawn for *_, drawn in theirs]
    a, b = first.policy.state_dict()["proposal"], second.policy.state_dict()["proposal"]
    assert torch.equal(a["scores"].isnan(), b["scores"].isnan())
    assert torch.equal(a["scores"].nan_to_num(), b["scores"].nan_to_num())


def test_what_the_first_has_not_passed_on_survives_a_resume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tape: list[bytes] = []
    train, *_ = run(monkeypatch, 0, tape)
    batches = iter(train)
    for _ in range(3):
        next(batches)
    kept = train.state_dict()
    waiting = kept["policy"]["station"]
    assert len(waiting) == 3
    again, _, _ = run(monkeypatch, 0, [])
    again.load_state_dict(kept)
    assert again.state_dict()["policy"]["station"][0]["number"] == waiting[0]["number"]
    scored = again.examples_scored
    for _ in zip(range(5), again, strict=False):
        pass
    again.settle()
    assert again.examples_scored == scored + (3 + 5) * BLOCK


def test_parameters_in_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    next(iter(network.parameters())).full_tensor = lambda: None  # pyright: ignore
    train = gradsift.sift(
        DataLoader(examples(), BATCH, shuffle=True), network, CROSS_ENTROPY, engine=engines.inline()
    )
    with pytest.raises(UsageError, match="spread over processes, as by fully_shard"):
        next(iter(train))


def test_processes_are_described_with_their_engine() -> None:
    def of(engine: Any) -> str:
        train = gradsift.sift(
            DataLoader(examples(), BATCH, shuffle=True), model(), CROSS_ENTROPY, engine=engine
        )
        return described(train._setup, N)

    asked = (
        engines.inline(),
        engines.inline(block=8),
        engines.inline(every=4),
        engines.inline(mode="exact"),
        engines.inline(evaluate={"train": None}),
    )
    texts = {of(engine) for engine in asked}
    assert len(texts) == 5
    start = "40 examples by recipe 'issgd' with seed 0 and the "
    assert all(text.startswith(start) for text in texts)
