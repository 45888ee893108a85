"""A batch is priced by what the table held before it; then its scores are in force."""

import pytest
import torch
from torch import Tensor

from gradsift import recipes
from gradsift.records import ScoreUpdate
from gradsift.sifting.memory import PRICED, START, TOGETHER, Memory

N = 64


def ids(first: int, count: int = 16) -> Tensor:
    return torch.arange(first, first + count)


def filled(*, adapts: bool) -> Memory:
    """Every example once, in order; the last eighth scores ten times as much as the rest."""
    memory = Memory(recipes["auto" if adapts else "table"], N, seed=0, adapts=adapts)
    for version, first in enumerate(range(0, N, 16)):
        assert not memory.complete
        update = ScoreUpdate(ids(first), truth(ids(first)), version)
        memory.learn(update, torch.ones(16), drawn=True)
        memory.passed(16)
    return memory


def truth(index: Tensor) -> Tensor:
    return torch.where(index < 56, 1.0, 10.0).double()


def test_the_first_pass_fills_and_prices_nothing() -> None:
    memory = filled(adapts=True)
    assert memory.complete
    assert memory.prices.batches == 0
    assert memory.price is None
    assert memory.table.seen == N


def test_a_proposal_adapts_one_step_at_a_time_towards_the_cheapest() -> None:
    memory = filled(adapts=True)
    generator = torch.Generator().manual_seed(0)
    seen = [memory.proposal]
    for version in range(200):
        draw = memory.draw(16, generator)
        update = ScoreUpdate(draw.positions, truth(draw.positions), version + 4)
        memory.learn(update, draw.weights, drawn=True)
        if memory.proposal != seen[-1]:
            seen.append(memory.proposal)
    assert seen[0] == START
    assert [proposal.uniform for proposal in seen] == [0.5, 0.3, 0.2]
    assert memory.table.distribution.uniform == seen[-1].uniform
    assert memory.prices.drawn.value > 2


def test_a_fixed_mixture_stays() -> None:
    memory = filled(adapts=False)
    for version in range(20):
        draw = memory.draw(16, torch.Generator().manual_seed(version))
        update = ScoreUpdate(draw.positions, truth(draw.positions), version + 4)
        memory.learn(update, draw.weights, drawn=True)
    assert memory.table.distribution == recipes["table"].distribution


def test_prices_come_from_the_scores_before() -> None:
    """The fresh scores of a batch are as the table says: any other order of the two lines shows."""
    memory = filled(adapts=False)
    for version in range(PRICED - 1):
        update = ScoreUpdate(ids(16), truth(ids(16)), version + 4)
        memory.learn(update, torch.ones(16), drawn=True)
    update = ScoreUpdate(ids(0), torch.full((16,), 50.0), 9)
    before = memory.table.relative(update.index)
    means = [memory.table.mean_power(exponent) for exponent in (0.5, 0.75, 1.0)]
    memory.learn(update, torch.ones(16), drawn=True)
    twin = type(memory.prices)()
    twin.add(update.score, before, torch.ones(16), 16, means)
    for proposal in twin.proposals:
        assert memory.prices.ratio(proposal).value == pytest.approx(
            twin.ratio(proposal).value, rel=1e-12
        )
    assert not torch.equal(memory.table.relative(update.index), before)


def test_scores_of_the_users_own_order_are_taken_in_together_and_before_a_draw() -> None:
    memory = Memory(recipes["table"], N, seed=0, adapts=False)
    for version in range(TOGETHER - 1):
        update = ScoreUpdate(ids(version * 4, 4), truth(ids(version * 4, 4)), version)
        memory.learn(update, torch.ones(4), drawn=False)
    assert memory.table.seen == 0
    memory.learn(ScoreUpdate(ids(60, 4), truth(ids(60, 4)), 7), torch.ones(4), drawn=False)
    assert memory.table.seen == TOGETHER * 4
    assert set(memory.table.ages(ids(60, 4), 10).tolist()) == {10}
    memory.learn(ScoreUpdate(ids(32, 4), truth(ids(32, 4)), 8), torch.ones(4), drawn=False)
    memory.draw(4, torch.Generator())
    assert memory.table.seen == (TOGETHER + 1) * 4


def test_together_is_priced_as_one_batch() -> None:
    memory, twin = filled(adapts=False), filled(adapts=False)
    means = [twin.table.mean_power(exponent) for exponent in (0.5, 0.75, 1.0)]
    for _ in range(2):
        scores = torch.arange(1.0, 65.0)
        for place in range(TOGETHER):
            part = ids(place * 8, 8)
            memory.learn(ScoreUpdate(part, scores[part], 9), torch.ones(8), drawn=False)
        stale = twin.table.relative(torch.arange(N))
        twin.prices.add(scores, stale, torch.ones(N), N, means)
        twin.table.update(torch.arange(N), scores, 9, torch.ones(N))
        means = [twin.table.mean_power(exponent) for exponent in (0.5, 0.75, 1.0)]
    for proposal in twin.prices.proposals:
        expected = twin.prices.ratio(proposal).value
        assert memory.prices.ratio(proposal).value == pytest.approx(expected, rel=1e-12)
