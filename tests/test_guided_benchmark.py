"""The benchmarks of guided SGD compute what they say: their objective, pairing and statistics."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from twins import assert_close


def made(bench, runs=3, epochs=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(41, 3, dtype=torch.float64, generator=generator)
    y = torch.where(x[:, 1] + x[:, 2] > 1, 1.0, -1.0).double()
    return x, y, bench("guided_problem").prepare(x, y, runs, epochs, 4, 0.6, seed=7)


def rates(lr, runs=3):
    return torch.full((runs,), lr, dtype=torch.float64)


def tables(bench):
    """Two of different width and length."""
    problem, generator = bench("guided_problem"), torch.Generator().manual_seed(4)
    parts = []
    for count, width in ((41, 3), (30, 5)):
        x = torch.rand(count, width, dtype=torch.float64, generator=generator)
        y = torch.where(x.sum(1) > width / 2, 1.0, -1.0).double()
        parts.append(problem.prepare(x, y, 2, 20, 4, 0.6, seed=7))
    return parts


@pytest.mark.parametrize("name", ["none", "gap-aware", "none, averaged", "table"])
def test_merged_tables_are_each_by_itself(bench, monkeypatch, name):
    """Each with its own rate; a table's uniform numbers are the same in both."""
    arms, problem = bench("guided_arms"), bench("guided_problem")
    parts, lr = tables(bench), torch.tensor([0.5, 0.5, 2.0, 2.0], dtype=torch.float64)
    uniforms = torch.rand(40, 4, 4, dtype=torch.float64, generator=torch.Generator())
    with monkeypatch.context() as patched:
        turn = iter(uniforms)
        patched.setattr(torch, "rand", lambda *_, **__: next(turn))
        together = arms.simulate(problem.merge(parts), arms.ALL[name], 3, lr, 40, 0)
    for place, part in enumerate(parts):
        own = slice(2 * place, 2 * place + 2)
        with monkeypatch.context() as patched:
            turn = iter(uniforms[:, own])
            patched.setattr(torch, "rand", lambda *_, turn=turn, **__: next(turn))
            alone = arms.simulate(part, arms.ALL[name], 3, lr[own], 40, 0)
        assert_close(together.part(own).loss, alone.loss)
        assert_close(together.part(own).accuracy, alone.accuracy)
        if alone.gains is not None:
            assert_close(together.part(own).gains, alone.gains)


def test_fresh_verification_stays_within_each_run(bench):
    counts = torch.tensor([3, 8])
    draws = torch.Generator().manual_seed(0)
    found = bench("guided_arms").FreshByRun(counts, 400, draws).ids()
    assert [sorted(set(row)) for row in found.tolist()] == [list(range(3)), list(range(8))]


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
    found = arms.simulate(runs, arms.ARMS["none"], 0, rates(0.5), 18, 0)
    for run in range(3):
        leaf = nn.Parameter(runs.start[run].clone())
        for batch in runs.batches[run]:
            rows = runs.train.signed[run][batch]
            (gradient,) = torch.autograd.grad(nn.functional.softplus(-(rows @ leaf)).mean(), leaf)
            leaf.data -= 0.5 * gradient
        expected = nn.functional.softplus(-(runs.test.signed[run] @ leaf.detach())).mean()
        assert_close(found.loss[run], expected)


def test_scored_gradients_are_weighted_sums_with_exact_norms(bench):
    _, _, runs = made(bench)
    batch = runs.batches[:, 1]
    importance = torch.rand(batch.shape, dtype=torch.float64) + 0.2
    (gradient,), scores = runs.train.scored_gradient([runs.start], batch, importance)
    for run in range(3):
        leaf = runs.start[run].clone().requires_grad_()
        losses = nn.functional.softplus(-(runs.train.signed[run][batch[run]] @ leaf))
        parts = [torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in losses]
        assert_close(scores[run], torch.stack([part.norm() for part in parts]))
        weighted = [w * part for w, part in zip(importance[run], parts, strict=True)]
        assert_close(gradient[run], torch.stack(weighted).sum(0) / 4)


