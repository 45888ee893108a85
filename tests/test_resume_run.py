"""Runs of the trainer and the command line that are killed, and go on as if never stopped."""

import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from blobs import BATCH, COST, Calls, blobs, lines, settings, toy, virtual
from gradsift.budget import Budget
from gradsift.checkpoint import checkpoints, read_latest, write_checkpoint
from gradsift.cli import entry
from gradsift.clock import WallClock
from gradsift.data.problem import Problem
from gradsift.errors import DataError, UsageError
from gradsift.scores.untouched import random_states
from gradsift.trainer import keeping, run
from gradsift.trainer.keeping import FOLDER, Keeping

STEPS = 12
EACH = Keeping(every=Budget("steps", 1))
EACH_AGAIN = Keeping(every=Budget("steps", 1), resume=True)
SPARSE = Keeping(every=Budget("steps", 5))
AGAIN = Keeping(every=Budget("steps", 5), resume=True)


class Killed(BaseException):
    """Stands for the end of the process."""


def die(at):
    def after(step):
        if step == at:
            raise Killed

    return Calls(after)


def start(out, chosen, kept=SPARSE, progress=None, problem=None, clock=None):
    return run(
        problem or toy(),
        chosen,
        out=out,
        clock=clock or virtual(),
        progress=progress,
        keeping=kept,
        command="gradsift train",
    )


def kill(out, chosen, at, kept=SPARSE, problem=None):
    with pytest.raises(Killed):
        start(out, chosen, kept, die(at), problem)


def latest(out):
    """The state in the latest checkpoint of a run, which there is."""
    state = read_latest(out / FOLDER)
    assert state is not None
    return state


def files(folder):
    names = ("summary.json", "metrics.jsonl")
    return {name: (folder / name).read_text() for name in names}


@pytest.mark.parametrize("recipe", ["uniform", "table", "auto"])
def test_killed_at_any_step_it_ends_with_the_same_files(tmp_path, recipe):
    chosen = settings(STEPS, recipe=recipe)
    whole = start(tmp_path / "whole", chosen)
    expected = files(tmp_path / "whole")
    for at in range(1, STEPS, 2 if recipe == "table" else 5):
        out = tmp_path / str(at)
        kill(out, chosen, at)
        assert latest(out)["loop"]["steps"] == at // 5 * 5 - (at % 5 == 0) * 5
        again = start(out, chosen, AGAIN)
        assert again.summary == whole.summary
        assert files(out) == expected
        assert not (out / FOLDER).exists()
        for name, value in whole.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", ["uniform-iid", "pool", "katharopoulos2018", "katharopoulos2018-constant-time"]
)
def test_the_other_families_do_too(tmp_path, recipe):
    chosen = settings(30, recipe=recipe)
    start(tmp_path / "whole", chosen)
    for at in range(1, 30, 4):
        kill(tmp_path / str(at), chosen, at)
        start(tmp_path / str(at), chosen, AGAIN)
        assert files(tmp_path / str(at)) == files(tmp_path / "whole")


def test_keeping_changes_no_number(tmp_path):
    chosen = settings(STEPS, recipe="table")
    start(tmp_path / "often", chosen, EACH)
    start(tmp_path / "never", chosen, Keeping(every=Budget("steps", 10**9)))
    assert files(tmp_path / "often") == files(tmp_path / "never")
    assert run(toy(), chosen, clock=virtual()).summary.train_loss == pytest.approx(
        json.loads((tmp_path / "often" / "summary.json").read_text())["train_loss"], abs=0
    )


class Augmented(TensorDataset):
    """Noise from global random states; not Python's, which the shape checks of the tests use."""

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        noise = torch.randn(4) + float(np.random.standard_normal())
        return inputs + 0.1 * noise, label


def test_global_random_states_go_on_and_are_put_back(tmp_path):
    problem = Problem(**{**vars(toy()), "train": Augmented(*blobs().tensors)})
    chosen = settings(STEPS, recipe="pool")

    np.random.seed(3)
    start(tmp_path / "whole", chosen, problem=problem)
    np.random.seed(3)
    kill(tmp_path / "o", chosen, 8, problem=problem)
    np.random.seed(99)
    before = str(np.random.get_state()), torch.get_rng_state()
    start(tmp_path / "o", chosen, AGAIN, problem=problem)
    after = str(np.random.get_state()), torch.get_rng_state()
    assert files(tmp_path / "o") == files(tmp_path / "whole")
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])


