"""The scaling simulation against a queue of single events, and its formulas against counting."""

import heapq
import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsift.engine.seat import LANES
from gradsift.sampling.shards import ShardedTable

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench() -> Any:
    """Imports a benchmark by name."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    patch.undo()


def system(bench: Any, **changes: Any) -> Any:
    base = bench("scale_model").Setting(
        examples=61,
        workers=3,
        rate=50.0,
        step=0.021,
        parameters=1000.0,
        link=2e5,
        latency=1e-3,
        every=4,
        batch=8,
        block=7,
        window=3,
        spread=0.3,
    )
    return replace(base, **changes)


def costs(bench: Any, **changes: float) -> Any:
    return bench("scale_model").Costs(**{"draw": 1e-3, "update": 2e-4, "copy": 1e-6} | changes)


class Twin:
    """The same machine, event by event."""

    def __init__(self, setting: Any, costs: Any, pace: Any) -> None:
        self.setting, self.costs, self.pace = setting, costs, pace
        random = np.random.default_rng(setting.seed)
        self.rows: list[Any] = []
        self.random = random
        self.interval = pace.stride * setting.every * pace.step

    def noise(self, turn: int, worker: int) -> float:
        spread = self.setting.spread
        while len(self.rows) <= turn:
            self.rows.append(self.random.standard_normal(self.setting.workers))
        return math.exp(spread * (self.rows[turn][worker] - spread / 2))

    def newest(self, worker: int, now: float) -> int:
        number = 0
        while self.pace.delays[worker] + (number + 1) * self.interval <= now:
            number += 1
        return number

    def scorings(self, horizon: float) -> list[tuple[int, int, float]]:
        """``(block, version, sent)`` of all that begin before the horizon."""
        setting = self.setting
        queue = [(float(delay), worker, 0) for worker, delay in enumerate(self.pace.delays)]
        heapq.heapify(queue)
        loaded = [-1] * setting.workers
        found = []
        while queue[0][0] < horizon:
            now, worker, turn = heapq.heappop(queue)
            block = len(found) % setting.blocks
            number = self.newest(worker, now)
            end = now
            if number > loaded[worker]:
                end += self.costs.copy * setting.parameters
                loaded[worker] = number
            slower = 3 if worker < int(setting.slow * setting.workers) else 1
            seconds = setting.block * slower / setting.rate * self.pace.throttle
            end += seconds * self.noise(turn, worker)
            sent = end + setting.latency + (48 + 4 * setting.block) / setting.link
            found.append((block, number * self.pace.stride * setting.every, sent))
            heapq.heappush(queue, (end, worker, turn + 1))
        return found

    def known(self, scorings: list[tuple[int, int, float]]) -> list[float]:
        """When each is in force."""
        setting, free = self.setting, {}
        if not setting.owners:
            return [math.ceil(sent / self.pace.step) * self.pace.step for _, _, sent in scorings]
        each = max(setting.block * self.costs.update, (48 + 4 * setting.block) / setting.link)
        found = [0.0] * len(scorings)
        for place in sorted(range(len(scorings)), key=lambda k: scorings[k][2]):
            block, _, sent = scorings[place]
            owner = block % setting.owners
            if not setting.striped:
                owner = block * setting.owners // setting.blocks
            free[owner] = max(free.get(owner, 0.0), sent) + each
            found[place] = free[owner]
        return found

    def ages(self, horizon: float, looks: int) -> tuple[list[int], int]:
        scorings = self.scorings(horizon)
        known = self.known(scorings)
        ages, unseen = [], 0
        cycle = max(self.setting.examples / self.pace.rate, self.interval)
        for number in range(looks):
            moment = horizon - cycle * (1 - number / looks)
            step = int(moment / self.pace.step) + number % self.setting.window
            for block in range(self.setting.blocks):
                versions = [
                    version
                    for (other, version, _), when in zip(scorings, known, strict=True)
                    if other == block and when <= moment
                ]
                unseen += not versions
                ages += [step - max(versions)] if versions else []
        return ages, unseen


SYSTEMS = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 7),
        "owners": st.sampled_from([0, 1, 2, 5]),
        "fanout": st.sampled_from([1, 2, 7]),
        "striped": st.booleans(),
        "slow": st.sampled_from([0.0, 0.5]),
        "parameters": st.sampled_from([0.0, 1000.0, 20_000.0]),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=40)
@given(changes=SYSTEMS, update=st.sampled_from([1e-6, 2e-4, 2e-2]))
def test_it_is_the_queue_of_single_events(bench, changes, update):
    model = bench("scale_model")
    setting = system(bench, **changes)
    own = costs(bench, update=update)
    pace = model.settle(setting, own)
    found = model.simulate(setting, own, pace)
    twin = Twin(setting, own, pace)
    expected = twin.scorings(found.horizon)
    assert found.block.tolist() == [block for block, _, _ in expected]
    assert found.version.tolist() == [version for _, version, _ in expected]
    np.testing.assert_allclose(found.known, twin.known(expected), rtol=1e-9)
    ages, unseen = model.look(setting, pace, found)
    theirs, missing = twin.ages(found.horizon, model.LOOKS)
    assert sorted(ages.tolist()) == sorted(theirs)
    assert unseen == pytest.approx(missing / (model.LOOKS * setting.blocks), abs=1e-12)


def test_one_worker_without_chance_is_arithmetic(bench):
    """Scores are up to a sweep old, evenly; to that come the publications and the window."""
    model = bench("scale_model")
    setting = system(bench, workers=1, spread=0.0, parameters=0.0, examples=7000, rate=500.0)
    pace = model.settle(setting, costs(bench, draw=0.0, copy=0.0, update=0.0))
    assert pace.step == setting.step
    free = costs(bench, draw=0.0, copy=0.0, update=0.0)
    ages, unseen = model.look(setting, pace, model.simulate(setting, free, pace))
    sweep = setting.examples / setting.rate / setting.step
    beside = (setting.every - 1) / 2 + (setting.window - 1) / 2 + setting.block / 500 / 0.021
    assert unseen == 0
    assert ages.mean() == pytest.approx(sweep / 2 + beside, rel=0.01)
    assert np.quantile(ages, 0.9) == pytest.approx(0.9 * sweep + beside, rel=0.02)


@pytest.mark.parametrize("rate", [50.0, 2e3, 1e5])
@pytest.mark.parametrize("workers", [1, 4, 64])
def test_the_trainers_pace_is_where_its_intake_and_its_steps_agree(bench, rate, workers):
    setting = system(bench, workers=workers, rate=rate, link=1e12)
    own = costs(bench, update=1e-5)
    pace = bench("scale_model").settle(setting, own)
    alone = setting.step + own.draw + own.copy * setting.parameters / setting.every
    step = alone
    for _ in range(10_000):
        step = alone + own.update * min(workers * rate * step, LANES * workers * setting.block)
    assert pace.step == pytest.approx(step, rel=1e-9)
    assert pace.rate == pytest.approx(min(workers * rate, LANES * workers * 7 / step), rel=1e-9)
    assert pace.throttle == pytest.approx(workers * rate / pace.rate)
    assert 0 < pace.share(setting) < 1


def test_owners_are_never_busier_than_they_can_be(bench):
    model = bench("scale_model")
    own = costs(bench, update=1e-3)
    for striped, working in ((True, 5), (False, 1)):
        setting = system(bench, workers=64, rate=1e4, owners=5, striped=striped, link=1e9)
        pace = model.settle(setting, own)
        assert pace.rate * own.update / working == pytest.approx(model.FULLEST)
        assert pace.busy == pytest.approx(model.FULLEST)
    calm = model.settle(system(bench, owners=5), own)
    assert calm.throttle == 1.0
    assert calm.busy == pytest.approx(3 * 50.0 * 1e-3 / 5)


@pytest.mark.parametrize("fanout", [1, 2, 3, 9])
def test_depths_are_those_of_the_tree(bench, fanout):
    def depth(machine):
        return 0 if machine == 0 else 1 + depth((machine - 1) // fanout)

    assert bench("scale_model").depths(9, fanout).tolist() == [depth(k) for k in range(1, 10)]


def test_a_link_that_is_too_slow_publishes_more_rarely(bench):
    model = bench("scale_model")
    setting = system(bench, parameters=1e5, link=1e5, owners=1)
    pace = model.settle(setting, costs(bench))
    send = 2 * 1e5 / 1e5
    assert (pace.stride - 1) * setting.every * pace.step < send
    assert pace.stride * setting.every * pace.step >= send
    assert pace.delays.max() == pytest.approx(2 * (setting.latency + send))


class Counted:
    """An owner, and the bytes of what it is asked and tells."""

    def __init__(self, shard: Any, header: int) -> None:
        self._shard, self._header = shard, header
        self.bytes = 0

    @property
    def total(self) -> float:
        self.bytes += 2 * self._header + 8
        return self._shard.total

    def locate(self, points: Any, mixture: Any) -> Any:
        ids, masses = self._shard.locate(points, mixture)
        two_numbers = 16
        self.bytes += 2 * self._header + two_numbers + points.nbytes + ids.nbytes + masses.nbytes
        return ids, masses


@pytest.mark.parametrize(("owners", "batch"), [(1, 5), (4, 8), (4, 4), (9, 3), (3, 9), (4, 2)])
def test_the_bytes_of_a_draw_are_those_that_a_split_table_moves(bench, owners, batch):
    """Owners of equal lengths: slots touch as many of them as there can be."""
    model = bench("scale_model")
    table = ShardedTable([12] * owners)
    counted = [Counted(shard, model.HEADER) for shard in table.shards]
    table.shards = counted  # pyright: ignore[reportAttributeAccessIssue]
    table.draw(batch, torch.Generator().manual_seed(0))
    setting = system(bench, owners=owners, batch=batch, window=1)
    pace = model.settle(setting, costs(bench))
    assert model.wire_bytes(setting, pace)["draws"] == sum(each.bytes for each in counted)


def test_the_bytes_of_parameters_and_scores_are_counted(bench):
    model = bench("scale_model")
    setting = system(bench, owners=2, spread=0.0, parameters=2000.0)
    pace = model.settle(setting, costs(bench, copy=0.0))
    found = model.wire_bytes(setting, pace)
    steps = 1000 * setting.every * pace.stride
    publications = 1000 * setting.workers * setting.parameters
    assert found["parameters"] == pytest.approx(publications / steps)
    blocks = setting.workers * setting.rate * steps * pace.step / setting.block
    assert found["scores"] == pytest.approx(blocks * (48 + 4 * 7) / steps)
    assert model.wire_bytes(replace(setting, owners=0), pace)["draws"] == 0.0


def test_a_law_is_read_between_its_points_and_not_beyond(bench, tmp_path):
    scale = bench("scale_sim")
    path = tmp_path / "law.json"
    content = {"ages": [0, 9, 99], "shares": [1.0, 0.8, 0.5], "source": "nowhere"}
    path.write_text(json.dumps({"law": content}))
    law = scale.read_law(path)
    ages = np.array([0, 9, 99, 5000, 3])
    between = 1.0 - 0.2 * math.log(4) / math.log(10)
    expected = (1.0 + 0.8 + 0.5 + 0.5 + between) / 5
    assert law.share(ages, unseen=0.0) == pytest.approx(expected)
    assert law.share(ages, unseen=0.25) == pytest.approx(0.75 * expected)
    assert law.beyond(ages) == 0.2


def test_what_should_help_helps(bench):
    scale, model = bench("scale_sim"), bench("scale_model")
    law = scale.Law(np.array([0.0, 1e2, 1e4]), np.array([1.0, 0.9, 0.1]), "made up")
    own = model.Costs(draw=1e-3, update=1e-6, copy=1e-10)
    base = replace(scale.fleet(), examples=10**6, block=512, workers=8)

    def recovered(**changes: Any) -> float:
        return scale.run(replace(base, **changes), own, law).recovered

    assert recovered(workers=64) > recovered() > recovered(workers=1)
    assert recovered(rate=1e5) > recovered() > recovered(rate=1e3)
    assert recovered() > recovered(link=1e8)
    assert recovered() > recovered(slow=0.5)
    busy = {"workers": 512, "rate": 1e5}
    assert recovered(**busy) > recovered(**busy, striped=False)
    trainer = [scale.run(replace(base, owners=count, **busy), own, law) for count in (0, 16)]
    assert trainer[0].trainer < 0.2 < 0.9 < trainer[1].trainer


@pytest.mark.slow
def test_the_program_runs(tmp_path: Path) -> None:
    law = {"ages": [0, 100, 1000], "shares": [1.0, 0.9, 0.6], "source": "made up"}
    (tmp_path / "law.json").write_text(json.dumps({"law": law}))
    flags = ["--law", "law.json", "--repeats", "2", "--table", "4096", "--parts", "here", "order"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/scale_sim.py"), *flags, "--out", "rows.json"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows["here"]) == 9
    assert [row["unseen"] for row in rows["order"]] == [0.0] * 5
    assert "| N | workers |" in done.stdout
