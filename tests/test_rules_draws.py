"""Rules that draw batch by batch: probabilities and weights against loops and exact integration."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gradsift import UsageError, rules
from gradsift.rules import AbstractPicker
from gradsift.rules.classes import AbstractClasses, Groups
from gradsift.rules.ranked import ranks_at
from picking import generator, ones, tell, update

LOSSES = [0.5, 2.0, 0.0, 1.25, 3.0, 0.75]


def slow_slots(p: list[float], uniform: Tensor) -> list[int]:
    """The example under each point ``(j + u_j)/b`` of the cumulated probabilities."""
    found = []
    for j, u in enumerate(uniform.tolist()):
        point, example = (j + u) / len(uniform), 0
        while example < len(p) - 1 and point >= math.fsum(p[: example + 1]):
            example += 1
        found.append(example)
    return found


@pytest.mark.parametrize("progress", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.4), (1.0, 1.0), (0.1, 0.5), (2.0, 0.0)])
def test_prioritised_probabilities_and_weights(
    alpha: float, beta: float, progress: float | None
) -> None:
    picker = rules.Prioritised(alpha, beta, epsilon=2.0**-10).open(len(LOSSES))
    tell(picker, LOSSES)
    picker.progress = progress
    powers = [(loss + 2.0**-10) ** alpha for loss in LOSSES]  # exact in float32
    p = [power / math.fsum(powers) for power in powers]
    grown = beta + (1 - beta) * (progress or 0.0)
    for seed in range(20):
        drawn = picker.draw(4, generator(seed))
        uniform = torch.rand(4, dtype=torch.float64, generator=generator(seed))
        ids = slow_slots(p, uniform)
        assert drawn.positions.tolist() == ids
        raw = [(len(p) * p[k]) ** -grown for k in ids]
        slow = [weight / max(raw) for weight in raw]
        np.testing.assert_allclose(drawn.weights.numpy(), slow, rtol=1e-12)


def test_full_compensation_is_unbiased_up_to_its_scale() -> None:
    """At β = 1 the weight before the division is ``1/(N p)``; the largest divides it."""
    picker = rules.Prioritised(alpha=1.0, beta=1.0, epsilon=0.5).open(3)
    tell(picker, [0.5, 1.5, 2.5])
    p = np.array([1.0, 2.0, 3.0]) / 6
    for seed in range(30):
        drawn = picker.draw(2, generator(seed))
        true = 1 / (3 * p[drawn.positions.numpy()])
        np.testing.assert_allclose(drawn.weights.numpy(), true / true.max(), rtol=1e-12)


def test_what_the_first_pass_left_out_gets_the_largest_priority() -> None:
    picker = rules.Prioritised(alpha=1.0, beta=0.0, epsilon=1e-6).open(3)
    picker.learn(update([0, 1], [1.0, 6.0]), ones(2))
    picker.passed(2)
    assert not picker.ready
    picker.passed(1)
    assert picker.ready
    ids = torch.cat([picker.draw(13, generator(seed)).positions for seed in range(40)])
    assert torch.bincount(ids).tolist() == pytest.approx([40, 240, 240], abs=1)


def test_the_latest_priority_counts_and_negative_ones_are_refused() -> None:
    picker = rules.Prioritised(alpha=1.0, epsilon=1e-9).open(2)
    tell(picker, [5.0, 1.0])
    picker.learn(update([0, 1, 0], [3.0, 1.0, 1.0]), ones(3))
    assert picker.draw(2, generator()).positions.tolist() == [0, 1]
    with pytest.raises(UsageError, match=r"the score -0\.5, expected scores >= 0"):
        picker.learn(update([0], [-0.5]), ones(1))


def slow_rank_law(pressure: float, count: int) -> list[float]:
    """``p_k ∝ (1/exp(ln(s)/N))^k``, as the paper writes it."""
    raw = [(1 / math.exp(math.log(pressure) / count)) ** k for k in range(count)]
    return [value / math.fsum(raw) for value in raw]


@pytest.mark.parametrize("count", [1, 2, 7, 50])
@pytest.mark.parametrize("pressure", [1.0, 1.5, 100.0, 1e8])
def test_ranks_have_their_law_by_integration(pressure: float, count: int) -> None:
    """A rank is a step function of its uniform number; its steps are the cumulated law."""
    edges = [0.0, *itertools.accumulate(slow_rank_law(pressure, count))]
    for rank, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = np.linspace(low + 1e-12, min(high, 1.0) - 1e-12, 5)
        if high - low > 1e-10:
            assert ranks_at(inside, pressure, count).tolist() == [rank] * 5
    assert ranks_at(np.array([1 - 2.0**-53]), pressure, count).item() == count - 1


@pytest.mark.parametrize("progress", [None, 0.25, 1.0])
def test_the_largest_losses_come_first_with_the_pressure_of_the_moment(
    progress: float | None,
) -> None:
    picker = rules.RankedByLoss(pressure=1e4, final=4.0).open(6)
    tell(picker, [*LOSSES[:5], math.nan])
    picker.progress = progress
    pressure = 1e4 * (4.0 / 1e4) ** (progress or 0.0)
    order = [5, 4, 1, 3, 0, 2]  # the unseen one first
    uniform = torch.rand(500, dtype=torch.float64, generator=generator(1))
    slow = [order[rank] for rank in ranks_at(uniform.numpy(), pressure, 6)]
    drawn = picker.draw(500, generator(1))
    assert drawn.positions.tolist() == slow
    assert torch.equal(drawn.weights, ones(500))


def test_ranks_change_once_in_a_pass_and_all_losses_are_asked_for_in_time() -> None:
    picker = rules.RankedByLoss(pressure=1e12, final=1e12, recompute=1.5).open(4)
    tell(picker, [1.0, 2.0, 3.0, 4.0])
    assert picker.draw(2, generator()).positions.tolist() == [3, 3]
    picker.learn(update([0], [9.0]), ones(1))
    assert picker.draw(2, generator()).positions.tolist() == [3, 3]  # still the old order
    assert picker.draw(1, generator()).positions.tolist() == [0]
    assert not len(picker.wanted(1))
    picker.draw(1, generator())
    assert picker.wanted(1).tolist() == [0, 1, 2, 3]
    picker.answer(update(range(4), [1.0, 20.0, 3.0, 4.0]))
    assert not len(picker.wanted(1))
    assert picker.draw(1, generator()).positions.tolist() == [1]
    never = rules.RankedByLoss(recompute=math.inf).open(4)
    tell(never, [1.0] * 4)
    never.draw(1000, generator())
    assert not len(never.wanted(1))


LABELS = [7, 3, 3, 7, 7, 7]


def opened(name: str) -> AbstractClasses:
    """A picker by class that has learnt something."""
    rule = {"gaussian": rules.ClassGaussian(), "learnt": rules.LearntClasses(rate=0.7)}[name]
    picker = rule.open(len(LABELS))
    assert isinstance(picker, AbstractClasses)
    tell(picker, LOSSES, LABELS)
    picker.draw(1, generator())
    picker.learn(update([1, 0, 4], [5.0, 1.0, 0.5]), torch.tensor([0.5, 1.5, 1.5]).double())
    return picker


@pytest.mark.parametrize("name", ["gaussian", "learnt"])
def test_draws_by_class_are_unbiased_by_integration(name: str) -> None:
    """Both uniform numbers are integrated over exactly: ``p_i w_i = 1/N`` for every example."""
    picker = opened(name)
    groups = Groups(np.array(LABELS))
    masses = picker.masses(groups)
    assert masses.sum() == pytest.approx(1.0, rel=1e-12)
    assert masses[0] != pytest.approx(2 / 6)
    mass = np.zeros(len(LABELS))
    edges = [0.0, *masses.cumsum()]
    for low, high in itertools.pairwise(edges):
        (place,) = groups.classes_at(np.array([(low + high) / 2]), masses)
        assert groups.classes_at(np.array([low, high - 1e-12]), masses).tolist() == [place] * 2
        count = groups.counts[place]
        for cell in range(count):
            (example,) = groups.examples_at(np.array([place]), np.array([(cell + 0.5) / count]))
            weight = groups.shares[place] / masses[place]
            mass[example] += (high - low) / count * weight
    np.testing.assert_allclose(mass, 1 / len(LABELS), rtol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "learnt"])
def test_the_drawn_examples_and_weights_are_those_of_the_law(name: str) -> None:
    picker = opened(name)
    groups = Groups(np.array(LABELS))
    masses = picker.masses(groups)
    source = generator(6)
    classes, places = (torch.rand(50, dtype=torch.float64, generator=source) for _ in range(2))
    drawn = picker.draw(50, generator(6))
    for k in range(50):
        place = 0 if classes[k] < masses[0] else 1
        members = [i for i, label in enumerate(LABELS) if label == (3, 7)[place]]
        example = members[int(places[k] * len(members))]
        assert drawn.positions[k] == example
        assert drawn.weights[k].item() == pytest.approx(len(members) / 6 / masses[place], rel=1e-12)


def test_class_moments_are_moving_averages() -> None:
    """Of batches in which a class occurs, by a loop over them."""
    picker = rules.ClassGaussian(momentum=0.8).open(4)
    tell(picker, [1.0, 3.0, 2.0, 6.0], [0, 0, 1, 1])
    picker.draw(1, generator())
    mean, square = {0: 2.0, 1: 4.0}, {0: 5.0, 1: 20.0}
    batches = [([0, 1, 2], [2.0, 4.0, 1.0]), ([0], [9.0]), ([3, 3], [1.0, 3.0])]
    for ids, scores in batches:
        picker.learn(update(ids, scores), 3 * ones(len(ids)))
        for label in (0, 1):
            own = [s for k, s in zip(ids, scores, strict=True) if k // 2 == label]
            if own:
                mean[label] = 0.8 * mean[label] + 0.2 * math.fsum(own) / len(own)
                fresh = math.fsum(s * s for s in own) / len(own)
                square[label] = 0.8 * square[label] + 0.2 * fresh
    values = [2 * (mean[k] + math.sqrt(square[k] - mean[k] ** 2)) for k in (0, 1)]
    assert isinstance(picker, AbstractClasses)
    masses = picker.masses(Groups(np.array([0, 0, 1, 1])))
    np.testing.assert_allclose(masses, np.array(values) / math.fsum(values), rtol=1e-12)


def test_without_classes_every_example_is_alike() -> None:
    for rule in (rules.ClassGaussian(), rules.LearntClasses()):
        picker = rule.open(5)
        tell(picker, [1.0, 9.0, 1.0, 1.0, 1.0])
        assert torch.equal(picker.draw(7, generator()).weights, ones(7))


def variance(tau: Tensor, shares: Tensor, squares: Tensor, uniform: float) -> Tensor:
    """The part of the trace that the proposal decides: ``Σ π_k² m_k / q_k``."""
    soft = torch.softmax(tau + shares.log(), 0)
    return (shares**2 * squares / ((1 - uniform) * soft + uniform * shares)).sum()


@pytest.mark.parametrize("uniform", [0.05, 0.5])
def test_the_proposal_descends_the_variance(uniform: float) -> None:
    """The step in the mean over what is drawn is minus the gradient of the trace, exactly."""
    norms = {3: 2.0, 7: 0.5}
    shares = torch.tensor([2 / 6, 4 / 6], dtype=torch.float64)
    squares = torch.tensor([norms[3] ** 2, norms[7] ** 2], dtype=torch.float64)
    groups = Groups(np.array(LABELS))
    start = np.array([0.4, -0.3])

    def made() -> AbstractPicker:
        picker = rules.LearntClasses(rate=1.0, uniform=uniform).open(6)
        tell(picker, [1.0] * 6, LABELS)
        picker.draw(1, generator())
        picker.load_state_dict({**picker.state_dict(), "tau": torch.from_numpy(start.copy())})
        return picker

    first = made()
    assert isinstance(first, AbstractClasses)
    masses = first.masses(groups)
    mean_step = np.zeros(2)
    for place, example in ((0, 1), (1, 0)):
        picker = made()
        weight = shares[place].item() / masses[place]
        norm = norms[LABELS[example]]
        picker.learn(update([example], [norm]), torch.tensor([weight], dtype=torch.float64))
        step = picker.state_dict()["tau"].numpy() - start
        mean_step += masses[place] * step * (weight * norm) ** 2  # undoes the division by D
    tau = torch.from_numpy(start.copy()).requires_grad_()
    (gradient,) = torch.autograd.grad(variance(tau, shares, squares, uniform), tau)
    np.testing.assert_allclose(mean_step, -gradient.numpy(), rtol=1e-10)


def test_the_proposal_comes_to_rest_where_it_should() -> None:
    """``s_k ∝ π_k sqrt(mean_k g²)``, the best proposal of the family."""
    picker = rules.LearntClasses(rate=0.05, uniform=1e-3).open(6)
    tell(picker, [1.0] * 6, LABELS)
    source = generator()
    for _ in range(1500):
        drawn = picker.draw(16, source)
        scores = [3.0 if LABELS[k] == 3 else 0.5 for k in drawn.positions.tolist()]
        picker.learn(update(drawn.positions.tolist(), scores), drawn.weights)
    assert isinstance(picker, AbstractClasses)
    best = np.array([2 * 3.0, 4 * 0.5]) / 8
    np.testing.assert_allclose(picker.masses(Groups(np.array(LABELS))), best, atol=0.02)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_fixed_probabilities_are_unbiased_and_drawn_a_pass_ahead(power: float) -> None:
    norms = [1.0, 3.0, 0.5, 2.0]
    rule = replace(rules.Fixed(), power=power)
    picker = rule.open(4)
    assert not picker.ready
    assert picker.wanted(8).tolist() == [0, 1, 2, 3]
    picker.answer(update(range(4), norms))
    assert picker.ready
    assert not len(picker.wanted(8))
    total = math.fsum(norm**power for norm in norms)
    p = [norm**power / total for norm in norms]
    counts = np.zeros(4)
    source = generator(3)
    for _ in range(2000):
        drawn = picker.draw(4, source)
        ids = drawn.positions.tolist()
        np.add.at(counts, ids, 1)
        for k, weight in zip(ids, drawn.weights.tolist(), strict=True):
            assert p[k] * weight == pytest.approx(1 / 4, rel=1e-12)
        assert getattr(picker, "left") == 0  # noqa: B009 - of rounds alone
    deviation = np.sqrt(np.array(p) * (1 - np.array(p)) / 8000)
    assert (np.abs(counts / 8000 - p) < 5 * deviation).all()


def test_a_zero_norm_is_drawn_too() -> None:
    picker = rules.Fixed().open(2)
    picker.answer(update([0, 1], [0.0, 1.0]))
    drawn = picker.draw(2000, generator())
    assert set(drawn.positions.tolist()) <= {0, 1}
    assert torch.isfinite(drawn.weights).all()
