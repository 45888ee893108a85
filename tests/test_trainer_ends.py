"""How runs end early or do not begin: Ctrl-C, losses beyond all numbers, what is refused."""

import json
import math
import signal
import threading

import pytest
import torch
from torch.utils.data import TensorDataset

from blobs import Calls, lines, settings, toy, virtual
from gradsift.data.problem import Problem
from gradsift.errors import TrainingError, UsageError
from gradsift.recipes import recipes
from gradsift.trainer import run
from gradsift.trainer.interruption import Interruption
from gradsift.trainer.settings import check_device


@pytest.fixture
def handler():
    """A handler of the user's own, which every run must leave in place."""

    def own(number, frame):
        raise AssertionError("the user's handler was called during a run")

    previous = signal.signal(signal.SIGINT, own)
    yield own
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_finishes_the_step_and_writes_everything(tmp_path, handler):
    calls = Calls(lambda step: signal.raise_signal(signal.SIGINT) if step == 5 else None)
    outcome = run(toy(), settings(1000), clock=virtual(), out=tmp_path / "o", progress=calls)
    assert signal.getsignal(signal.SIGINT) is handler
    assert outcome.interrupted
    assert outcome.summary.steps == 5
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["steps"] == 5
    assert lines(tmp_path / "o", "eval")[-1]["step"] == 5
    noted = [line for line in lines(tmp_path / "o", "event") if line.get("name") == "interrupted"]
    assert [line["share"] for line in noted] == [0.005]


def test_the_second_ctrl_c_stops_at_once(tmp_path, handler):
    def twice(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(toy(), settings(), clock=virtual(), out=tmp_path / "o", progress=Calls(twice))
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "o" / "summary.json").exists()


def test_outside_the_main_thread_no_handler_is_touched():
    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere():
        with Interruption() as interruption:
            seen.append((signal.getsignal(signal.SIGINT), interruption.requested))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_stops_before_the_update_and_is_noted(tmp_path):
    chosen = settings(200, lr=1e30, model="mlp", schedule="constant")
    with pytest.raises(TrainingError, match="not finite"):
        run(toy(), chosen, clock=virtual(), out=tmp_path / "o")
    assert not (tmp_path / "o" / "summary.json").exists()
    failed = [line for line in lines(tmp_path / "o", "event") if line.get("name") == "failed"]
    assert "not finite" in failed[0]["text"]
    assert lines(tmp_path / "o", "eval")


def test_a_model_that_ends_beyond_all_numbers_is_no_result(tmp_path):
    odd = TensorDataset(torch.full((4, 4), torch.inf), torch.zeros(4, dtype=torch.int64))
    problem = Problem(**{**vars(toy()), "test": odd})
    with pytest.raises(TrainingError, match="after 2 steps"):
        run(problem, settings(2), clock=virtual(), out=tmp_path / "o")
    assert not (tmp_path / "o" / "summary.json").exists()


@pytest.mark.parametrize("occupied", ["file", "folder"])
def test_results_are_never_mixed_with_anything(tmp_path, occupied):
    out = tmp_path / "o"
    if occupied == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "precious").touch()
    with pytest.raises(UsageError, match="name a"):
        run(toy(), settings(), out=out)
    assert not (out / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 101}, "has 100 examples"),
        ({"model": "cnn"}, "choose mlp"),
        ({"model": "none"}, "unknown"),
        ({"norm": "group"}, "no normalisation"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_anything_is_written(
    tmp_path, changes, message
):
    with pytest.raises(UsageError, match=message):
        run(toy(), settings(**changes), out=tmp_path / "o")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": -4}, "batch size -4"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"lr": -0.1}, "lr -0.1"),
        ({"lr": math.nan}, "lr nan"),
        ({"lr": math.inf}, "lr inf"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**63}, "seed"),
        ({"optimizer": "lion"}, "sgd, adam, adamw"),
        ({"schedule": "warm"}, "constant, cosine"),
        ({"recipe": "best"}, "katharopoulos2018"),
        ({"recipe": "pool", "pool_ratio": 0.5}, "ratio"),
        ({"recipe": "pool", "pool_ratio": math.nan}, "ratio"),
        ({"recipe": "uniform", "pool_ratio": 3.0}, "scores no pool"),
        (
            {"recipe": "katharopoulos2018-constant-time", "pool_ratio": 2.0},
            "sizes its pool itself",
        ),
        ({"device": "tpu9"}, "not available"),
        ({"device": "cuda:4096"}, "not available"),
        ({"device": "cpu:7"}, "not available"),
        ({"device": ""}, "not available"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_made(changes, message):
    with pytest.raises(UsageError, match=message):
        settings(**changes)


def test_the_pool_ratio_replaces_the_recipes_own():
    assert settings(recipe="pool", pool_ratio=5).assembled().ratio == 5.0
    assert settings(recipe="pool").assembled() == recipes["pool"]
    assert check_device("cpu") == torch.device("cpu")
