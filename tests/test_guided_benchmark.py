"""The benchmarks of guided SGD compute what they say: their objective, pairing and statistics."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from twins import assert_close

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def made(bench, runs=3, epochs=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(41, 3, dtype=torch.float64, generator=generator)
    y = torch.where(x[:, 1] + x[:, 2] > 1, 1.0, -1.0).double()
    return x, y, bench("guided_problem").prepare(x, y, runs, epochs, 4, 0.6, seed=7)


def test_the_logistic_objective_is_autograd_run_by_run(bench):
    _, _, runs = made(bench)
    w = runs.start.clone()
    batch = runs.batches[:, 2]
    (gradient,) = runs.train.gradient([w], batch)
    losses = runs.train.loss([w], batch)
    for run in range(3):
        leaf = w[run].clone().requires_grad_()
        rows = runs.train.signed[run][batch[run]]
        loss = torch.log(1 + torch.exp(-(rows @ leaf))).mean()
        loss.backward()
        assert leaf.grad is not None
        assert_close(gradient[run], leaf.grad)
        assert_close(losses[run], loss.detach())


def test_runs_are_split_shuffled_and_paired_by_seed(bench):
    x, y, runs = made(bench)
    assert (runs.examples, runs.per_epoch) == (24, 6)
    assert runs.test.signed.shape == (3, 16, 3)
    for run in range(3):
        for epoch in range(3):
            ids = runs.batches[run, 6 * epoch : 6 * epoch + 6].flatten()
            assert sorted(ids.tolist()) == list(range(24))
        alone = bench("guided_problem").prepare(x, y, 1, 3, 4, 0.6, seed=7 + run)
        assert torch.equal(alone.batches[0], runs.batches[run])
        assert torch.equal(alone.start[0], runs.start[run])
        rows = [tuple(row) for row in (x * y.unsqueeze(1)).tolist()]
        trained = {tuple(row) for row in runs.train.signed[run].tolist()}
        tested = {tuple(row) for row in runs.test.signed[run].tolist()}
        assert not trained & tested
        assert trained | tested < set(rows)
    right = [
        [float((row @ runs.start[run]) > 0) for row in runs.test.signed[run]] for run in range(3)
    ]
    expected = torch.tensor([100 * sum(values) / 16 for values in right], dtype=torch.float64)
    assert_close(runs.accuracy(runs.start), expected)


def test_a_simulation_without_delay_is_sgd_for_so_many_updates(bench):
    _, _, runs = made(bench)
    arms = bench("guided_arms")
    found = arms.simulate(runs, arms.ARMS["none"], 0, 0.5, 18, 0)
    for run in range(3):
        leaf = nn.Parameter(runs.start[run].clone())
        for batch in runs.batches[run]:
            rows = runs.train.signed[run][batch]
            (gradient,) = torch.autograd.grad(nn.functional.softplus(-(rows @ leaf)).mean(), leaf)
            leaf.data -= 0.5 * gradient
        expected = nn.functional.softplus(-(runs.test.signed[run] @ leaf.detach())).mean()
        assert_close(found.loss[run], expected)


def test_every_arm_learns(bench):
    _, _, runs = made(bench, epochs=20)
    arms = bench("guided_arms")
    assert arms.DEFAULT in arms.ARMS
    for name, arm in arms.ARMS.items():
        found = arms.simulate(runs, arm, 3, 0.5, 120, 0)
        assert float(found.loss.mean()) < 0.8 * float(runs.test_loss(runs.start).mean()), name


def test_holm_and_the_bound_are_the_textbook_s(bench):
    table = bench("guided_table")
    values = [0.01, 0.04, 0.03, 0.005]
    assert table.holm(values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert table.holm([0.9, 0.6]) == [1.0, 1.0]
    differences = torch.tensor([0.1, 0.4, -0.2, 0.3, 0.5], dtype=torch.float64).numpy()
    mean = sum(differences) / 5
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 4)
    assert table.lower(differences) == pytest.approx(mean - 2.131847 * deviation / math.sqrt(5))


def test_the_published_rmsprop_is_its_formula(bench):
    published = bench("guided_published")
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = published.OPTIMIZERS["rmsprop"]([w])
    expected, r = [1.0, -2.0], [0.0, 0.0]
    for gradient in ([0.5, 0.0], [-1.0, 2.0], [0.25, 1e-5]):
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        r = [0.9 * a + 0.1 * g * g for a, g in zip(r, gradient, strict=True)]
        expected = [
            a - 0.1 * g / math.sqrt(b + 1e-8) for a, g, b in zip(expected, gradient, r, strict=True)
        ]
    assert_close(w.detach(), torch.tensor(expected, dtype=torch.float64))


def test_the_published_slips_are_those_described(bench):
    """Of nine gradients after the eleventh, numbers 9 and 10 precede the counter's new start."""
    published = bench("guided_published")
    seen = []

    class Spy(published.AsPublished):
        def _replay_places(self, server, objective, scores, numbers):
            seen.append((scores.shape[-1], numbers, self._cut, self._epoch))
            super()._replay_places(server, objective, scores, numbers)

    _, _, runs = made(bench, epochs=6)
    w = runs.start.clone().requires_grad_()
    guide = Spy(runs, torch.Generator().manual_seed(0))
    server = published.ParameterServer([w], torch.optim.SGD([w], lr=0.1))
    list(published.ssgd(server, runs.train, 9, runs.batches.unbind(1), guide, "last"))
    assert seen[0] == (8, list(range(8)), 0, 1)
    assert seen[1] == (6, list(range(6)), 0, 2)
    assert seen[2] == (4, list(range(4)), 0, 4)
