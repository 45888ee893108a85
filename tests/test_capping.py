"""Scores capped at a quantile: against slow twins, still unbiased to the bit of every weight."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from enumeration import cells, float64
from gradsift import Recipe, UsageError, recipes
from gradsift.monitors.averages import Estimate
from gradsift.sampling import ScoreTable
from gradsift.sampling import capping as room
from gradsift.sampling.capping import Cap, check_cap, weighted_quantile
from gradsift.sampling.distributions import Mixed, Proportional
from gradsift.sampling.draws import AbstractDraw, Stratified, Systematic
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.walks import stratified_places, systematic_places
from gradsift.sifting.auto import Auto
from gradsift.sifting.evidence import Evidence
from gradsift.trainer import Settings

CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none")
QUANTILES = [0.25, 0.5, 0.75, 0.875]
"""Dyadic, like the weights: sums of either are exact, so twins agree at every tie."""


def slow_quantile(values: list[float], weights: list[float], quantile: float) -> float:
    """The smallest value up to which there is enough weight, one value after the other."""
    for value in sorted(values):
        below = math.fsum(w for v, w in zip(values, weights, strict=True) if v <= value)
        if below >= quantile * math.fsum(weights):
            return value
    raise AssertionError


WEIGHTED = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 9.0, 1e30]), st.integers(0, 8)),
    min_size=1,
    max_size=12,
)


@given(rows=WEIGHTED, quantile=st.sampled_from(QUANTILES))
@settings(max_examples=40)
def test_a_weighted_quantile_agrees_with_the_slow_one(
    rows: list[tuple[float, int]], quantile: float
) -> None:
    values, weights = [row[0] for row in rows], [row[1] / 4 for row in rows]
    assume(sum(weights) > 0)
    found = weighted_quantile(np.array(values), np.array(weights), quantile)
    assert found == slow_quantile(values, weights, quantile)


def test_importance_weights_make_it_the_quantile_of_the_population() -> None:
    """Nine examples of score 1 and one of 9; the last is drawn half of the time, and weighs 1/5."""
    drawn = np.array([1.0] * 5 + [9.0] * 5)
    weights = np.array([9 / 5] * 5 + [1 / 5] * 5)
    assert weighted_quantile(drawn, weights, 0.875) == 1.0
    assert weighted_quantile(drawn, np.ones(10), 0.875) == 9.0


@given(
    arrivals=st.lists(WEIGHTED, min_size=1, max_size=8),
    quantile=st.sampled_from(QUANTILES),
    examples=st.sampled_from([3, 7, 1000]),
)
@settings(max_examples=30)
def test_a_cap_remembers_the_latest_scores_and_no_more(
    arrivals: list[list[tuple[float, int]]], quantile: float, examples: int
) -> None:
    cap = Cap(quantile, examples)
    before: list[tuple[float, float]] = []
    ceiling = math.inf
    for rows in arrivals:
        rows = [(g, w / 4) for g, w in rows]
        seen = before + rows
        if sum(w for _, w in seen) > 0:
            ceiling = slow_quantile([g for g, _ in seen], [w for _, w in seen], quantile)
        found = cap.bound(np.array([g for g, _ in rows]), np.array([w for _, w in rows]))
        assert found.tolist() == [min(g, ceiling) for g, _ in rows]
        assert cap.ceiling == ceiling
        before = seen[-min(examples, room.REMEMBERED) :]


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "REMEMBERED", 4)
    cap = Cap(0.5, examples=1000)
    cap.bound(np.full(100, 9.0), None)
    assert cap.state_dict()["recent"].shape == (2, 4)
    assert cap.bound(np.ones(6), None).tolist() == [1.0] * 6


@pytest.mark.parametrize("cap", [0.0, 1.0, -0.5, 95, math.nan, math.inf])
def test_what_is_no_quantile(cap: float) -> None:
    for make in (check_cap, lambda cap: ScoreTable(4, cap=cap), lambda cap: Cap(cap, 4)):
        with pytest.raises(UsageError, match=r"expected a quantile between 0 and 1"):
            make(cap)


def updates(size: int, seed: int = 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids with copies, lognormal scores, dyadic weights."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(12):
        ids = torch.randint(size, (size // 2,), generator=generator)
        scores = torch.randn(len(ids), generator=generator, dtype=torch.float64).mul(1.5).exp()
        weights = torch.randint(1, 9, (len(ids),), generator=generator).double() / 4
        found.append((ids, scores, weights))
    return found


@pytest.mark.parametrize("draw", [Stratified(), Systematic()], ids=repr)
def test_a_capped_table_is_a_plain_one_that_gets_capped_scores(draw: AbstractDraw) -> None:
    table, plain = ScoreTable(30, cap=0.75, draw=draw), ScoreTable(30, draw=draw)
    everyone = torch.arange(30)
    before: list[tuple[float, float]] = []
    for version, (ids, scores, weights) in enumerate(updates(30)):
        seen = before + list(zip(scores.tolist(), weights.tolist(), strict=True))
        ceiling = slow_quantile([g for g, _ in seen], [w for _, w in seen], 0.75)
        before = seen[-30:]
        table.update(ids, scores, version, weights)
        plain.update(ids, scores.clamp(max=ceiling), version, weights)
        assert table.level == plain.level
        assert torch.equal(table.relative(everyone), plain.relative(everyone))
        one, other = (
            each.draw(8, torch.Generator().manual_seed(version)) for each in (table, plain)
        )
        assert torch.equal(one.positions, other.positions)
        assert torch.equal(one.weights, other.weights)


def with_outlier(size: float, cap: float | None, draw: AbstractDraw) -> ScoreTable:
    """Five examples, one of which scores like a wrong label."""
    floored = Mixed(Proportional(), uniform=0.2)
    table = ScoreTable(5, cap=cap, draw=draw, distribution=floored, seed=1)
    for version in range(3):
        table.update(torch.arange(5), float64([0.5, 1.0, size, 2.0, 0.0]), version)
    return table


@pytest.mark.parametrize("cap", [None, 0.25, 0.75])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_stratified_draws_are_unbiased_whatever_the_cap(cap: float | None, size: int) -> None:
    """``E[Σ_j 1{i_j = i} w_j] = b/N``, by integration over each slot of the real walk."""
    table = with_outlier(50.0, cap, Stratified())
    everyone = torch.arange(5)
    p = table.probabilities(everyone)
    expected = np.zeros(5)
    for slot in range(size):
        for middle, length in cells((size * p.cumsum(0) - slot).tolist()):
            uniforms = np.full(size, 0.5)
            uniforms[slot] = middle
            places, masses = stratified_places(table._scores.tree, table._mixture(), uniforms)
            expected[places[slot]] += length / masses[slot]
    np.testing.assert_allclose(expected, size / 5, rtol=1e-12)
    for seed in range(5):
        drawn = table.draw(size, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(drawn.weights, 1 / (5 * p[drawn.positions]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("cap", [None, 0.25, 0.75])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_systematic_draws_are_unbiased_whatever_the_cap(cap: float | None, size: int) -> None:
    table = with_outlier(50.0, cap, Systematic())
    walk = torch.from_numpy(table._order.ids(np.arange(5)))
    inclusion = capped_inclusion(table.probabilities(torch.arange(5)), size)
    expected = np.zeros(5)
    for middle, length in cells((inclusion[walk].cumsum(0) % 1).tolist()):
        places, pi = systematic_places(table._scores.tree, table._mixture(), size, middle)
        expected[walk[places].numpy()] += length * size / (5 * pi)
    np.testing.assert_allclose(expected, size / 5, rtol=1e-12)


def test_an_outlier_has_bounded_influence() -> None:
    """However large it is: the capped proposal does not move, the plain one follows."""
    everyone = torch.arange(5)
    small, large = (
        with_outlier(size, 0.75, Stratified()).probabilities(everyone) for size in (3.0, 1e9)
    )
    assert torch.equal(small, large)
    assert float(large[2]) == float(large[3]) == pytest.approx(float(large.max()))
    plain = with_outlier(1e9, None, Stratified()).probabilities(everyone)
    assert float(plain[2]) > 0.8
    assert float(large[2]) < 0.5


def test_unseen_examples_stand_at_the_level_of_capped_scores() -> None:
    """At their root mean square, so never above the ceiling."""
    table = ScoreTable(9, cap=0.75)
    table.update(torch.arange(8), float64([1, 1, 1, 1, 1, 1, 1e6, 1e6]), 0)
    assert table.cap is not None
    assert (table.cap.ceiling, table.level) == (1.0, 1.0)
    assert table.relative(torch.tensor([8, 7])).tolist() == [1.0, 1.0]


def test_a_capped_table_goes_on_bit_for_bit() -> None:
    table, other = (ScoreTable(30, cap=0.75) for _ in range(2))
    rows = updates(30)
    for version, row in enumerate(rows[:6]):
        table.update(row[0], row[1], version, row[2])
    file = io.BytesIO()
    torch.save(table.state_dict(), file)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for version, row in enumerate(rows[6:], 6):
        for each in (table, other):
            each.update(row[0], row[1], version, row[2])
        assert torch.equal(table.draw(7).positions, other.draw(7).positions)
    assert torch.equal(table.state_dict()["relative"], other.state_dict()["relative"])


@pytest.mark.parametrize("cap", [None, 0.5])
def test_the_state_of_another_cap_changes_nothing(cap: float | None) -> None:
    table = ScoreTable(4, cap=cap)
    before = table.state_dict()
    with pytest.raises(UsageError, match=r"'cap': 0\.75.* does not fit one with"):
        table.load_state_dict(ScoreTable(4, cap=0.75).state_dict())
    assert torch.equal(table.state_dict()["relative"], before["relative"])


def test_scores_that_are_refused_leave_the_cap_as_it_was() -> None:
    table = ScoreTable(4, cap=0.5)
    table.update(torch.tensor([0, 1]), torch.tensor([2.0, 4.0]), 0)
    assert table.cap is not None
    with pytest.raises(UsageError, match="scores >= 0"):
        table.update(torch.tensor([0, 1]), torch.tensor([9.0, -1.0]), 1)
    assert table.update(torch.tensor([2]), torch.tensor([math.nan]), 1) == 1
    assert table.cap.ceiling == 2.0
    assert table.cap.state_dict()["recent"][0].tolist() == [2.0, 4.0]


def noisy(wrong: int = 12) -> TensorDataset:
    """Two classes far apart; the first labels are those of the other class."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % 2
    x = torch.stack([4.0 * (2 * truth - 1), torch.ones(60)], 1)
    y = torch.where(torch.arange(60) < wrong, 1 - truth, truth)
    return TensorDataset(x + torch.randn(60, 2, generator=generator), y)


