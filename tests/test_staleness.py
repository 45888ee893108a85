"""The study of staleness: its traces against loops over examples, its ages against a known past."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from gradsift.data.problem import from_datasets
from gradsift.scores import GradientNorm
from gradsift.scores.gradient_loop import gradient_norms
from twins import assert_close

ROOT = Path(__file__).parents[1]
LOSS = nn.CrossEntropyLoss(reduction="none")
N, BATCH = 64, 16


@pytest.fixture(scope="module")
def bench() -> Any:
    """Imports a benchmark by name."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    patch.undo()


def problem() -> Any:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(N + 20, 6, generator=generator)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1).long()
    parts = slice(N), slice(N, None)
    return from_datasets("toy", *(TensorDataset(inputs[part], targets[part]) for part in parts))


def plan(bench: Any, **changes: Any) -> Any:
    base = bench("stale_run").Plan(
        method="issgd",
        lr=0.1,
        steps=12,
        checkpoints=(6, 12),
        ages=(0, 1, 4, 10),
        batch=BATCH,
        every=3,
        width=8,
        sample=20,
        tests=15,
    )
    return replace(base, **changes)


def test_a_look_is_the_loop_over_examples(bench):
    """The squared mean gradient without bias is the mean over pairs of different examples."""
    stale = bench("stale_run")
    model = stale.network((6,), 3, 8, seed=1).double()
    sample = stale.sample_of(problem().train, 9, seed=0)
    sample = replace(sample, inputs=sample.inputs.double())
    found = stale.look(model, LOSS, sample, GradientNorm(precision="float32"))
    assert_close(found.norms, gradient_norms(model, LOSS, sample.inputs, sample.targets).double())
    gradients = []
    for x, y in zip(sample.inputs, sample.targets, strict=True):
        parts = torch.autograd.grad(LOSS(model(x[None]), y[None]).sum(), list(model.parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]))
    pairs = [
        float(one @ other)
        for k, one in enumerate(gradients)
        for m, other in enumerate(gradients)
        if k != m
    ]
    assert found.mean_square == pytest.approx(sum(pairs) / len(pairs), rel=1e-9)
    assert found.loss == pytest.approx(LOSS(model(sample.inputs), sample.targets).mean().item())


def test_a_sample_has_every_example_once(bench):
    stale, data = bench("stale_run"), problem().train
    sample = stale.sample_of(data, 9, seed=0)
    assert sample.ids.tolist() == sorted(set(sample.ids.tolist()))
    for k, place in enumerate(sample.ids.tolist()):
        assert torch.equal(sample.inputs[k], data[place][0])
        assert int(sample.targets[k]) == int(data[place][1])
    assert stale.sample_of(data, 9, seed=1).ids.tolist() != sample.ids.tolist()
    assert stale.sample_of(data, 10**6, seed=1).ids.tolist() == list(range(N))


class Shown:
    """What `assess` asks of a loader that keeps no table."""

    table = None
    engine_status = None


def test_a_checkpoint_uses_the_norms_of_so_many_steps_ago(bench):
    stale = bench("stale_run")
    generator = torch.Generator().manual_seed(0)
    chosen = plan(bench, checkpoints=(6,), ages=(0, 1, 4, 10))
    run = stale.Run(chosen, nn.Identity(), None, LOSS)
    for step in range(7):
        norms = torch.rand(5, generator=generator).double() + 0.1
        run.looks[step] = stale.Look(norms, mean_square=0.01, loss=float(step))
    found = stale.assess(run, 6, 0.25, Shown())
    now = run.looks[6].norms.tolist()
    assert (found.step, found.loss, found.test_error) == (6, 6.0, 0.25)
    assert found.uniform == pytest.approx(sum(g * g for g in now) / 5 - 0.01)
    assert found.ideal == pytest.approx((sum(now) / 5) ** 2 - 0.01)
    assert sorted(found.pure) == sorted(found.floored) == [0, 1, 4]
    for age in (0, 1, 4):
        old = run.looks[6 - age].norms.tolist()
        level = sum(old) / 5
        pure = sum(g * g / (s / level) for g, s in zip(now, old, strict=True)) / 5 - 0.01
        mixed = [0.8 * s / level + 0.2 for s in old]
        floored = sum(g * g / m for g, m in zip(now, mixed, strict=True)) / 5 - 0.01
        assert found.pure[age] == pytest.approx(pure)
        assert found.floored[age] == pytest.approx(floored)
    assert found.pure[0] == pytest.approx(found.ideal)
    assert found.drawn is None


def test_only_what_will_be_wanted_is_looked_at(bench):
    assert plan(bench).looks == {6, 5, 2, 12, 11, 8}


def test_without_learning_old_norms_are_ideal_and_the_table_is_its_mixture(bench):
    """Blocks of all examples: every score is relative to the same level."""
    stale = bench("stale_run")
    chosen = plan(bench, lr=0.0, sweeps=N / BATCH, sample=N)
    first, last = stale.train(problem(), chosen)
    for each in (first, last):
        for age, trace in each.pure.items():
            assert trace == pytest.approx(each.ideal, rel=1e-6), age
    model = stale.network((6,), 3, 8, seed=0)
    inputs, targets = problem().train.tensors
    norms = gradient_norms(model, LOSS, inputs, targets).double()
    exponent, share = last.law
    powers = norms**exponent
    masses = (1 - share) * powers / powers.mean() + share
    expected = float((norms.square() / masses).mean()) - last.mean_square
    assert last.drawn == pytest.approx(expected, rel=1e-4)
    assert last.age <= chosen.every


