"""A split table has the law of the whole one: the same numbers give the same examples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import cells, float64
from gradsift.errors import UsageError
from gradsift.sampling import ScoreTable
from gradsift.sampling.distributions import AbstractDistribution, Mixed, Power, Proportional
from gradsift.sampling.shards import ShardedTable, TableShard

FLOORS: list[AbstractDistribution] = [
    Mixed(Proportional(), uniform=0.2),
    Mixed(Power(0.5), uniform=0.05),
    Mixed(Power(0.0), uniform=0.5),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("distribution", FLOORS, ids=repr)
@pytest.mark.parametrize("sizes", [[100], [1, 99], [30, 1, 1, 68], [25] * 4], ids=str)
def test_the_same_numbers_give_the_same_examples(
    distribution: AbstractDistribution, sizes: list[int]
) -> None:
    whole = ScoreTable(100, distribution=distribution, smoothing=0.3, seed=2)
    split = ShardedTable(sizes, distribution=distribution, smoothing=0.3, seed=2)
    everyone = torch.arange(100)
    for version in range(25):
        one, other = whole.draw(16), split.draw(16)
        assert torch.equal(one.positions, other.positions)
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-12, atol=0)
        scores = torch.randn(16, generator=seeded(version)).exp()
        scores[version % 16] = math.nan
        broken = [
            table.update(one.positions, scores, version, one.weights) for table in (whole, split)
        ]
        assert broken == [1, 1]
        assert whole.level == split.level
        assert whole.seen == split.seen
    p, q = whole.probabilities(everyone), split.probabilities(everyone)
    torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("sizes", [[2, 1, 4], [7], [1] * 7], ids=str)
def test_split_draws_are_unbiased(size: int, sizes: list[int]) -> None:
    """``E[Σ_j 1{i_j = i} w_j] = b/N``, by integration over every uniform number."""
    table = ShardedTable(sizes, distribution=Mixed(Proportional(), uniform=0.1))
    scores = float64([0.0, 1e-30, 2.0, 1e3, 0.5, 1.0])
    table.update(torch.arange(6), scores, 0)
    p = table.probabilities(torch.arange(7))
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    weighted = torch.zeros(7, dtype=torch.float64)
    for slot in range(size):
        for middle, length in cells((size * p.cumsum(0) - slot).tolist()):
            uniforms = np.full(size, 0.5)
            uniforms[slot] = middle
            ids, masses = table.locate(uniforms)
            weighted[ids[slot]] += length / masses[slot]
    torch.testing.assert_close(weighted, torch.full_like(p, size / 7), rtol=1e-10, atol=0)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    uniforms=st.lists(st.sampled_from([0.0, 0.3, 1 - 2**-53]), min_size=1, max_size=6),
    zeros=st.booleans(),
)
@settings(max_examples=60)
def test_end_points_and_shards_without_any_score_stay_inside(
    sizes: list[int], uniforms: list[float], zeros: bool
) -> None:
    table = ShardedTable(sizes)
    count = table.size if zeros else sizes[0]
    table.update(torch.arange(count), torch.zeros(count), 0)
    ids, masses = table.locate(np.array(uniforms))
    assert 0 <= ids.min() <= ids.max() < table.size
    p = table.probabilities(torch.from_numpy(ids))
    np.testing.assert_allclose(masses, table.size * p.numpy(), rtol=1e-12)
    if zeros:
        np.testing.assert_allclose(masses, 1.0, rtol=1e-12)


def test_owners_keep_what_is_theirs() -> None:
    table = ShardedTable([3, 2], smoothing=0.0)
    assert math.isnan(table.level)
    table.update(torch.tensor([4, 0, 4]), float64([1.0, 2.0, 3.0]), 5)
    level = math.sqrt(14 / 3)
    assert table.level == pytest.approx(level, rel=1e-15)
    assert [shard.seen for shard in table.shards] == [1, 1]
    totals = [shard.total for shard in table.shards]
    assert totals == pytest.approx([2 + 2 / level, 1 + 2 / level], rel=1e-6)
    table.update(torch.tensor([4]), float64([9.0]), 4)
    assert [shard.total for shard in table.shards] == totals
    assert table.nbytes == sum(shard.nbytes for shard in table.shards)


def test_refusals() -> None:
    table = ShardedTable([3, 2])
    for sizes in ([], [3, 0]):
        with pytest.raises(UsageError, match="expected at least one owner and one example each"):
            ShardedTable(sizes)
    with pytest.raises(UsageError, match="5 examples received id 5"):
        table.update(torch.tensor([5]), torch.ones(1), 0)
    with pytest.raises(UsageError, match="version -3"):
        table.update(torch.tensor([0]), torch.ones(1), -3)
    with pytest.raises(UsageError, match="cannot draw 6 of 5"):
        table.draw(6)
    with pytest.raises(UsageError, match="a score table cannot draw by Proportional"):
        TableShard(3, Proportional(), smoothing=0.5)
    assert table.seen == 0


@pytest.mark.parametrize("distribution", FLOORS, ids=repr)
def test_a_split_table_goes_on_where_it_was(distribution: AbstractDistribution) -> None:
    table, later = (ShardedTable([30, 1, 69], distribution=distribution) for _ in range(2))
    for version in range(5):
        table.update(table.draw(16).positions, torch.rand(16, generator=seeded(version)), version)
    saved = table.state_dict()
    expected = [table.draw(16) for _ in range(2)]
    table.update(torch.arange(100), torch.ones(100), 9)
    later.load_state_dict(saved)
    for draw in expected:
        again = later.draw(16)
        assert torch.equal(again.positions, draw.positions)
        assert torch.equal(again.weights, draw.weights)
    assert later.seen == int(sum((part["versions"] >= 0).sum() for part in saved["shards"]))


def test_a_state_of_another_split_is_refused_and_changes_nothing() -> None:
    table, other = ShardedTable([3, 4]), ShardedTable([4, 3])
    other.update(torch.arange(7), torch.arange(7.0), 1)
    before = table.probabilities(torch.arange(7))
    with pytest.raises(UsageError, match=r"\[4, 3\].*does not fit one with.*\[3, 4\]"):
        table.load_state_dict(other.state_dict())
    with pytest.raises(UsageError, match="None"):
        table.load_state_dict({})
    assert torch.equal(table.probabilities(torch.arange(7)), before)