def trained(**options: Any) -> gradsift.SiftedLoader:
    data = noisy()
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(data, batch_size=10, shuffle=True, generator=generator)
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    train = gradsift.sift(loader, model, CROSS_ENTROPY, **options)
    for _ in range(5):
        for batch in train:
            optimizer.zero_grad()
            batch.loss(model(batch.inputs)).backward()
            optimizer.step()
    train.settle()
    return train


def test_wrong_labels_are_drawn_less_with_a_cap() -> None:
    """One label in five is wrong, and the plain table draws them twice as often as that."""
    shares = []
    for cap in (None, 0.5):
        table = trained(recipe="table", cap=cap).table
        assert table is not None
        shares.append(float(table.probabilities(torch.arange(12)).sum()))
    plain, capped = shares
    assert plain > 0.3
    assert capped < 0.75 * plain


def test_auto_and_a_recipe_of_ones_own_take_a_cap() -> None:
    for options in (
        {"cap": 0.875},
        {"recipe": replace(recipes["table"], cap=0.875)},
        {"recipe": replace(recipes["table"], cap=0.5), "cap": 0.875},
    ):
        table = trained(**options).table
        assert table is not None
        assert table.cap is not None
        assert table.cap.quantile == 0.875
    assert trained(recipe="table").table.cap is None  # pyright: ignore[reportOptionalMemberAccess]