def test_every_global_random_state_is_saved(tmp_path):
    def drawn():
        return random.gauss(0, 1), np.random.standard_normal(), float(torch.randn(()))

    with random_states([]):
        drawn()  # a second normal number waits in the states of Python and NumPy
        states = keeping._random_states()
        keeping._set_random_states(states)
        expected = drawn(), drawn()
        write_checkpoint(tmp_path, 1, {"random": states})
        found = read_latest(tmp_path)
        assert found is not None
        keeping._set_random_states(found["random"])
        assert (drawn(), drawn()) == expected


def test_a_run_can_be_killed_again_and_again(tmp_path):
    chosen = settings(STEPS, recipe="auto")
    start(tmp_path / "whole", chosen)
    kill(tmp_path / "o", chosen, 3, EACH)
    for at in (5, 6, 7, 11):
        kill(tmp_path / "o", chosen, at, EACH_AGAIN)
    start(tmp_path / "o", chosen, AGAIN)
    assert files(tmp_path / "o") == files(tmp_path / "whole")


def test_seconds_spent_before_the_break_count(tmp_path):
    chosen = settings(recipe="pool", budget=Budget("seconds", 30 * BATCH * COST))
    whole = start(tmp_path / "whole", chosen).summary
    kill(tmp_path / "o", chosen, 9)
    assert start(tmp_path / "o", chosen, AGAIN).summary == whole
    # Real time: what passes between the break and the resumption does not count.
    clock = WallClock()
    long = settings(budget=Budget("seconds", 1e9))
    with pytest.raises(Killed):
        start(tmp_path / "wall", long, EACH, die(6), clock=clock)
    spent = latest(tmp_path / "wall")["loop"]["train"]["seconds"]["loading"]
    time.sleep(0.2)
    with pytest.raises(Killed):
        start(tmp_path / "wall", long, EACH_AGAIN, die(8), clock=WallClock())
    seconds = [line["seconds"] for line in lines(tmp_path / "wall", "train")]
    assert seconds == sorted(seconds)
    assert seconds[-1] < seconds[4] + 0.2
    assert spent > 0


def test_ctrl_c_is_no_end(tmp_path):
    chosen = settings(STEPS, recipe="table")
    start(tmp_path / "whole", chosen)
    calls = Calls(lambda step: signal.raise_signal(signal.SIGINT) if step == 7 else None)
    assert start(tmp_path / "o", chosen, progress=calls).interrupted
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["steps"] == 7
    assert latest(tmp_path / "o")["loop"]["steps"] == 7
    assert not start(tmp_path / "o", chosen, AGAIN).interrupted
    assert files(tmp_path / "o") == files(tmp_path / "whole")


def test_a_stale_summary_is_gone_before_measurements_are_cut(tmp_path):
    chosen = settings(STEPS)
    calls = Calls(lambda step: signal.raise_signal(signal.SIGINT) if step == 7 else None)
    start(tmp_path / "o", chosen, progress=calls)
    kill(tmp_path / "o", chosen, 9, AGAIN)
    assert not (tmp_path / "o" / "summary.json").exists()