def test_an_averaged_arm_ends_with_the_mean_of_its_second_half(bench):
    _, _, runs = made(bench, epochs=10)
    arms = bench("guided_arms")
    found = arms.simulate(runs, arms.ALL["none, averaged"], 0, rates(0.5), 40, 0)
    for run in range(3):
        leaf, kept = nn.Parameter(runs.start[run].clone()), []
        for step, batch in enumerate(runs.batches[run, :40]):
            rows = runs.train.signed[run][batch]
            (gradient,) = torch.autograd.grad(nn.functional.softplus(-(rows @ leaf)).mean(), leaf)
            leaf.data -= 0.5 * gradient
            if step >= 20:
                kept.append(leaf.detach().clone())
        mean = torch.stack(kept).mean(0)
        expected = nn.functional.softplus(-(runs.test.signed[run] @ mean)).mean()
        assert_close(found.loss[run], expected)


def test_every_arm_learns(bench):
    _, _, runs = made(bench, epochs=20)
    arms = bench("guided_arms")
    assert {arms.DEFAULT, arms.FIRST_DEFAULT} <= set(arms.ALL)
    for name, arm in arms.ALL.items():
        found = arms.simulate(runs, arm, 3, rates(1.0), 120, 0)
        assert float(found.loss.mean()) < 0.8 * float(runs.test_loss(runs.start).mean()), name
        assert (found.gains is not None) == (found.age is not None) == (name in arms.DRAWN)


def test_holm_and_the_bound_are_the_textbook_s(bench):
    statistics = bench("guided_statistics")
    values = [0.01, 0.04, 0.03, 0.005]
    assert statistics.holm(values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.6]) == [1.0, 1.0]
    differences = torch.tensor([0.1, 0.4, -0.2, 0.3, 0.5], dtype=torch.float64).numpy()
    mean = sum(differences) / 5
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 4)
    expected = mean - 2.131847 * deviation / math.sqrt(5)
    assert statistics.lower(differences) == pytest.approx(expected)


def test_ratios_are_t_tests_of_logs(bench):
    statistics = bench("guided_statistics")
    generator = np.random.default_rng(1)
    ours, theirs = generator.lognormal(0.2, 0.3, (2, 3, 12))
    one = statistics.paired(ours[0], theirs[0])
    logs = np.log(ours[0]) - np.log(theirs[0])
    textbook: Any = stats.ttest_1samp(logs, 0)
    interval = textbook.confidence_interval(0.95)
    assert one.chance == pytest.approx(textbook.pvalue)
    expected = (np.exp(logs.mean()), np.exp(interval.low), np.exp(interval.high))
    assert (one.mean, one.low, one.high) == pytest.approx(expected)
    three = statistics.pooled(list(ours), list(theirs))
    means = [float(np.mean(np.log(a / b))) for a, b in zip(ours, theirs, strict=True)]
    parts = [np.var(np.log(a / b), ddof=1) / 12 for a, b in zip(ours, theirs, strict=True)]
    error = math.sqrt(sum(parts)) / 3
    degrees = sum(parts) ** 2 / sum(part**2 / 11 for part in parts)
    reach = stats.t.ppf(0.975, degrees) * error
    assert three.mean == pytest.approx(math.exp(sum(means) / 3))
    assert three.high == pytest.approx(math.exp(sum(means) / 3 + reach))
    assert 11 <= degrees <= 33


def test_a_share_is_a_ratio_of_sums_over_tables_with_a_gap(bench):
    statistics = bench("guided_statistics")
    noise = 0.01 * np.random.default_rng(2).standard_normal((3, 3, 20))
    late = [5 + noise[0, 0], 3 + noise[0, 1], 1 + noise[0, 2]]
    ours = [2 + noise[1, 0], 2 + noise[1, 1], 9 + noise[1, 2]]
    fresh = [1 + noise[2, 0], 1 + noise[2, 1], 1.5 + noise[2, 2]]
    share = statistics.share_of_gap(late, ours, fresh)
    assert len(share.each) == 2
    top = [float((a - b).mean()) for a, b in zip(late, ours, strict=True)][:2]
    bottom = [float((a - b).mean()) for a, b in zip(late, fresh, strict=True)][:2]
    assert share.whole == pytest.approx(sum(top) / sum(bottom))
    assert share.each == pytest.approx([a / b for a, b in zip(top, bottom, strict=True)])
    assert share.low < share.whole < share.high < share.low + 0.02
    assert statistics.share_of_gap(fresh, ours, [*late[:2], late[2] + 1]) is None


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