def test_a_run_repeats_and_its_checkpoints_are_of_the_parameters_of_their_step(bench):
    stale = bench("stale_run")
    for method in ("uniform", "issgd"):
        chosen = plan(bench, method=method)
        one, other = (list(stale.train(problem(), chosen)) for _ in range(2))
        assert one == other
        assert [each.step for each in one] == [6, 12]
        shorter = replace(chosen, steps=6, checkpoints=(6,))
        assert list(stale.train(problem(), shorter)) == one[:1]
        assert (one[0].drawn is None) == (method == "uniform")
    assert one[1].loss < one[0].loss


def test_the_network_has_the_published_gain(bench):
    model = bench("stale_run").network((3, 32, 32), 10, 256, seed=0)
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == [3072, 256, 256, 256, 256]
    published = [3072, 2048, 2048, 2048, 2048]
    for layer, inputs in zip(linear, published, strict=True):
        gain = layer.weight.std().item() * layer.in_features**0.5
        assert gain == pytest.approx(0.01 * inputs**0.5, rel=0.05)
        assert not layer.bias.any()


def checkpoint(bench: Any, step: int, uniform: float, ideal: float, **others: Any) -> Any:
    values = {"drawn": None, "pure": {}, "floored": {}, "age": None, "law": None} | others
    return bench("stale_run").Checkpoint(
        step, loss=1.0, test_error=0.5, mean_square=0.0, uniform=uniform, ideal=ideal, **values
    )


def test_shares_are_ratios_of_sums_over_the_checkpoints_that_have_the_age(bench):
    staleness = bench("staleness")
    checkpoints = (
        checkpoint(bench, 6, 4.0, 2.0, drawn=3.0, floored={0: 2.5}),
        checkpoint(bench, 12, 10.0, 4.0, drawn=5.0, floored={0: 4.5, 10: 7.0}),
        checkpoint(bench, 18, 5.0, 4.0, drawn=5.5, floored={0: 4.25, 10: 6.0}),
    )
    chosen = plan(bench, ages=(0, 10))
    cell = staleness.Cell("toy", chosen, 4, checkpoints)
    found, count = staleness.share(checkpoints, staleness.drawn(cell))
    assert (found.value, count) == (pytest.approx((1 + 5 - 0.5) / (2 + 6 + 1)), 3)
    found, count = staleness.share(checkpoints, staleness.aged(cell, 10, floor=True))
    assert (found.value, count) == (pytest.approx((3 - 1) / (6 + 1)), 2)
    ages, shares = staleness.law_of(cell)
    assert ages == [0, 10]
    assert shares == pytest.approx([(5.5 + 0.75) / 7, 2 / 7])


def test_a_sweep_is_predicted_by_the_mean_of_the_law_over_its_ages(bench):
    staleness = bench("staleness")
    cell = staleness.Cell("toy", plan(bench, sweeps=0.5, every=3), 4, ())
    law = ([0, 100], [1.0, 0.0])
    wanted = [
        1 - torch.log1p(torch.tensor(age + 1.0)) / torch.log(torch.tensor(101.0))
        for age in range(8)
    ]
    assert staleness.predicted(law, cell) == pytest.approx(float(sum(wanted)) / 8, rel=1e-5)


def test_the_cells_are_two_rates_by_two_methods_and_a_slower_engine(bench):
    options = argparse.Namespace(steps=100, width=8, sample=20, seed=0, smoothing=0.25, cells=5)
    found = bench("staleness").plans(10, options)
    cells = [(each.lr, each.method, each.sweeps) for each in found]
    assert cells == [
        (0.01, "issgd", 1.0),
        (0.01, "uniform", 1.0),
        (0.01, "issgd", 0.25),
        (0.001, "issgd", 1.0),
        (0.001, "uniform", 1.0),
    ]
    assert {each.smoothing for each in found} == {0.25}
    assert found[0].checkpoints == (28, 36, 44, 52, 60, 68, 76, 84, 92, 100)
    assert found[0].ages == (0, 2, 5, 10, 16, 20, 40, 50)


@pytest.mark.slow
def test_the_program_runs_and_writes_a_law_for_the_simulation(bench, tmp_path: Path) -> None:
    flags = ["--data", "digits", "--examples", "640", "--steps", "60", "--width", "16"]
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks/staleness.py"), *flags, "--sample", "100"),
            *("--out", "rows.json", "--picture", "traces.svg"),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "rows.json").read_text())
    assert len(content["cells"]) == 5
    assert (tmp_path / "traces.svg").stat().st_size > 0
    law = bench("scale_sim").read_law(tmp_path / "rows.json")
    assert law.ages.tolist() == sorted(law.ages.tolist())
