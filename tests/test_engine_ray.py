"""Ray beyond the common contract: clusters of our own, nodes that leave and join, what is said."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import gradsift
from engines import BLOCK, CROSS_ENTROPY, KILL, Commanded, N, examples, faulty_task, model
from gradsift import UsageError, engines
from gradsift.cli.entry import main
from gradsift.engine.interface import Scored, blocks_of

BLOCKS = blocks_of(N, BLOCK)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def _importable() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """A test that fails leaves no cluster to the next one."""
    yield
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()


def publish(engine: Any, version: int, **command: int) -> None:
    sent = Commanded(**command)
    with torch.no_grad():
        sent.weight.fill_(version / 4096)
    engine.publish(sent.state_dict(), version)


def gather(engine: Any, count: int, told: list[str], seconds: float = 90.0) -> list[Scored]:
    found: list[Scored] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += engine.collect(wait=0.2)
        told += engine.news()
    numbers = [scored.block.number for scored in found]
    assert len(numbers) == len(set(numbers)), "counted twice"
    for scored in found:
        expected = (scored.block.ids + 1.0) * scored.version
        torch.testing.assert_close(scored.scores, expected)
    return found


@pytest.mark.usefixtures("_importable")
def test_ray_of_our_own_is_started_and_stopped_and_actors_are_replaced() -> None:
    """More actors than cores start; one that a block kills is replaced; the block is named."""
    ray = pytest.importorskip("ray")
    engine = engines.ray(scorers=3, block=BLOCK)
    engine.start(faulty_task())
    told: list[str] = []
    publish(engine, 1)
    engine.request(BLOCKS)
    assert len(gather(engine, len(BLOCKS), told)) == len(BLOCKS)
    publish(engine, 2, fault=KILL, at=BLOCK)
    engine.request(BLOCKS)
    found = gather(engine, len(BLOCKS) - 1, told)
    assert {scored.block.number for scored in found} == {0, 2, 3, 4}
    deadline = time.monotonic() + 90
    while not engine.state.set_aside and time.monotonic() < deadline:
        engine.collect(wait=0.2)
        told += engine.news()
    assert engine.state.set_aside == (1,)
    # A dying actor may take the answer of its call before down with it.
    assert engine.state.workers_lost >= 3, told
    assert any("block 1 (examples 8 to 15) failed 3 times" in line for line in told)
    elsewhere = engines.ray(address="127.0.0.1:1")
    with pytest.raises(UsageError, match=r"127.0.0.1:1 was asked for, and this process is conn"):
        elsewhere.start(faulty_task())
    engine.close()
    assert not ray.is_initialized()


@pytest.mark.usefixtures("_importable")
def test_a_node_leaves_and_another_joins_while_training() -> None:
    """A head and two nodes on this machine; scorers live on the nodes alone."""
    ray = pytest.importorskip("ray")
    cluster = pytest.importorskip("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    network = model()
    engine = engines.ray("engines:examples", 2, address=cluster.address, block=BLOCK, every=4)
    loader = DataLoader(examples(), batch_size=8, shuffle=True)
    train = gradsift.sift(loader, network, CROSS_ENTROPY, engine=engine)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def run_until(reached: Any, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for batch in train:
                optimizer.zero_grad()
                batch.loss(network(batch.inputs)).backward()
                optimizer.step()
                time.sleep(0.01)
            if reached():
                return True
        return False

    inputs, targets = examples().tensors
    before = CROSS_ENTROPY(network(inputs), targets).mean().item()
    assert run_until(lambda: engine.state.delivered >= 20, 60)
    assert run_until(lambda: engine.state.workers == 2, 60)
    cluster.remove_node(nodes[0], allow_graceful=False)
    assert run_until(lambda: engine.state.workers_lost >= 1, 90), train.notices
    at = engine.state.delivered
    assert run_until(lambda: engine.state.delivered >= at + 10, 60)
    cluster.add_node(num_cpus=1)
    assert run_until(lambda: engine.state.workers == 2, 90)
    assert CROSS_ENTROPY(network(inputs), targets).mean().item() < before
    assert any("actor" in text for text in train.notices)
    train.close()
    ray.shutdown()
    cluster.shutdown()


def test_an_address_that_cannot_be_reached_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    flags = ["--data", "digits", "--model", "linear", "--budget", "5steps"]
    address = ["--engine", "ray", "--ray-address", "127.0.0.1:1"]
    assert main(["train", *flags, *address, "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "Ray at 127.0.0.1:1 cannot be reached" in error
    assert len(error.splitlines()) == 1


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    room = pytest.importorskip("gradsift.engine.ray")
    monkeypatch.setattr(room, "ray", None)
    with pytest.raises(UsageError, match=r"run pip install 'gradsift\[ray\]'"):
        engines.ray()
    assert os.environ.get("RAY_ADDRESS") is None
    assert "engines" in sys.modules
