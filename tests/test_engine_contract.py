"""The contract that every engine signs: order, wholeness, lateness, loss."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import gradsift
from engines import (
    BLOCK,
    CROSS_ENTROPY,
    NAN,
    NEGATIVE,
    RAISE,
    Commanded,
    N,
    examples,
    faulty_task,
    model,
    norm_task,
    swapped,
)
from gradsift import UsageError, engines
from gradsift.engine.curves import Curves
from gradsift.engine.evaluate import SLICES
from gradsift.engine.interface import AbstractEngine, Scored, blocks_of
from gradsift.engine.outbox import bytes_of
from gradsift.errors import DataError
from gradsift.scores.gradient_loop import gradient_norms

BLOCKS = blocks_of(N, BLOCK)
MAKERS = {
    "inline": lambda **options: engines.inline(block=BLOCK, **options),
    "local": lambda **options: engines.local(block=BLOCK, **options),
    "ray": lambda **options: engines.ray(block=BLOCK, **options),
}
KINDS = pytest.mark.parametrize("kind", MAKERS)
TIERED = [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "ray")) for kind in MAKERS]
"""Starting Ray takes ten seconds."""


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """Workers import this folder's modules by name."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    patch.syspath_prepend(str(Path(__file__).parent))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def _cluster(_importable: None) -> Iterator[None]:
    """One Ray for all tests: the engines join it."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    assert ray.is_initialized(), "an engine stopped what was not its own"
    ray.shutdown()


@pytest.fixture
def maker(request: pytest.FixtureRequest) -> Any:
    """Of engines of a kind."""
    if request.param == "ray":
        request.getfixturevalue("_cluster")
    return MAKERS[request.param]


@pytest.fixture(scope="module", params=TIERED)
def engine(request: pytest.FixtureRequest) -> Iterator[AbstractEngine]:
    """One for all tests of a kind: processes take seconds to start."""
    if request.param == "ray":
        request.getfixturevalue("_cluster")
    made = MAKERS[request.param]()
    made.start(faulty_task())
    yield made
    made.close()
    made.close()
    assert made.state.workers == 0


def publish(engine: AbstractEngine, version: int, **command: int) -> None:
    """Parameters whose sum is the version."""
    sent = Commanded(**command)
    with torch.no_grad():
        sent.weight.fill_(version / 4096)
    engine.publish(sent.state_dict(), version)


def gather(engine: AbstractEngine, count: int, seconds: float = 60.0) -> list[Scored]:
    found: list[Scored] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += engine.collect(wait=0.2)
    return found


def truth(scored: Scored) -> Tensor:
    """What `Faulty` gives with parameters of exactly one version."""
    return (scored.block.ids + 1.0) * scored.version


VERSIONS = iter(range(1, 1000))


def test_nothing_is_asked_nothing_comes(engine: AbstractEngine) -> None:
    publish(engine, next(VERSIONS))
    assert engine.collect() == []
    assert engine.room >= 1
    assert engine.state.workers == 1
    assert engine.news() == []


def test_every_block_comes_once_with_scores_of_one_version(engine: AbstractEngine) -> None:
    version = next(VERSIONS)
    before = engine.state.delivered
    publish(engine, version)
    engine.request(BLOCKS)
    engine.request(BLOCKS[:3])
    found = gather(engine, len(BLOCKS))
    assert engine.collect() == []
    assert sorted(scored.block for scored in found) == list(BLOCKS)
    for scored in found:
        assert scored.version == version
        assert scored.seconds > 0
        assert scored.scores.dtype == torch.float32
        torch.testing.assert_close(scored.scores, truth(scored))
    assert engine.state.delivered == before + len(BLOCKS)


def test_parameters_are_a_copy_and_never_a_mixture(engine: AbstractEngine) -> None:
    """The sender's tensors change after publishing; versions change while blocks are scored."""
    for _ in range(20):
        version = next(VERSIONS)
        sent = Commanded().state_dict()
        sent["weight"].fill_(version / 4096)
        engine.publish(sent, version)
        sent["weight"].fill_(1e9)
        engine.request(BLOCKS)
        for scored in engine.collect():
            torch.testing.assert_close(scored.scores, truth(scored))
    for scored in gather(engine, 1, seconds=0.5):
        torch.testing.assert_close(scored.scores, truth(scored))
    gather(engine, N, seconds=0.5)


def test_newer_parameters_are_used_for_what_begins_later(engine: AbstractEngine) -> None:
    version = next(VERSIONS)
    publish(engine, version)
    engine.request(BLOCKS)
    assert {scored.version for scored in gather(engine, len(BLOCKS))} == {version}


def test_scores_that_are_not_finite_come_as_they_are(engine: AbstractEngine) -> None:
    publish(engine, next(VERSIONS), fault=NAN, at=BLOCK)
    engine.request(BLOCKS)
    found = {scored.block.number: scored for scored in gather(engine, len(BLOCKS))}
    assert bool(found[1].scores.isnan().all())
    assert bool(found[0].scores.isfinite().all())