def test_with_a_cap_only_the_table_is_offered() -> None:
    for pools, expected in (
        (True, {"off", "table", "pool", "two-stage"}),
        (False, {"off", "table"}),
    ):
        evidence = Evidence(pools=pools)
        for _ in range(16):
            evidence.times.add("off", 1.0)
        evidence.scoring.add(0.001)
        evidence.keep(torch.rand(64), torch.ones(64))
        offers = evidence.offers("off", 16, Estimate(2.0, 0.1))
        assert {offer.source for offer in offers} == expected
    policy = trained(cap=0.5).policy
    assert isinstance(policy, Auto)
    assert {offer.source for offer in policy.deciding.offers(policy.batch_size)} <= {"off", "table"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe(cap=0.9),
        lambda: Settings(recipe="pool", cap=0.9),
        lambda: Settings(engine="inline", cap=0.9),
        lambda: trained(recipe="uniform", cap=0.9),
    ],
)
def test_a_cap_needs_a_table(make: Callable[[], Any]) -> None:
    with pytest.raises(UsageError, match=r"cap 0\.9 received with recipe .* no table of scores"):
        make()


def test_a_cap_needs_ids() -> None:
    batches = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(UsageError, match="has no ids"):
        gradsift.sift(batches, nn.Linear(2, 2), CROSS_ENTROPY, cap=0.9)


def test_settings_assemble_the_cap() -> None:
    assert Settings(cap=0.75).assembled().cap == 0.75
    assert Settings(recipe="table", cap=0.75).listed()["cap"] == 0.75
    assert Settings().assembled() == recipes["auto"]
