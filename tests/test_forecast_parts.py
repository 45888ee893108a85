"""What forecasts are made of: rows of what is known, a fit to the price, a duel; and twins."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsift.errors import UsageError
from gradsift.monitors.averages import RatioAverage
from gradsift.predictor.duel import ENOUGH, LEAD, PARTS, Duel
from gradsift.predictor.fit import Rows, fit, log_price
from gradsift.predictor.known import BEND, COLUMNS, FLOOR, MEMORY, Known
from gradsift.sampling.table import ScoreTable


def rows(seed: int, count: int = 40, columns: int = 3) -> Rows:
    """Weighted examples whose scores depend on what is known, with heavy tails."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, columns))
    weights = generator.uniform(0.2, 3.0, count)
    g = np.exp(x @ np.arange(columns) / 2 + generator.standard_normal(count))
    return Rows(x, weights * g**2, weights)


def slow_log_price(beta: list[float], table: Rows) -> float:
    top = bottom = 0.0
    for x, cost, weight in zip(table.x, table.costs, table.weights, strict=True):
        q = math.exp(math.fsum(a * b for a, b in zip(x, beta, strict=True)))
        top += float(cost) / q
        bottom += float(weight) * q
    return math.log(top * bottom)


@given(seed=st.integers(0, 50), beta=st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_the_log_price_and_its_derivatives(seed: int, beta: list[float]) -> None:
    """Against a loop, and its differences."""
    table, point, h = rows(seed), np.array(beta), 1e-5
    value, slope, hessian = log_price(point, table)
    assert value == pytest.approx(slow_log_price(beta, table), rel=1e-10, abs=1e-10)
    for k in range(3):
        step = h * np.eye(3)[k]
        ahead, behind = (log_price(point + sign * step, table) for sign in (1, -1))
        assert slope[k] == pytest.approx((ahead[0] - behind[0]) / (2 * h), abs=1e-6)
        differences = (ahead[1] - behind[1]) / (2 * h)
        assert hessian[k].tolist() == pytest.approx(differences.tolist(), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_the_cheapest_on_a_grid(seed: int) -> None:
    table, prior, ridge = rows(seed, columns=2), np.array([0.5, 0.0]), 0.01

    def penalised(beta: np.ndarray) -> float:
        return log_price(beta, table)[0] + ridge / 2 * float(np.square(beta - prior).sum())

    found = fit(table, np.zeros(2), prior, ridge)
    grid = [np.array(point) for point in itertools.product(np.linspace(-3, 3, 61), repeat=2)]
    assert penalised(found) <= min(map(penalised, grid)) + 1e-9
    nearby = [found + 1e-3 * np.array(step) for step in itertools.product((-1, 0, 1), repeat=2)]
    assert penalised(found) <= min(map(penalised, nearby)) + 1e-12


def test_where_the_family_holds_it_the_fit_is_the_root_mean_square() -> None:
    """Two groups, scores 1 or 3 in the one and 2 in the other: ``q² ∝ 5`` and ``4``."""
    x = np.array([[0.0], [0.0], [1.0], [1.0]])
    table = Rows(x, np.array([1.0, 9.0, 4.0, 4.0]), np.ones(4))
    (beta,) = fit(table, np.zeros(1), np.zeros(1), ridge=1e-12)
    assert math.exp(2 * beta) == pytest.approx(4 / 5, rel=1e-6)


def test_weights_of_the_draws_leave_the_fit_where_it_is() -> None:
    """Examples drawn three times as often with a third of the weight: the same sums."""
    table = rows(1)
    often = Rows(
        np.repeat(table.x, 3, axis=0),
        np.repeat(table.costs / 3, 3),
        np.repeat(table.weights / 3, 3),
    )
    one, other = (fit(part, np.zeros(3), np.zeros(3), 0.01) for part in (table, often))
    assert one.tolist() == pytest.approx(other.tolist(), rel=1e-9)


def test_without_any_cost_nothing_is_learnt_and_extremes_are_finite() -> None:
    start = np.array([0.3, 0.2, 0.1])
    assert fit(replace(rows(0), costs=np.zeros(40)), start, start, 0.1) is start
    table = rows(0)
    wild = Rows(table.x * 100, table.costs * 1e60, table.weights)
    assert np.isfinite(fit(wild, start, start, 0.01)).all()
    some = table.costs.copy()
    some[:20] = 0.0
    assert np.isfinite(fit(replace(table, costs=some), start, start, 0.01)).all()


def duel_of(gs: np.ndarray, challenger: np.ndarray, momentum: float = 0.9) -> Duel:
    duel = Duel(momentum)
    for g in gs:
        duel.add(g, np.ones(len(g)), np.ones(len(g)), challenger)
    return duel


def test_a_duel_prices_both_on_the_same_draws() -> None:
    """Against sums by hand, as ratios of running means."""
    generator = np.random.default_rng(0)
    duel, momentum = Duel(0.8), 0.8
    tops, bottom, mass = [0.0, 0.0], 0.0, 0.0
    for _ in range(9):
        g, w = generator.exponential(size=6), generator.uniform(0.3, 2, 6)
        masses = generator.uniform(0.2, 3, (2, 6))
        duel.add(g, w, *masses)
        for k in range(2):
            price = math.fsum(w[i] * g[i] ** 2 / masses[k][i] for i in range(6)) / 6
            tops[k] = momentum * tops[k] + (1 - momentum) * price
        uniform = math.fsum(w[i] * g[i] ** 2 for i in range(6)) / 6
        bottom = momentum * bottom + (1 - momentum) * uniform
        mass = momentum * mass + (1 - momentum)
    assert duel.holder.value == pytest.approx(bottom / tops[0], rel=1e-12)
    assert duel.challenger.value == pytest.approx(bottom / tops[1], rel=1e-12)
    assert duel.difference.value == pytest.approx((tops[1] - tops[0]) / bottom, rel=1e-10)
    assert mass < 1


def test_the_price_is_that_of_the_challengers_own_draws() -> None:
    """Exactly: drawn by the holder, averaged over its draws, ``E[w w' g²]`` is ``E_q[w'² g²]``."""
    g, holder = np.array([0.3, 2.0, 1.0]), np.array([0.5, 1.5, 1.0])
    challenger = np.array([0.4, 1.9, 0.7])
    chances, weights = holder / 3, 1 / holder
    priced = sum(
        chance * (w * g_i**2 / q)
        for chance, w, g_i, q in zip(chances, weights, g, challenger, strict=True)
    )
    own = sum(q / 3 * (g_i / q) ** 2 for g_i, q in zip(g, challenger, strict=True))
    assert priced == pytest.approx(own, rel=1e-12)
    duel = Duel(0.5)
    duel.add(g, 3 * chances * weights, np.ones(3), challenger)  # each as often as it is drawn
    uniform = float((g**2).mean())
    assert duel.challenger.value == pytest.approx(uniform / own, rel=1e-12)


def test_the_challenger_wins_when_it_is_certain_and_stays_while_it_is_cheaper() -> None:
    even, uneven = np.ones(4), np.array([0.1, 0.1, 0.1, 3.0])
    challenger = 4 * uneven / uneven.sum()
    early = duel_of(np.outer(np.linspace(1, 1.2, ENOUGH - 1), uneven), challenger)
    assert not early.wins
    assert early.difference.value < 0
    late = duel_of(np.outer(np.linspace(1, 1.2, ENOUGH), uneven), challenger)
    assert late.wins
    before = late.difference.value
    late.add(even, even, even, challenger)
    assert before < late.difference.value < 0
    assert late.wins
    for _ in range(20):
        late.add(even, even, even, challenger)
    assert late.difference.value > 0
    assert not late.wins
    assert "left aside" in str(late)


@pytest.mark.parametrize(("share", "wins"), [(0.9, False), (1.1, True)])
def test_a_lead_must_be_worth_it(share: float, wins: bool) -> None:
    """Known for certain, as every batch is the same: just below the lead, and just above."""
    g = np.outer(np.ones(ENOUGH + 2), np.ones(4))
    assert duel_of(g, np.full(4, 1 / (1 - share * LEAD))).wins == wins


def test_a_challenger_that_is_no_better_never_wins() -> None:
    generator = np.random.default_rng(1)
    gs = generator.exponential(size=(200, 16))
    challenger = generator.uniform(0.5, 1.5, 16)
    duel = Duel(0.9)
    for g in gs:
        duel.add(g, np.ones(16), np.ones(16), challenger / challenger.mean())
        assert not duel.wins
    same = duel_of(gs[:20], np.ones(16))
    assert same.difference.value == 0.0
    assert not same.wins


def test_the_calibration_error_is_that_of_the_groups() -> None:
    """Forecasts off by a common factor are exact; one group off by two is seen."""
    forecast = np.repeat(np.arange(1.0, PARTS + 1), 5)
    ones = np.ones(len(forecast))
    duel = Duel(0.9)
    assert math.isnan(duel.calibration_error)
    duel.calibrate(3 * forecast, ones, forecast)
    assert duel.calibration_error == pytest.approx(0.0, abs=1e-12)
    off = np.where(forecast == 4, 2 * forecast, forecast)
    other = Duel(0.9)
    other.calibrate(off, ones, forecast)
    tops = [float((off[forecast == k] ** 2).sum()) for k in range(1, PARTS + 1)]
    bottoms = [float((forecast[forecast == k] ** 2).sum()) for k in range(1, PARTS + 1)]
    common = sum(tops) / sum(bottoms)
    logs = [math.log(a / b / common) / 2 for a, b in zip(tops, bottoms, strict=True)]
    expected = math.expm1(math.sqrt(sum(x * x for x in logs) / PARTS))
    assert other.calibration_error == pytest.approx(expected, rel=1e-10)
    other.calibrate(np.ones(3), np.ones(3), np.ones(3))  # too few to group: nothing changes
    assert other.calibration_error == pytest.approx(expected, rel=1e-10)
    assert set(other.listed()) >= {"ratio_forecast", "calibration_error", "in_use"}


def test_a_duel_goes_on_from_its_state() -> None:
    gs = np.random.default_rng(2).exponential(size=(20, 16))
    challenger = np.linspace(0.5, 1.5, 16)
    whole, first, second = (Duel(0.9) for _ in range(3))
    for step, g in enumerate(gs):
        for duel in (whole, first if step < 10 else second):
            duel.add(g, np.ones(16), np.ones(16), challenger)
            duel.calibrate(g, np.ones(16), challenger)
        if step == 9:
            second.load_state_dict(first.state_dict())
    assert second.listed() == whole.listed()
    assert isinstance(RatioAverage(3, 0.9).batches, int)


class SlowKnown:
    """One example at a time, with lists of what came."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.scores: dict[int, list[float]] = {}
        self.labels: dict[int, int] = {}
        self.sums: dict[int, tuple[float, float]] = {}

    def add(self, ids: list[int], scores: list[float], labels: list[int], level: float) -> None:
        fresh: dict[int, tuple[float, float]] = {}
        for i, score, label in zip(ids, scores, labels, strict=True):
            self.scores.setdefault(i, []).append(math.log(max(score / level, FLOOR)))
            self.labels[i] = label
            squares, mass = fresh.get(label, (0.0, 0.0))
            fresh[label] = squares + (score / level) ** 2, mass + 1
        for label in {*self.sums, *fresh}:
            old, new = self.sums.get(label, (0.0, 0.0)), fresh.get(label, (0.0, 0.0))
            self.sums[label] = MEMORY * old[0] + new[0], MEMORY * old[1] + new[1]

    def row(self, i: int, smoothed: float, age: int) -> list[float]:
        squares, mass = self.sums.get(self.labels.get(i, -1), (0.0, 0.0))
        of_class = math.log((squares + 1) / (mass + 1)) / 2
        if i not in self.scores:
            return [0.0] * 7 + [of_class]
        last = self.scores[i][-1]
        before = self.scores[i][-2] if len(self.scores[i]) > 1 else last
        a = math.log1p(age / self.steps)
        smooth = math.log(max(smoothed, FLOOR))
        low = min(smooth - BEND, 0.0)
        return [1.0, last, smooth, low, last - before, a, last * a, of_class]


def test_rows_of_what_is_known() -> None:
    generator = np.random.default_rng(0)
    known, twin, table = Known(8, steps=5), SlowKnown(5), ScoreTable(8)
    versions = {}
    for version in range(0, 30, 3):
        ids = generator.permutation(6)[:3]  # 6 and 7 are never seen
        scores = generator.exponential(size=3) * (0.0 if version == 6 else 1.0)
        table.update(torch.from_numpy(ids), torch.from_numpy(scores), version)
        known.add(ids, scores, np.ones(3), ids % 3, table.level)
        twin.add(ids.tolist(), scores.tolist(), (ids % 3).tolist(), table.level)
        versions.update(dict.fromkeys(ids.tolist(), version))
        everyone = torch.arange(8)
        found = known.rows(np.arange(8), table, version=31)
        smoothed = table.relative(everyone).tolist()
        assert known.columns == len(COLUMNS) == found.shape[1]
        for i in range(8):
            expected = twin.row(i, smoothed[i], 31 - versions.get(i, 0))
            assert found[i].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_start_is_the_tables_own_proposal() -> None:
    known, table = Known(4, steps=3), ScoreTable(4)
    ids, scores = np.array([0, 2]), np.array([5.0, 0.4])
    table.update(torch.from_numpy(ids), torch.from_numpy(scores), 1)
    known.add(ids, scores, np.ones(2), None, table.level)
    forecast = np.exp(known.rows(np.arange(4), table, 2) @ known.start)
    assert forecast.tolist() == pytest.approx(table.relative(torch.arange(4)).tolist(), rel=1e-6)


def test_frozen_features_are_standardised_and_belong_to_their_data() -> None:
    features = torch.tensor([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]])
    known = Known(3, steps=1, features=features)
    found = known.rows(np.arange(3), ScoreTable(3), version=0)[:, len(COLUMNS) :]
    spread = math.sqrt(8 / 3)
    assert found[:, 0].tolist() == pytest.approx([-2 / spread, 0.0, 2 / spread], rel=1e-6)
    assert found[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert len(known.start) == known.columns == len(COLUMNS) + 2
    with pytest.raises(UsageError, match="features of 3 examples, expected 4"):
        Known(4, steps=1, features=features)
