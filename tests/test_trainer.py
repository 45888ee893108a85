"""The trainer against a plain loop: its clock, its evaluations, its repeatability."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blobs import BATCH, COST, Calls, blobs, lines, settings, toy, virtual
from gradsift.budget import Budget
from gradsift.data.problem import Problem, from_datasets, wrong_class
from gradsift.models import build_model
from gradsift.recipes import recipes
from gradsift.trainer import run
from gradsift.trainer.evaluation import evaluate, subsample
from gradsift.trainer.progress import Silent
from gradsift.trainer.settings import OPTIMIZERS

CPU = torch.device("cpu")


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
    told = ("table", "engine", "history", "predicted")
    switched = recipes[recipe].gate is not None or recipes[recipe].source in told
    assert (summary.gate is not None) == switched


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


@pytest.mark.parametrize("recipe", ["pool", "katharopoulos2018"])
def test_measurements_repeat_to_the_byte_on_the_virtual_clock(recipe, tmp_path):
    for name in ("first", "again"):
        run(toy(), settings(30, recipe=recipe), clock=virtual(), out=tmp_path / name)
    first, again = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("first", "again"))
    assert first == again


def test_keeping_nothing_changes_no_number(tmp_path):
    kept = run(toy(), settings(recipe="pool"), clock=virtual(), out=tmp_path / "o").summary
    assert run(toy(), settings(recipe="pool"), clock=virtual()).summary == kept


def test_optimisers_are_those_of_pytorch():
    parameters = [nn.Parameter(torch.zeros(2))]
    sgd = settings(optimizer="sgd").optimise(parameters)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.05, 0.9)
    adam = settings(optimizer="adam").optimise(parameters)
    assert type(adam) is torch.optim.Adam
    assert adam.defaults["lr"] == 1e-3
    adamw = settings(optimizer="adamw", lr=0.25).optimise(parameters)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.25, 0.01)
    for name in OPTIMIZERS:
        decaying = settings(optimizer=name, weight_decay=0.5).optimise(parameters)
        assert decaying.defaults["weight_decay"] == 0.5
    assert sgd.defaults["weight_decay"] == adam.defaults["weight_decay"] == 0


def test_settings_are_listed_as_they_take_effect():
    assert settings(recipe="pool", model="wrn-10-1").listed() == {
        "recipe": "pool",
        "model": "wrn-10-1",
        "budget": "12steps",
        "batch_size": BATCH,
        "pool_ratio": 3.0,
        "lr": 0.05,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "optimizer": "sgd",
        "norm": "group",
        "spend": "noise",
        "cap": None,
        "finish": 0.0,
        "engine": None,
        "scorers": 1,
        "ray_address": None,
        "seed": 0,
        "device": "cpu",
    }
    plain = settings(recipe="uniform", model="mlp").listed()
    assert (plain["pool_ratio"], plain["norm"]) == (None, None)


def test_batch_normalisation_is_evaluated_with_its_running_statistics():
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, (images.mean(dim=(1, 2, 3)) > 0).long())
    problem = from_datasets("bright", data, data)
    outcome = run(problem, settings(4, model="wrn-10-1", norm="batch"), clock=virtual())
    model = outcome.model.eval()
    with torch.no_grad():
        alone = [problem.loss_fn(model(image[None]), label[None]) for image, label in data]
    assert outcome.summary.train_loss == pytest.approx(torch.cat(alone).mean().item(), rel=1e-5)
