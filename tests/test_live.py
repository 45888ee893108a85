"""The benchmark of a live scorer: who is stopped when, what is counted, and that it runs."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench() -> Any:
    """Imports a benchmark by name."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    patch.undo()


class Noted:
    """Stands for the scorer: it notes when it may work."""

    def __init__(self, story: list[str]) -> None:
        self.story = story
        self.used = 0.0

    def allow(self, *, work: bool) -> None:
        self.story.append("on" if work else "off")

    def seconds(self) -> float:
        self.used += 1.0
        return self.used


def test_the_scorer_works_in_its_own_turns_alone(bench):
    live = bench("live")
    story: list[str] = []
    loops = {
        turn: SimpleNamespace(go=lambda steps, turn=turn: story.append(f"{turn} {steps}"))
        for turn in live.TURNS
    }
    times = live.take_turns(loops, Noted(story), blocks=4, steps=7)
    assert story[-1] == "on"
    turns = [story[k : k + 3] for k in range(0, len(story) - 1, 3)]
    for allowed, settling, timed in turns:
        turn = timed.split()[0]
        assert allowed == ("on" if turn == "live" else "off")
        assert settling == f"{turn} {live.SETTLING}"
        assert timed == f"{turn} 7"
    order = [timed.split()[0] for _, _, timed in turns]
    for place in range(4):
        assert sorted(order[place::4]) == sorted(live.TURNS)
    assert {turn: len(blocks) for turn, blocks in times.blocks.items()} == dict.fromkeys(
        live.TURNS, 4
    )


def test_the_seconds_of_a_process_are_those_that_it_used(bench):
    stat = "7 (a) b (c)) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0"
    per_second = os.sysconf("SC_CLK_TCK")
    assert bench("live_run").cpu_seconds(stat) == 300 / per_second
    mine = bench("live_run").cpu_seconds(Path("/proc/self/stat").read_text())
    times = os.times()
    assert mine == pytest.approx(times.user + times.system, abs=0.1)


def test_a_scorer_is_pinned_stopped_and_missed(bench):
    run = bench("live_run")
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        state = SimpleNamespace(workers_lost=0)
        engine = SimpleNamespace(seats=[SimpleNamespace(pid=sleeper.pid)], state=state)
        core = max(os.sched_getaffinity(0))
        scorer = run.Scorer(engine, core)
        assert os.sched_getaffinity(sleeper.pid) == {core}
        assert not scorer.lost
        scorer.allow(work=False)
        stopped = os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
        assert stopped is not None
        assert stopped.si_status == signal.SIGSTOP
        scorer.allow(work=True)
        assert os.waitid(os.P_PID, sleeper.pid, os.WCONTINUED) is not None
        assert scorer.seconds() >= 0
        engine.seats[0].pid = None
        assert scorer.lost
    finally:
        sleeper.kill()
        sleeper.communicate()


def test_arms_are_compared_by_seed(bench):
    live = bench("live")
    rows = [
        {"arm": arm, "seed": seed, "loss": factor * (seed + 1), "error": 0.1}
        for seed in range(3)
        for arm, factor in zip(live.ARMS, (1.0, 0.5, 2.0, 1.0), strict=True)
    ]
    lines = live.against(rows)
    assert lines[0].startswith("live: loss ratio 0.500 [0.500, 0.500], error ratio 1.000")
    assert lines[1].startswith("both cores: loss ratio 2.000")
    assert len(lines) == 3


def test_the_fair_arm_has_both_cores_and_the_larger_batch(bench):
    arms = bench("live_run").ARMS
    both = arms["both cores"]
    assert (both.cores, both.larger, both.faster, both.live) == (2, 2, 1, False)
    assert arms["both cores, twice the rate"].faster == 2
    assert arms["live"].cores == arms["uniform"].cores == 1


@pytest.mark.slow
def test_the_program_runs(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    pair = [str(cores[0]), str(cores[-1])]
    flags = ["--data", "digits", "--models", "mlp", "--cores", *pair, "--blocks", "2"]
    more = ["--steps", "5", "--warm", "20", "--seconds", "1", "--seeds", "1", "--out", "rows.json"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/live.py"), *flags, *more],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [row["arm"] for row in content["training"]] == list(content["arms"])
    assert all(row["steps"] > 5 and not row["lost"] for row in content["training"])
    live = content["training"][1]["status"]
    assert (live["engine"], live["workers"]) == ("local", 1)
    (row,) = content["rate"]
    assert set(row["rates"]) == {"again", "stopped", "live"}
    assert not row["lost"]