def test_killed_before_anything_was_saved_it_begins_anew(tmp_path):
    chosen = settings(STEPS)
    start(tmp_path / "whole", chosen)
    out = tmp_path / "o"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"kind": "event", "step": 0, "na')
    start(out, chosen, AGAIN)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.2}, r"has lr 0\.05, received 0\.2"),
        ({"seed": 1}, "has seed 0, received 1"),
        ({"recipe": "pool"}, "has recipe uniform, received pool"),
        ({"steps": 20}, "has budget 12steps, received 20steps"),
        ({"batch_size": 8}, "has batch_size 16, received 8"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_touched(tmp_path, changes, message):
    kill(tmp_path / "o", settings(STEPS), 8)
    before = {p: p.read_bytes() for p in sorted((tmp_path / "o").rglob("*")) if p.is_file()}
    with pytest.raises(UsageError, match=message):
        start(tmp_path / "o", settings(**{"steps": STEPS, **changes}), AGAIN)
    after = {p: p.read_bytes() for p in sorted((tmp_path / "o").rglob("*")) if p.is_file()}
    assert before == after


def test_other_data_and_lost_measurements_are_refused(tmp_path):
    kill(tmp_path / "o", settings(STEPS), 8)
    smaller = Problem(**{**vars(toy()), "train": blobs(60)})
    with pytest.raises(UsageError, match="has training examples 100, received 60"):
        start(tmp_path / "o", settings(STEPS), AGAIN, problem=smaller)
    (tmp_path / "o" / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="has 0 bytes, expected at least"):
        start(tmp_path / "o", settings(STEPS), AGAIN)


@pytest.mark.parametrize("kind", ["finished", "absent", "empty", "foreign", "file"])
def test_where_there_is_nothing_to_go_on_with(tmp_path, kind):
    out = tmp_path / "o"
    if kind == "finished":
        start(out, settings(2))
    elif kind == "empty":
        out.mkdir()
    elif kind == "foreign":
        out.mkdir()
        (out / "metrics.jsonl").touch()
        (out / "precious").touch()
    elif kind == "file":
        out.write_text("precious")
    message = "is finished" if kind == "finished" else "holds no run to resume"
    with pytest.raises(UsageError, match=message):
        start(out, settings(2), AGAIN)


def test_without_resume_a_run_in_the_folder_is_safe(tmp_path):
    kill(tmp_path / "o", settings(STEPS), 8)
    with pytest.raises(UsageError, match="is not empty"):
        start(tmp_path / "o", settings(STEPS))
    assert len(checkpoints(tmp_path / "o" / FOLDER)) == 2


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


SHORT = ("--budget", "12steps", "--clock", "virtual", "--recipe", "table", "--seed", "4")


def begun(folder):
    """A run of the command line that Ctrl-C has stopped after its fifth step."""
    steps = iter(range(100))

    def moved(bar, share, step):
        if next(steps) == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gradsift.cli.watch.Lines.moved", moved)
        assert entry.main(["train", *SHORT, "--out", str(folder)]) == 130


def test_the_command_line_takes_the_flags_of_the_run(workplace, capsys):
    assert entry.main(["train", *SHORT, "--out", "whole"]) == 0
    begun("o")
    assert "to go on: gradsift train --resume --out o" in capsys.readouterr().out
    assert entry.main(["train", "--resume", "--out", "o", "--seed", "4"]) == 0
    assert capsys.readouterr().err == ""
    whole, found = files(workplace / "whole"), files(workplace / "o")
    assert found["metrics.jsonl"] == whole["metrics.jsonl"]
    assert json.loads(found["summary.json"])["command"].endswith("--seed 4 --out o")
    assert sorted(path.name for path in (workplace / "o").iterdir()) == [
        *("history.npz", "metrics.jsonl", "picks.npz", "report.html", "summary.json"),
    ]
    assert entry.main(["train", "--resume", "--out", "o"]) == 2
    assert "is finished" in capsys.readouterr().err


def test_bad_input_on_the_command_line_is_one_line_and_status_2(workplace, capsys):
    begun("o")
    capsys.readouterr()
    last = checkpoints(workplace / "o" / FOLDER)[-1]
    good = last.read_bytes()
    for words, spoiled, message in (
        (["--lr", "0.3"], None, "--lr 0.3 received, but the run in 'o' was begun with none"),
        (["--seed=5"], None, "was begun with 4"),
        ([], good[:-9], "is cut off"),
        ([], b"hello", "is no gradsift checkpoint"),
        ([], good.replace(b'"version": 1', b'"version": 9'), "written by a newer gradsift"),
    ):
        last.write_bytes(good if spoiled is None else spoiled)
        assert entry.main(["train", "--resume", "--out", "o", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("gradsift: error: ")
        assert error.count("\n") == 1
        assert message in error
        if spoiled is not None:
            assert "is intact: remove the first to resume from it" in error
    for words, message in (
        (["--resume"], "name the run's own by --out"),
        (["--resume", "--out", "nowhere"], "holds no run to resume"),
        (["--checkpoint-every", "often", "--out", "new"], "'often' is not a budget"),
    ):
        assert entry.main(["train", *words]) == 2
        assert message in capsys.readouterr().err
    last.unlink()  # as the message says
    assert entry.main(["train", "--resume", "--out", "o"]) == 0
    assert not (workplace / "new").exists()


def test_a_checkpoint_of_something_else_is_refused(workplace, capsys):
    begun("o")
    state = latest(workplace / "o")
    state["loop"]["train"]["format"] = 99
    write_checkpoint(workplace / "o" / FOLDER, 6, state)
    capsys.readouterr()
    assert entry.main(["train", "--resume", "--out", "o"]) == 2
    assert "saved by a newer gradsift" in capsys.readouterr().err


KILLS = 20


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path):
    """Every step writes a checkpoint. `test_checkpoint` kills at each moment of the writing."""
    chosen = settings(25, recipe="table", model="mlp")
    before = time.perf_counter()
    start(tmp_path / "whole", chosen, EACH)
    seconds = time.perf_counter() - before
    moments = random.Random(0)
    for number in range(KILLS):
        out = tmp_path / str(number)
        process = multiprocessing.get_context("fork").Process(
            target=start, args=(out, chosen, EACH)
        )
        process.start()
        time.sleep(moments.uniform(0, seconds))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        finished = (out / "summary.json").exists() and not (out / FOLDER).exists()
        if not finished:
            held = out.exists() and any(out.iterdir())
            start(out, chosen, Keeping(every=Budget("steps", 20), resume=held))
        assert files(out) == files(tmp_path / "whole")
