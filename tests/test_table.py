"""The score table against a slow twin: scores, levels, exact laws, state."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import cells, float64
from gradsift.errors import UsageError
from gradsift.sampling import ScoreTable
from gradsift.sampling.distributions import AbstractDistribution, Mixed, Power, Proportional
from gradsift.sampling.draws import AbstractDraw, Stratified, Systematic
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.order import ScrambledOrder
from gradsift.sampling.positions import stratified_positions, systematic_positions
from gradsift.sampling.relative import Level, fresh_scores

NOT_FINITE = [math.nan, math.inf, -math.inf, 1e39]


class SlowTable:
    """One example at a time, in Python numbers."""

    def __init__(self, size: int, smoothing: float) -> None:
        self.relative = [1.0] * size
        self.versions = [-1] * size
        self.smoothing = smoothing
        self.squares: list[float] = []

    @property
    def level(self) -> float:
        if not self.squares:
            return math.nan
        factors = [0.98**age for age in reversed(range(len(self.squares)))]
        total = math.fsum(f * s for f, s in zip(factors, self.squares, strict=True))
        return math.sqrt(total / math.fsum(factors))

    def update(self, rows: list[tuple[int, float, float]], version: int) -> None:
        good = [row for row in rows if math.isfinite(row[1]) and row[1] < 3.5e38]
        if not good:
            return
        self.squares.append(math.fsum(w * g * g for _, g, w in good) / len(good))
        for place in {row[0] for row in good}:
            if self.versions[place] > version:
                continue
            copies = [g for other, g, _ in good if other == place]
            mean = math.fsum(copies) / len(copies)
            fresh = mean / self.level if self.level else 0.0
            if self.versions[place] >= 0:
                fresh = self.smoothing * self.relative[place] + (1 - self.smoothing) * fresh
            self.relative[place] = float(np.float32(fresh))
            self.versions[place] = version


def everyone(table: ScoreTable) -> torch.Tensor:
    return torch.arange(table.size)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(size: int = 40, **options: Any) -> ScoreTable:
    """A table that has seen most examples, some of them twice."""
    table = ScoreTable(size, **options)
    generator = seeded(7)
    for version in range(6):
        ids = torch.randint(size, (size // 3,), generator=generator)
        scores = torch.randn(len(ids), generator=generator).mul(1.5).exp()
        table.update(ids, scores, version)
    return table


ROWS = st.lists(
    st.tuples(
        st.integers(0, 8),
        st.one_of(st.floats(0, 50), st.sampled_from([0.0, 1e-30, 1e30, *NOT_FINITE])),
        st.floats(0.1, 5),
    ),
    max_size=8,
)


@given(
    updates=st.lists(st.tuples(ROWS, st.integers(0, 4), st.booleans()), max_size=6),
    smoothing=st.sampled_from([0.0, 0.5, 0.9]),
)
@settings(max_examples=60)
def test_any_updates_agree_with_the_slow_table(
    updates: list[tuple[list[tuple[int, float, float]], int, bool]], smoothing: float
) -> None:
    table, slow = ScoreTable(9, smoothing=smoothing), SlowTable(9, smoothing)
    for rows, version, weighted in updates:
        rows = rows if weighted else [(i, g, 1.0) for i, g, _ in rows]
        ids = torch.tensor([row[0] for row in rows], dtype=torch.int64)
        weights = float64(row[2] for row in rows) if weighted else None
        broken = table.update(ids, float64(row[1] for row in rows), version, weights)
        slow.update(rows, version)
        assert broken == sum(not math.isfinite(g) or g > 3.5e38 for _, g, _ in rows)
    assert table.level == pytest.approx(slow.level, rel=1e-12, nan_ok=True)
    relative = table.relative(everyone(table))
    torch.testing.assert_close(relative, float64(slow.relative), rtol=3e-7, atol=1e-44)
    ages = [-1 if version < 0 else max(0, 3 - version) for version in slow.versions]
    assert table.ages(everyone(table), 3).tolist() == ages
    assert table.seen == sum(version >= 0 for version in slow.versions)


@pytest.mark.parametrize("order", [None, torch.tensor([3, 1, 4, 0, 5, 2, 6])])
@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_a_draw_is_the_plain_draw_by_the_probabilities_in_force(
    order: torch.Tensor | None, size: int
) -> None:
    table = ScoreTable(7, order=order)
    walk = everyone(table) if order is None else order
    for version in range(30):
        drawn = table.draw(size, seeded(version))
        p = table.probabilities(everyone(table))
        uniforms = torch.rand(size, dtype=torch.float64, generator=seeded(version))
        expected = walk[stratified_positions(p[walk], uniforms)]
        assert torch.equal(drawn.positions, expected)
        torch.testing.assert_close(drawn.weights, 1 / (7 * p[expected]), rtol=1e-12, atol=0)
        assert drawn.size == size
        assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
        scores = torch.rand(size, generator=seeded(100 + version))
        table.update(drawn.positions, scores, version, drawn.weights)


@pytest.mark.parametrize("own", [None, torch.tensor([3, 1, 4, 0, 5, 2, 6])])
@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_a_systematic_draw_is_the_plain_walk_in_the_order_of_the_table(
    own: torch.Tensor | None, size: int
) -> None:
    table = ScoreTable(7, order=own, draw=Systematic(), seed=3)
    order = torch.from_numpy(ScrambledOrder(7, 3).ids(np.arange(7))) if own is None else own
    table.update(everyone(table), float64([0.1, 9.0, 0.0, 1.0, 2.0, 3.0, 1.0]), 0)
    p = table.probabilities(everyone(table))
    inclusion = capped_inclusion(p, size)
    for seed in range(30):
        drawn = table.draw(size, seeded(seed))
        offset = float(torch.rand(1, dtype=torch.float64, generator=seeded(seed)))
        expected = order[systematic_positions(inclusion[order], offset)]
        assert torch.equal(drawn.positions, expected)
        pi = inclusion[drawn.positions]
        torch.testing.assert_close(drawn.weights, size / (7 * pi), rtol=1e-12, atol=0)


def test_an_update_is_in_force_at_the_next_draw() -> None:
    table = ScoreTable(1000)
    table.update(torch.arange(1000), torch.full((1000,), 1e-3), 0)
    weights = float64([1e-40])  # so that the level stays
    table.update(torch.tensor([617]), torch.tensor([1e9]), 1, weights)
    drawn = table.draw(10, seeded(0))
    assert 7 <= drawn.positions.tolist().count(617) <= 9
    assert float(drawn.weights[drawn.positions == 617][0]) == pytest.approx(1 / 800, rel=1e-3)
    table.update(torch.tensor([617]), torch.tensor([0.0]), 2, weights)
    table.propose(Mixed(Proportional(), uniform=1.0))
    untouched = ScoreTable(1000).draw(10, seeded(0))
    assert torch.equal(table.draw(10, seeded(0)).positions, untouched.positions)


def test_the_level_is_that_of_all_examples_exactly() -> None:
    """``E[mean(w g²)]`` over one draw is ``mean(g²)``, by integration over the uniform number."""
    table = ScoreTable(6)
    table.update(everyone(table), float64([0.0, 1.0, 2.0, 5.0, 0.3, 1.0]), 0)
    fresh = float64([3.0, 1.0, 0.0, 2.0, 7.0, 0.5])
    p = table.probabilities(everyone(table))
    expectation = 0.0
    for middle, length in cells(p.cumsum(0).tolist()):
        place = stratified_positions(p, float64([middle]))
        kept = fresh_scores(place, fresh[place], 1 / (6 * p[place]), 6)
        expectation += length * kept.mean_square
    assert expectation == pytest.approx(float(fresh.square().mean()), rel=1e-12)


def test_the_level_is_a_root_mean_square_that_follows() -> None:
    assert Level().after(4.0).value == 2.0
    assert Level().after(4.0).after(4.0).value == pytest.approx(2.0, rel=1e-15)
    level = Level()
    for _ in range(400):
        level = level.after(1.0)
    for _ in range(50):
        level = level.after(9.0)
    assert level.value == pytest.approx(math.sqrt(9 - 8 * 0.98**50), rel=1e-3)
    assert math.isnan(Level().value)


def test_unseen_examples_stand_at_the_root_mean_square() -> None:
    table = ScoreTable(4)
    table.update(torch.tensor([0, 1]), float64([3.0, 4.0]), 0)
    assert table.level == pytest.approx(math.sqrt(12.5), rel=1e-15)
    assert table.relative(torch.tensor([2])).item() == 1.0
    table.update(torch.tensor([3]), float64([table.level]), 0)
    p = table.probabilities(everyone(table))
    torch.testing.assert_close(p[2], p[3], rtol=1e-7, atol=0)
    assert table.seen == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_scores_of_any_type_with_a_graph(dtype: torch.dtype) -> None:
    table = ScoreTable(3)
    scores = torch.ones(2, dtype=dtype, requires_grad=True) * 2
    assert table.update(torch.tensor([0, 2]), scores, 0) == 0
    assert table.relative(everyone(table)).tolist() == [1.0, 1.0, 1.0]
    assert table.level == 2.0


@pytest.mark.parametrize("draw", [Stratified(), Systematic()], ids=repr)
def test_all_zero_scores_mean_uniform(draw: AbstractDraw) -> None:
    table = ScoreTable(10, draw=draw)
    table.update(everyone(table), torch.zeros(10), 0)
    assert table.level == 0.0
    torch.testing.assert_close(table.probabilities(everyone(table)), float64([0.1] * 10))
    drawn = table.draw(5)
    assert drawn.weights.tolist() == [1.0] * 5


@pytest.mark.parametrize("draw", [Stratified(), Systematic()], ids=repr)
@pytest.mark.parametrize("uniform", [0.05, 0.5])
def test_weights_are_bounded_by_one_over_the_share(draw: AbstractDraw, uniform: float) -> None:
    table = filled(draw=draw, distribution=Mixed(Power(2.0), uniform=uniform))
    for seed in range(20):
        drawn = table.draw(12, seeded(seed))
        assert float(drawn.weights.max()) <= 1 / uniform + 1e-12
        if isinstance(draw, Systematic):
            assert len(set(drawn.positions.tolist())) == 12


def test_a_table_of_one() -> None:
    for draw in (Stratified(), Systematic()):
        table = ScoreTable(1, draw=draw)
        table.update(torch.tensor([0]), torch.tensor([5.0]), 0)
        drawn = table.draw(1)
        assert (drawn.positions.tolist(), drawn.weights.tolist()) == ([0], [1.0])


def test_another_proposal_is_in_force_from_the_next_draw_on() -> None:
    table = filled(distribution=Mixed(Proportional(), uniform=0.2))
    for distribution in (
        Mixed(Proportional(), uniform=0.5),
        Mixed(Power(0.5), uniform=0.1),
        Mixed(Power(0.0), uniform=0.3),
        Mixed(Power(0.6), uniform=0.1),
    ):
        table.propose(distribution)
        assert table.distribution == distribution
        expected = distribution.probabilities(table.relative(everyone(table)))
        p = table.probabilities(everyone(table))
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=0)
    with pytest.raises(UsageError, match="a score table cannot draw by Proportional"):
        table.propose(Proportional())
    assert table.distribution == Mixed(Power(0.6), uniform=0.1)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.7])
def test_mean_power_agrees_with_a_loop(exponent: float) -> None:
    table = filled()
    values = table.relative(everyone(table)).tolist()
    expected = math.fsum(value**exponent for value in values) / 40
    assert table.mean_power(exponent) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"draw": Systematic(), "seed": 5},
        {"order": torch.randperm(40, generator=seeded(1)), "smoothing": 0.1},
    ],
)
def test_a_table_goes_on_bit_for_bit(options: dict[str, Any]) -> None:
    table = filled(**options)
    table.propose(Mixed(Power(0.75), uniform=0.1))
    file = io.BytesIO()
    torch.save(table.state_dict(), file)
    table.draw(5)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other = ScoreTable(40, **{**options, "order": None, "seed": 9})
    other.load_state_dict(state)
    other.draw(5)
    for version in range(6, 12):
        one, two = table.draw(9), other.draw(9)
        assert torch.equal(one.positions, two.positions)
        assert torch.equal(one.weights, two.weights)
        for each in (table, other):
            each.update(one.positions, one.positions.double() + 1, version, one.weights)
    assert (table.level, table.seen) == (other.level, other.seen)
    assert table.distribution == other.distribution
    assert other.state_dict()["seed"] == table.state_dict()["seed"]


def test_a_state_is_a_copy() -> None:
    table = filled()
    state = table.state_dict()
    before = state["relative"].clone()
    table.update(everyone(table), torch.full((40,), 9.0), 50)
    assert torch.equal(state["relative"], before)


def test_nothing_arrives() -> None:
    table = filled()
    before = table.state_dict()
    empty = torch.empty(0, dtype=torch.int64)
    assert table.update(empty, torch.empty(0), 9) == 0
    assert table.update(torch.tensor([1, 2]), torch.tensor([math.nan, math.inf]), 9) == 2
    after = table.state_dict()
    assert before["level"] == after["level"]
    assert torch.equal(before["relative"], after["relative"])
    assert torch.equal(before["versions"], after["versions"])
    assert table.relative(empty).shape == (0,)


def test_only_its_own_generator_is_used() -> None:
    before = torch.get_rng_state()
    first = [ScoreTable(50, seed=4).draw(9).positions for _ in range(2)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], ScoreTable(50, seed=5).draw(9).positions)
    assert torch.equal(torch.get_rng_state(), before)


def test_memory() -> None:
    assert ScoreTable(300_000).nbytes <= 9 * 300_000
    assert ScoreTable(300_000, draw=Systematic()).nbytes <= 9 * 300_000
    assert ScoreTable(300_000, order=torch.arange(300_000)).nbytes <= 17 * 300_000


def test_ids_beyond_two_to_the_24() -> None:
    size = 2**24 + 100
    floored = Mixed(Proportional(), uniform=1e-3)
    table = ScoreTable(size, distribution=floored, smoothing=0.0)
    ids = torch.arange(2**24 + 1, size, 3)
    table.update(ids[:1], torch.ones(1), 0)
    table.update(ids, torch.full(ids.shape, 1e15), 1, torch.full(ids.shape, 1e-60).double())
    drawn = table.draw(len(ids), seeded(0))
    assert set(drawn.positions.tolist()) <= set(ids.tolist())
    assert len(set(drawn.positions.tolist())) >= 30
    expected = torch.full(drawn.weights.shape, len(ids) / (0.999 * size), dtype=torch.float64)
    torch.testing.assert_close(drawn.weights, expected, rtol=1e-4, atol=0)
    assert table.ages(ids, 3).tolist() == [2] * len(ids)


DISTRIBUTIONS: list[AbstractDistribution] = [
    Mixed(Proportional(), uniform=0.2),
    Mixed(Power(0.5), uniform=0.05),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("draw", [Stratified(), Systematic()], ids=repr)
def test_copies_are_bounded(distribution: AbstractDistribution, draw: AbstractDraw) -> None:
    table = filled(draw=draw, distribution=distribution)
    p = table.probabilities(everyone(table))
    for seed in range(30):
        copies = torch.bincount(table.draw(15, seeded(seed)).positions, minlength=40)
        limit = 1 if isinstance(draw, Systematic) else (15 * p).floor() + 2
        assert bool((copies <= limit).all())


def test_another_order_changes_the_walk_and_nothing_else() -> None:
    """Scores, versions and probabilities stay; slots of the line belong to other neighbours."""
    table = ScoreTable(6, draw=Stratified(), seed=1)
    table.update(torch.arange(5), torch.tensor([3.0, 0.5, 1.0, 9.0, 2.0]), 4)
    everyone = torch.arange(6)
    kept = [table.relative(everyone), table.probabilities(everyone), table.ages(everyone, 9)]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for arranged in (order, order.flip(0)):
        table.arrange(arranged)
        now = [table.relative(everyone), table.probabilities(everyone), table.ages(everyone, 9)]
        for before, after in zip(kept, now, strict=True):
            torch.testing.assert_close(after, before, rtol=1e-12, atol=0)
        places = torch.empty_like(arranged).scatter_(0, arranged, everyone)
        walked = places[table.draw(6).positions]
        assert (walked.diff() >= 0).all()
    table.update(torch.tensor([5]), torch.tensor([100.0]), 5)
    assert table.ages(everyone, 9).tolist() == [5, 5, 5, 5, 5, 4]
    copy = ScoreTable(6, draw=Stratified())
    copy.load_state_dict(table.state_dict())
    assert copy.draw(4).positions.tolist() == table.draw(4).positions.tolist()


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3]])
def test_an_order_that_is_none_changes_nothing(order: list[int]) -> None:
    table = ScoreTable(3, draw=Stratified())
    table.update(torch.arange(3), torch.tensor([1.0, 2.0, 3.0]), 0)
    before = table.probabilities(torch.arange(3))
    with pytest.raises(UsageError, match="permutation"):
        table.arrange(torch.tensor(order))
    assert torch.equal(table.probabilities(torch.arange(3)), before)