@pytest.mark.parametrize(
    ("fault", "words"), [(RAISE, "cannot read this picture"), (NEGATIVE, "expected scores >= 0")]
)
def test_a_block_that_fails_is_tried_three_times_and_named(
    engine: AbstractEngine, fault: int, words: str
) -> None:
    number = 2 if fault == RAISE else 3
    publish(engine, next(VERSIONS), fault=fault, at=number * BLOCK)
    engine.request(BLOCKS)
    expected = len(BLOCKS) - 1 - len(engine.state.set_aside)
    told: list[str] = []
    came: list[int] = []
    deadline = time.monotonic() + 60
    while number not in engine.state.set_aside and time.monotonic() < deadline:
        came += [scored.block.number for scored in engine.collect(wait=0.2)]
        told += engine.news()
    came += [scored.block.number for scored in gather(engine, expected - len(came), 5)]
    assert number in engine.state.set_aside
    assert len(came) == len(set(came)) == expected
    assert len(told) == 3
    assert all(words in line for line in told)
    first = number * BLOCK
    assert f"block {number} (examples {first} to {first + 7}) failed 3 times" in told[-1]
    publish(engine, next(VERSIONS))
    engine.request(BLOCKS)
    assert number not in {scored.block.number for scored in gather(engine, expected, 20)}


def test_slices_are_evaluated_whole_and_with_one_version(engine: AbstractEngine) -> None:
    """Twin: the mean over the examples of a slice, by hand."""
    slices = Curves(["train", "few"], first=100).slices
    version = next(VERSIONS)
    publish(engine, version)
    engine.request(slices)
    found = gather(engine, len(slices))
    assert sorted(scored.block for scored in found) == sorted(slices)
    for scored in found:
        place, length = scored.block.start, N if scored.block.name == "train" else 5
        ids = list(range(place, length, SLICES))
        loss = sum(k * version for k in ids) / max(len(ids), 1)
        error = sum(k % 3 == 1 for k in ids) / max(len(ids), 1)
        assert scored.version == version
        assert scored.scores.tolist() == pytest.approx([loss, error, len(ids)], rel=1e-6)


def test_what_was_published_is_told_and_what_did_not_change_is_not_sent_again(
    engine: AbstractEngine,
) -> None:
    whole = bytes_of(Commanded().state_dict())
    version = next(VERSIONS)
    for _ in range(2):
        publish(engine, version)
    before = engine.state
    publish(engine, version)
    after = engine.state
    assert after.published == before.published + 1
    least, most = {"inline": (whole, whole), "local": (0, 0), "ray": (0, whole)}[engine.kind]
    assert least <= after.sent - before.sent <= most
    publish(engine, next(VERSIONS))
    assert 4 * 4096 <= engine.state.sent - after.sent <= whole


def run_exactly(engine: AbstractEngine) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Trains in exact mode: ids and weights of every batch, and the parameters at the end."""
    network = model(3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(examples(), batch_size=8, shuffle=True, generator=generator)
    train = gradsift.sift(loader, network, CROSS_ENTROPY, engine=engine)
    seen: list[Tensor] = []
    for batch in train:
        assert batch.drawn
        optimizer.zero_grad()
        batch.loss(network(batch.inputs)).backward()
        optimizer.step()
        seen += [batch.indices, batch.weights]
    train.close()
    return seen, network.state_dict()


@pytest.mark.parametrize("maker", TIERED, indirect=True)
def test_exact_mode_is_the_inline_engine_to_the_bit(maker: Any) -> None:
    options = {"mode": "exact", "every": 2}
    seen, parameters = run_exactly(maker(dataset="engines:examples", **options))
    expected, truth = run_exactly(engines.inline(block=BLOCK, **options))
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert all(torch.equal(parameters[name], truth[name]) for name in truth)


def test_exact_norms_are_those_of_plain_autograd() -> None:
    """The inline engine is the reference; the loop over examples is the truth."""
    engine = engines.inline(block=BLOCK)
    engine.start(norm_task())
    engine.publish(model(3).state_dict(), 5)
    engine.request(BLOCKS)
    scored = gather(engine, len(BLOCKS))
    inputs, targets = examples().tensors
    slow = gradient_norms(model(3), CROSS_ENTROPY, inputs, targets)
    found = torch.cat([one.scores for one in scored])
    torch.testing.assert_close(found, slow.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("maker", TIERED, indirect=True)
def test_other_data_are_refused_at_the_start(maker: Any) -> None:
    engine = maker()
    with pytest.raises((UsageError, DataError), match="differs from the loader's at example 0"):
        engine.start(norm_task(opening="engines:swapped"))
    engine.close()
    assert swapped()[0][1] != examples()[0][1]
    assert "engines" in sys.modules


@KINDS
def test_options_are_checked(kind: str) -> None:
    with pytest.raises(UsageError, match="blocks of 0 examples"):
        getattr(engines, kind)(block=0)
    with pytest.raises(UsageError, match="mode 'strict' is unknown: use one of relaxed, exact"):
        getattr(engines, kind)(mode="strict")
    with pytest.raises(UsageError, match="order 'random' is unknown"):
        getattr(engines, kind)(order="random")
    with pytest.raises(UsageError, match="precision 'int8' is unknown: use one of float32, bfl"):
        getattr(engines, kind)(precision="int8")
    with pytest.raises(UsageError, match="received with mode 'exact', which compares to the bit"):
        getattr(engines, kind)(precision="bfloat16", mode="exact")
