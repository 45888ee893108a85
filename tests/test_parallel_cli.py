"""Parallel SGD from the command line: what it trains, writes and counts."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradsift.budget import parse_budget
from gradsift.cli import entry
from gradsift.clock import VirtualClock
from gradsift.data.digits import digits
from gradsift.data.problem import from_datasets
from gradsift.errors import TrainingError
from gradsift.fitting import recalibrate_batch_norm
from gradsift.parallel import RoundGuide, WindowGuide
from gradsift.report.runs import read_run
from gradsift.trainer import Settings, Workers, run_parallel
from gradsift.trainer.evaluation import SUBSAMPLE, subsample
from gradsift.trainer.run import make_model
from gradsift.trainer.work import prepare, shuffled
from gradsift.trainer.workers import COMPENSATIONS, PARALLEL


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def clouds(count=60, distance=2.0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    x = torch.randn(count, 4, generator=generator) + distance * labels.unsqueeze(1)
    return from_datasets("clouds", TensorDataset(x, labels), TensorDataset(x, labels))


def settings(**changes):
    usual = {"recipe": "uniform", "model": "linear", "batch_size": 5, "schedule": "linear"}
    return Settings(**{**usual, "budget": parse_budget("24steps"), **changes})


def test_a_run_writes_what_it_did(workplace, capsys):
    words = (
        "train --recipe gasgd --workers 4 --delay constant:9 --backend simulate --budget 40steps"
    )
    assert entry.main([*words.split(), "--clock", "virtual", "--out", "o"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "gasgd: sampling is off: 4 simulated workers draw uniformly" in printed.out
    names = sorted(path.name for path in (workplace / "o").iterdir())
    assert names == ["metrics.jsonl", "report.html", "summary.json"]
    summary = json.loads((workplace / "o" / "summary.json").read_text())
    assert summary["recipe"] == "gasgd"
    assert summary["engine"] == {"kind": "simulate", "workers_lost": 0, "restarts": 0}
    assert summary["command"] == f"gradsift {words} --clock virtual --out o"
    replays = summary["steps"] - 40
    assert 0 < replays <= 4 * 5
    assert summary["examples_trained"] == 64 * (40 + replays)
    assert summary["seconds_total"] == pytest.approx(3e-4 * summary["examples_trained"])
    run = read_run(workplace / "o")
    found = run.event("settings")
    expected = {"recipe": "gasgd", "count": 4, "delay": "constant:9", "compensation": "none"}
    assert {key: found[key] for key in expected} == expected
    assert run.of_kind("eval")[-1]["step"] == summary["steps"]
    assert len(run.of_kind("eval")) == 21


@pytest.mark.parametrize("recipe", PARALLEL)
def test_every_recipe_learns_and_a_seed_fixes_it(recipe):
    team = Workers(recipe, 1 if recipe == "gsgd" else 3, rho=4)
    first, again = (
        run_parallel(clouds(), settings(lr=0.1), team, clock=VirtualClock()) for _ in range(2)
    )
    assert first.summary == again.summary
    assert first.summary.test_error < 0.2
    other = run_parallel(clouds(), settings(lr=0.1, seed=1), team)
    assert other.summary.test_loss != first.summary.test_loss


def test_delay_changes_the_run_and_each_rule_changes_the_delay():
    losses = {
        name: run_parallel(
            clouds(), settings(lr=0.5), Workers("asgd", 4, "constant:7", compensation=name, rho=4)
        ).summary.train_loss
        for name in COMPENSATIONS
    }
    fresh = run_parallel(clouds(), settings(lr=0.5), Workers("asgd", 1)).summary.train_loss
    assert len({fresh, *losses.values()}) == len(COMPENSATIONS) + 1


def test_one_worker_without_delay_is_the_plain_loop():
    problem, chosen = clouds(), settings(lr=0.1, budget=parse_budget("2ep"))
    outcome = run_parallel(problem, chosen, Workers("asgd", 1))
    model = make_model(problem, chosen)
    seeds = torch.Generator().manual_seed(chosen.seed)
    order = torch.randperm(60, generator=seeds)
    stream = shuffled(order, 5, seeds)
    optimizer = chosen.optimise(model.parameters())
    assert isinstance(problem.train, TensorDataset)
    x, y = problem.train.tensors
    for step in range(24):
        ids = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 24)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[ids]), y[ids]).backward()
        optimizer.step()
    pairs = zip(model.parameters(), outcome.model.parameters(), strict=True)
    for expected, found in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert outcome.summary.steps == 24


def test_verification_examples_are_not_trained_on():
    problem = clouds()
    team = Workers("gasgd", 2, rho=4)
    work = prepare(problem, settings(), team, torch.device("cpu"))
    assert isinstance(work.guide, WindowGuide)
    looked_at, trained = set(), set()
    objective_ids = work.guide._verification
    for _ in range(4):
        looked_at |= set(objective_ids.ids().tolist())
    seeds = torch.Generator().manual_seed(0)
    order = torch.randperm(60, generator=seeds)
    team.arrivals(work.total, seeds)
    stream = shuffled(order[20:], 5, seeds)
    for _ in range(24):
        trained |= set(next(stream).tolist())
    assert looked_at == set(order[:20].tolist())
    assert not looked_at & trained
    assert isinstance(team_of("gssgd").guide(order[:20], seeds), RoundGuide)


def team_of(recipe):
    return Workers(recipe, 2, rho=4)


def test_an_epoch_is_every_example_once():
    stream = shuffled(torch.arange(10, 22), 5, torch.Generator().manual_seed(0))
    first = torch.cat([next(stream), next(stream)])
    assert len(first.unique()) == 10
    second = torch.cat([next(stream), next(stream)])
    assert len(second.unique()) == 10
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(("recipe", "updates"), [("ssgd", 6), ("asgd", 24), ("ssp", 24)])
def test_a_budget_counts_batches_in_whole_rounds(recipe, updates):
    done = run_parallel(clouds(), settings(budget=parse_budget("27steps")), Workers(recipe, 4))
    rounds = 27 // 4 * 4 if recipe == "ssgd" else 27
    assert done.summary.examples_trained == 5 * rounds
    assert done.summary.steps == (6 if recipe == "ssgd" else 27)


def test_weights_that_are_lost_stop_the_run(workplace):
    wild = settings(lr=3e38)
    with pytest.raises(TrainingError, match="weights are not finite: lower the learning rate"):
        run_parallel(clouds(distance=100.0), wild, Workers("asgd", 4), out=workplace / "o")
    assert not (workplace / "o" / "summary.json").exists()
    lines = (workplace / "o" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["name"] == "failed"


def test_a_deep_model_with_batch_norm_is_guided_without_a_trace():
    chosen = Settings(
        recipe="uniform",
        model="wrn-10-1",
        norm="batch",
        budget=parse_budget("3steps"),
        batch_size=4,
    )
    outcome = run_parallel(digits(), chosen, Workers("gasgd", 2, "constant:1", rho=2))
    assert outcome.summary.steps >= 4
    counters = [b for n, b in outcome.model.named_buffers() if n.endswith("num_batches_tracked")]
    assert {int(counter) for counter in counters} == {outcome.summary.steps}


@pytest.mark.parametrize("recipe", ["asgd", "ssp"])
def test_workers_draw_from_one_table_and_say_so(recipe):
    team = Workers(recipe, 3, sampler="table")
    first, again = (
        run_parallel(clouds(), settings(lr=0.1), team, clock=VirtualClock()) for _ in range(2)
    )
    assert first.summary == again.summary
    assert first.summary.test_error < 0.2
    assert first.summary.examples_scored == 0
    gate = first.summary.gate
    assert gate is not None
    assert (gate["state"], gate["opened_at_step"]) == ("on", 1)
    assert "3 simulated workers draw from one score table, by scores" in gate["reason"]
    plain = run_parallel(clouds(), settings(lr=0.1), Workers(recipe, 3))
    assert plain.summary.test_loss != first.summary.test_loss


def test_the_table_and_the_average_are_flags(workplace, capsys):
    words = "train --recipe asgd --delay constant:3 --sampler table --average 0.5 --budget 40steps"
    assert entry.main([*words.split(), "--clock", "virtual", "--out", "o"]) == 0
    assert "asgd: sampling is on: 4 simulated workers draw from" in capsys.readouterr().out
    run = read_run(workplace / "o")
    assert {key: run.event("settings")[key] for key in ("sampler", "average")} == {
        "sampler": "table",
        "average": 0.5,
    }
    assert run.event("averaged")["updates"] == 20
    summary = json.loads((workplace / "o" / "summary.json").read_text())
    evaluated = run.of_kind("eval")
    assert len(evaluated) == 22
    assert evaluated[-1]["test_loss"] == summary["test_loss"] != evaluated[-2]["test_loss"]


def test_the_weights_of_the_tail_are_averaged():
    chosen, team = settings(lr=0.1), Workers("asgd", 2, compensation="age+replay", average=0.25)
    outcome = run_parallel(clouds(), chosen, team)
    work = prepare(clouds(), chosen, team, torch.device("cpu"))
    kept = []
    for step in range(24):
        work.crew.advance()
        if step >= 18:
            kept.append([weight.clone() for weight in work.server.weights])
    for place, found in enumerate(outcome.model.parameters()):
        expected = torch.stack([weights[place] for weights in kept]).mean(0)
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-7)


def test_averaged_weights_get_statistics_of_their_own():
    problem = digits()
    chosen = Settings(
        recipe="uniform",
        model="wrn-10-1",
        norm="batch",
        budget=parse_budget("4steps"),
        batch_size=4,
    )
    outcome = run_parallel(problem, chosen, Workers("asgd", 2, average=0.5))
    again = copy.deepcopy(outcome.model)
    data = DataLoader(subsample(problem.train, SUBSAMPLE, 0), batch_size=512)
    assert recalibrate_batch_norm(again, data) > 0
    found = dict(outcome.model.named_buffers())
    for name, expected in again.named_buffers():
        torch.testing.assert_close(found[name], expected)
