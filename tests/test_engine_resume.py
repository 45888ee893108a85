"""A trainer that is killed goes on with its table: to the bit where nothing raced, counted once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsift import Recipe, UsageError, engines, recipes
from gradsift.clock import VirtualClock
from gradsift.engine.interface import Scored
from gradsift.sifting.searched import Searched
from test_resume import EXAMPLES, Run, check_every_step, own_generator, take
from test_searched import recipe

BLOCK = 6
BLOCKS = EXAMPLES // BLOCK


def resumable(asked: str | Recipe = "issgd", **options: Any) -> Run:
    engine = engines.inline(block=BLOCK, **options)
    return Run(own_generator, asked, workers=0, engine=engine)


def exactly(every: int, asked: str | Recipe = "issgd") -> Run:
    return resumable(asked, every=every, mode="exact")


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_in_exact_mode_every_later_step_is_the_same(every: int) -> None:
    check_every_step(lambda: exactly(every), 10, stride=3)


def test_likewise_by_the_published_recipe() -> None:
    check_every_step(lambda: exactly(2, recipe("issgd2015", seconds=1e6)), 6, stride=3)


def scored_by(run: Run) -> int:
    """What the engine has given out, in examples."""
    assert isinstance(run.train.policy, Searched)
    return run.train.policy.engine.state.delivered * BLOCK


def test_in_relaxed_mode_nothing_is_counted_twice_and_nothing_is_from_the_future() -> None:
    """What the first engine finds after the state was saved never reaches the second table."""
    with torch.random.fork_rng():
        first = resumable(every=4)
        take(first, 10)
        first.train.settle()
        kept, before = first.save(), scored_by(first)
        assert first.train.examples_scored == before == 10 * BLOCK
        take(first, 7)
        second = resumable(every=4)
        second.load(kept)
        policy = second.train.policy
        assert isinstance(policy, Searched)
        assert policy.sweep.versions.max() <= 10
        assert second.train.examples_scored == before
        seen: list[Scored] = []
        whole = policy._take
        policy._take = lambda found: (seen.extend(found), whole(found))[1]
        take(second, 9)
        second.train.settle()
        assert second.train.examples_scored == before + scored_by(second)
        assert sum(len(scored.block) for scored in seen) == scored_by(second) == 9 * BLOCK
        assert min(scored.version for scored in seen) == 10
        assert second.train.table is not None
        ages = second.train.table.ages(torch.arange(EXAMPLES), 19)
        assert 0 <= int(ages.min()) <= int(ages.max()) <= 9


def test_scores_and_prices_are_there_at_once_after_a_resume() -> None:
    with torch.random.fork_rng():
        first = resumable(every=2)
        take(first, 40)
        kept = first.save()
        second = resumable(every=2)
        second.load(kept)
        for name in ("usable", "age", "oldest", "behind", "delivered", "variance_ratio"):
            mine, theirs = (run.train.engine_status for run in (first, second))
            assert mine is not None
            assert theirs is not None
            assert mine[name] == theirs[name], name
        mine, theirs = (run.train.table for run in (first, second))
        assert mine is not None
        assert theirs is not None
        ids = torch.arange(EXAMPLES)
        probabilities: list[Tensor] = [table.probabilities(ids) for table in (mine, theirs)]
        assert torch.equal(*probabilities)
        assert next(second.steps()) is not None


def test_a_state_of_other_blocks_is_refused() -> None:
    with torch.random.fork_rng():
        kept = resumable().save()
        other = Run(own_generator, "issgd", workers=0, engine=engines.inline(block=5))
        with pytest.raises(UsageError, match="a sweep over 3 blocks received, expected 4"):
            other.load(kept)
        assert recipes["issgd"].search is not None
        assert isinstance(other.clock, VirtualClock)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_trainer_that_is_killed_is_resumed_with_new_workers(tmp_path: Path) -> None:
    """SIGKILL between two checkpoints: scores go on from the table, old workers are gone."""
    out = tmp_path / "run"
    flags = ["--data", "digits", "--model", "linear", "--engine", "local"]
    start = [sys.executable, "-m", "gradsift.cli", "train", "--out", str(out)]
    command = [*start, *flags, "--budget", "12s", "--checkpoint-every", "1s"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        events = lines(out) if (out / "metrics.jsonl").exists() else []
        told = [line for line in events if line.get("name") == "engine"]
        if told and told[-1]["usable"] >= 0.5 and len(list((out / "checkpoints").iterdir())) == 2:
            break
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "summary.json").exists()
    again = subprocess.run(
        [*start, "--resume"], capture_output=True, text=True, check=False, timeout=90
    )
    assert again.returncode == 0, again.stderr
    found = lines(out)
    told = [line for line in found if line.get("name") == "engine"]
    delivered, steps = ([line[key] for line in told] for key in ("delivered", "step"))
    assert delivered == sorted(delivered)
    assert steps == sorted(steps)
    assert all(line["oldest"] is None or line["oldest"] <= line["step"] for line in told)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["examples_scored"] == delivered[-1]
    assert summary["engine"]["kind"] == "local"
    curves = {line["set"] for line in found if line.get("name") == "curve"}
    assert curves <= {"train", "test"}
