"""The trainer against a plain loop, its clock, its files, and how it ends early."""

import json
import math
import signal
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradsift.budget import Budget
from gradsift.clock import VirtualClock
from gradsift.data.problem import Problem, from_datasets, wrong_class
from gradsift.errors import TrainingError, UsageError
from gradsift.models import build_model
from gradsift.recipes import recipes
from gradsift.trainer import AbstractProgress, Settings, run
from gradsift.trainer.evaluation import evaluate, subsample
from gradsift.trainer.interruption import Interruption
from gradsift.trainer.progress import Silent
from gradsift.trainer.settings import OPTIMIZERS, check_device

CPU = torch.device("cpu")
COST = 1.0 / 1024
BATCH = 16


def blobs(count=100, seed=0):
    """Three overlapping clouds in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    centres = 1.5 * torch.eye(3, 4)
    return TensorDataset(centres[labels] + torch.randn(count, 4, generator=generator), labels)


def toy():
    return from_datasets("blobs", blobs(), blobs(30, seed=1))


def settings(steps=12, **changes):
    values = {
        "recipe": "uniform",
        "model": "linear",
        "batch_size": BATCH,
        "budget": Budget("steps", steps),
    }
    return Settings(**{**values, **changes})


def virtual():
    return VirtualClock(train=COST, score=COST / 4)


def lines(folder, kind):
    text = (folder / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


class Calls(AbstractProgress):
    """Remembers what it is told, and may do something after a step."""

    def __init__(self, after=lambda step: None):
        self.after = after
        self.shares = []
        self.points = []

    def moved(self, share, step):
        self.shares.append(share)
        self.after(step)

    def evaluated(self, point):
        self.points.append(point)


def plain_loop(problem, chosen, steps, factor):
    """The same training, written out with PyTorch alone."""
    generator = torch.Generator().manual_seed(chosen.seed)
    model = build_model(
        chosen.model,
        problem.input_shape,
        problem.outputs,
        generator=torch.Generator().manual_seed(chosen.seed),
    )
    optimizer = chosen.optimise(model.parameters())
    taken = 0
    while taken < steps:
        loader = DataLoader(problem.train, BATCH, shuffle=True, drop_last=True, generator=generator)
        for inputs, targets in loader:
            if taken == steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = chosen.learning_rate * factor(taken / steps)
            optimizer.zero_grad()
            problem.loss_fn(model(inputs), targets).mean().backward()
            optimizer.step()
            taken += 1
    return model


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_uniform_run_is_the_plain_loop_to_the_bit(optimizer):
    chosen = settings(15, optimizer=optimizer, schedule="cosine", model="mlp")
    problem = toy()
    found = run(problem, chosen, clock=virtual()).model.state_dict()
    slow = plain_loop(problem, chosen, 15, lambda share: (1 + math.cos(math.pi * share)) / 2)
    assert all(torch.equal(found[key], value) for key, value in slow.state_dict().items())


@pytest.mark.parametrize(("schedule", "factor"), [("constant", 1.0), ("linear", None)])
def test_the_schedule_follows_the_budget(schedule, factor):
    chosen = settings(9, schedule=schedule)
    problem = toy()
    found = run(problem, chosen, clock=virtual()).model.state_dict()
    slow = plain_loop(problem, chosen, 9, lambda share: 1 - share if factor is None else factor)
    assert all(torch.equal(found[key], value) for key, value in slow.state_dict().items())


@pytest.mark.parametrize("recipe", list(recipes))
def test_every_recipe_trains(recipe, tmp_path):
    problem = toy()
    outcome = run(problem, settings(40, recipe=recipe), clock=virtual(), out=tmp_path / "out")
    summary = outcome.summary
    start = lines(tmp_path / "out", "eval")[0]
    assert summary.steps == 40
    assert summary.train_loss < 0.8 * start["train_loss"]
    assert (summary.gate is None) == (recipes[recipe].gate is None)


def test_a_budget_in_steps_is_kept():
    summary = run(toy(), settings(7), clock=virtual()).summary
    assert (summary.steps, summary.examples_trained) == (7, 7 * BATCH)
    assert summary.examples_scored == 0


def test_a_budget_in_epochs_counts_full_batches():
    summary = run(toy(), settings(budget=Budget("epochs", 2.5)), clock=virtual()).summary
    assert summary.steps == 15


@pytest.mark.parametrize("steps", [1, 2, 6, 7])
def test_a_budget_in_seconds_leaves_the_first_batch_out(steps):
    budget = Budget("seconds", (steps - 1) * BATCH * COST if steps > 1 else COST)
    summary = run(toy(), settings(budget=budget), clock=virtual()).summary
    assert summary.steps == max(steps, 2)
    assert summary.seconds_total == (summary.steps - 1) * BATCH * COST
    assert summary.seconds_training == summary.seconds_total


def test_scoring_costs_budget_and_is_charged_once():
    clock = virtual()
    summary = run(toy(), settings(10, recipe="pool", pool_ratio=2), clock=clock).summary
    assert summary.examples_scored == 10 * 2 * BATCH
    assert clock.now() == 10 * BATCH * COST + 10 * 2 * BATCH * COST / 4
    assert summary.seconds_training == 9 * BATCH * COST
    assert summary.seconds_scoring == 9 * 2 * BATCH * COST / 4
    assert summary.seconds_total == summary.seconds_training + summary.seconds_scoring


def test_evaluation_costs_no_budget():
    clock, problem = virtual(), toy()

    def expensive(outputs, targets):
        clock.charge(trained=10_000)
        return wrong_class(outputs, targets)

    slow = Problem(**{**vars(problem), "error_fn": expensive})
    summary = run(slow, settings(20), clock=clock).summary
    assert summary.seconds_total == 19 * BATCH * COST
    assert summary.seconds_training == summary.seconds_total
    assert summary.seconds_evaluating == 2 * (21 + 1) * 10_000 * COST


def test_about_twenty_evaluations_are_spread_over_the_budget(tmp_path):
    calls = Calls()
    run(toy(), settings(100), clock=virtual(), out=tmp_path / "out", progress=calls)
    found = lines(tmp_path / "out", "eval")
    assert [line["step"] for line in found] == [0, *range(5, 100, 5), 100]
    assert [point.step for point in calls.points] == [line["step"] for line in found]
    assert calls.shares == [step / 100 for step in range(1, 101)]
    seconds = [line["seconds"] for line in found]
    assert seconds == [round(max(line["step"] - 1, 0) * BATCH * COST, 6) for line in found]


def test_short_runs_are_evaluated_after_every_step(tmp_path):
    run(toy(), settings(3), clock=virtual(), out=tmp_path / "out")
    assert [line["step"] for line in lines(tmp_path / "out", "eval")] == [0, 1, 2, 3]


def test_a_run_repeats_with_its_seed_whatever_the_global_random_state():
    torch.manual_seed(1)
    first = run(toy(), settings(recipe="pool", seed=3), clock=virtual())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = run(toy(), settings(recipe="pool", seed=3), clock=virtual())
    other = run(toy(), settings(recipe="pool", seed=4), clock=virtual())
    assert torch.equal(torch.get_rng_state(), before)
    assert first.summary == again.summary
    assert first.summary.train_loss != other.summary.train_loss


class Augmented(TensorDataset):
    """Noise from the global random state, as in most augmentation code."""

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return inputs + 0.1 * torch.randn(4), label


def test_augmentation_repeats_with_the_seed_too():
    problem = Problem(**{**vars(toy()), "train": Augmented(*blobs().tensors)})
    found = []
    for ambient in (1, 2):
        torch.manual_seed(ambient)
        found.append(run(problem, settings(seed=3), clock=virtual()).summary)
    assert found[0] == found[1]


def test_the_summary_holds_unweighted_means_over_everything():
    problem = toy()
    outcome = run(problem, settings(recipe="pool"), clock=virtual())
    for data, loss, error in [
        (problem.train, outcome.summary.train_loss, outcome.summary.train_error),
        (problem.test, outcome.summary.test_loss, outcome.summary.test_error),
    ]:
        losses, wrong = [], []
        for inputs, label in data:
            with torch.no_grad():
                output = outcome.model(inputs.unsqueeze(0))
            losses.append(nn.functional.cross_entropy(output, label.unsqueeze(0)).item())
            wrong.append(output.argmax().item() != label.item())
        assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)
        assert error == pytest.approx(sum(wrong) / len(wrong), abs=1e-12)


def test_a_regression_is_learnt():
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, inputs @ torch.tensor([1.0, -2.0, 0.5]))
    summary = run(from_datasets("line", data, data), settings(60), clock=virtual()).summary
    assert summary.test_loss == summary.test_error < 0.01


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
    assert check_device("cpu") == CPU


class Chance(nn.Module):
    """Differs between train and eval mode, and reads random numbers in train mode."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs):
        return self.drop(inputs)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_is_in_eval_mode_and_leaves_no_trace(training):
    problem, model = toy(), Chance().train(training)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = evaluate(model, problem, problem.test, CPU, batch_size=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, model.drop.training) == (training, training)
    inputs, labels = blobs(30, seed=1).tensors
    loss = problem.loss_fn(inputs, labels).double().mean().item()
    error = problem.error_fn(inputs, labels).double().mean().item()
    assert found.loss == pytest.approx(loss, abs=1e-12)
    assert found.error == pytest.approx(error, abs=1e-12)


def test_evaluation_restores_the_mode_also_when_it_fails():
    problem, model = toy(), nn.Linear(5, 3)
    with pytest.raises(RuntimeError):
        evaluate(model, problem, problem.test, CPU)
    assert model.training


def test_a_subsample_has_no_repetitions_and_follows_its_seed():
    whole = TensorDataset(torch.arange(100))

    def taken(limit, seed):
        return [int(value) for (value,) in subsample(whole, limit, seed)]

    assert len(set(taken(30, 1))) == 30
    assert taken(30, 1) == taken(30, 1) != taken(30, 2)
    assert taken(100, 1) == list(range(100))


def test_silence_is_silent(capsys):
    Silent().moved(0.5, 1)
    run(toy(), settings(2), clock=virtual())
    assert capsys.readouterr() == ("", "")
