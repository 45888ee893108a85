"""Parallel SGD on real processes: what arrives is counted, and played again to the bit."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import crowd
from gradsift import UsageError
from gradsift.cli.entry import main
from gradsift.errors import TrainingError
from gradsift.parallel import Coordinator, MeasuredTickets, ray_actors, read_arrivals

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path) -> Iterator[None]:
    """Workers find the modules of the tests; a test that fails leaves no cluster to the next."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    patch.chdir(tmp_path)
    yield
    patch.undo()
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()


def test_a_worker_is_killed_one_is_added_and_the_server_dies() -> None:
    """Four workers and a server on this machine: every batch ends in exactly one update."""
    ray = pytest.importorskip("ray")
    total = 240
    actors: Any = ray_actors(crowd.Slow(0.01), crowd.make_service)
    tickets = MeasuredTickets(total, crowd.LONGEST)
    coordinator = Coordinator(
        actors,
        tickets,
        crowd.stream(total),
        crowd.make_service().state_dict(),
        workers=4,
        rate=crowd.rate,
        every=25,
    )
    killed = added = beheaded = False
    for progress in coordinator.run():
        ready = {ticket.worker for ticket in tickets.taken}
        if not {0, 1} <= ready or (added and 4 not in ready):
            time.sleep(0.3)  # an actor takes seconds to start, and all the others milliseconds
        if not killed and {0, 1} <= ready and progress.received >= 20:
            ray.kill(actors._workers[1])
            killed = True
        if not added and killed and progress.received >= 60:
            assert coordinator.add() == 4
            added = True
        if not beheaded and coordinator.restarts and 4 in ready and progress.received >= 110:
            ray.kill(actors._server)
            beheaded = True
    assert killed
    assert added
    assert beheaded
    assert coordinator.workers_lost == 1, coordinator.news
    assert coordinator.restarts == 2, coordinator.news
    numbers = [ticket.number for ticket in tickets.taken]
    assert len(set(numbers)) == tickets.received == total == coordinator.saved
    assert sorted(ticket.batch for ticket in tickets.taken) == list(range(total))
    assert tickets.issued == total + tickets.lost + tickets.undone
    assert tickets.open == 0
    assert tickets.lost >= 1
    assert tickets.undone >= 1
    server, guide, average = crowd.replayed(tickets.taken, crowd.stream(total))
    state = coordinator.state["server"]
    assert (state["received"], state["version"]) == (total, server.version)
    assert coordinator.state["guide"]["replays"] == guide.replays > 0
    assert crowd.weights_of(coordinator.state) == [weight.tolist() for weight in server.weights]
    assert coordinator.state["average"]["count"] == average.count == total - 7
    found = [weight.tolist() for weight in coordinator.state["average"]["mean"]]
    assert found == [weight.tolist() for weight in average.weights]
    actors.close()
    actors.close()
    assert not ray.is_initialized()


def joined() -> None:
    """One cluster for all runs of a test, which none of them stops."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)


def summary(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "summary.json").read_text())


def train(words: str) -> dict[str, Any]:
    folder = words.split()[-1]
    assert main(["train", *words.split()]) == 0
    return summary(folder)


SAME = ("train_loss", "test_loss", "train_error", "test_error", "steps", "examples_trained")
WORDS = (
    "--recipe gasgd --workers 2 --model mlp --batch-size 32 --budget 40steps --compensation gap"
    " --average 0.5 --clock virtual"
)


def test_a_run_on_ray_is_simulated_again_to_the_bit() -> None:
    """The order of arrivals that two workers had, in one process."""
    pytest.importorskip("ray")
    real = train(f"{WORDS} --delay measured --backend ray --out real")
    assert real["engine"] == {"kind": "ray", "workers_lost": 0, "restarts": 0}
    assert "2 real workers draw uniformly, delay measured" in real["gate"]["reason"]
    recording = read_arrivals(Path("real/arrivals.csv"))
    assert len(recording.arrivals) == 40
    assert any(arrival.read < place for place, arrival in enumerate(recording.arrivals))
    again = train(f"{WORDS} --delay arrivals:real/arrivals.csv --out again")
    assert {name: again[name] for name in SAME} == {name: real[name] for name in SAME}
    assert again["engine"] == {"kind": "simulate", "workers_lost": 0, "restarts": 0}


def test_an_order_made_before_is_kept_on_ray_to_the_bit() -> None:
    """Whoever computes what: three gradients late, as in the simulation."""
    pytest.importorskip("ray")
    planned = train(f"{WORDS} --delay constant:3 --backend ray --out planned")
    simulated = train(f"{WORDS} --delay constant:3 --out simulated")
    assert {name: planned[name] for name in SAME} == {name: simulated[name] for name in SAME}
    fresh = train(f"{WORDS} --delay constant:0 --out fresh")
    assert fresh["train_loss"] != planned["train_loss"]


def refuse() -> None:
    raise UsageError("no such file here")


class Broken:
    def gradient(self, weights: Any, batch: Any) -> None:
        raise ValueError("cannot read\nthis picture")


def test_what_fails_in_an_actor_is_said_in_one_line() -> None:
    pytest.importorskip("ray")
    joined()
    state = crowd.make_service().state_dict()
    for make, message in ((refuse, "no such file here"), (Broken, "worker 0 failed: ValueError")):
        actors = ray_actors(make, crowd.make_service)  # pyright: ignore[reportArgumentType]
        tickets = MeasuredTickets(3, 3)
        run = Coordinator(actors, tickets, crowd.stream(3), state, workers=1).run()
        with pytest.raises((UsageError, TrainingError), match=message) as caught:
            next(iter(run))
        assert "\n" not in str(caught.value)
        actors.close()
    other = {**state, "guide": None}
    actors = ray_actors(crowd.lines, crowd.make_service)
    with pytest.raises(UsageError, match="a state without guide received, expected one"):
        actors.open(other)
    actors.close()
    lock = threading.Lock()
    with pytest.raises(UsageError, match=r"cannot be sent to a worker \(TypeError"):
        ray_actors(lambda: lock, crowd.make_service)  # pyright: ignore[reportArgumentType]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    room = pytest.importorskip("gradsift.parallel.ray")
    monkeypatch.setattr(room, "ray", None)
    with pytest.raises(UsageError, match=r"run pip install 'gradsift\[ray\]'"):
        ray_actors(crowd.lines, crowd.make_service)
