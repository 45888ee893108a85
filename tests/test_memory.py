"""A batch is priced by what the table held before it; then its scores are in force."""

import pytest
import torch
from torch import Tensor

from gradsift import recipes
from gradsift.records import ScoreUpdate
from gradsift.sifting.memory import PRICED, START, Memory

N = 64


def ids(first: int, count: int = 16) -> Tensor:
    return torch.arange(first, first + count)


def filled(*, adapts: bool) -> Memory:
    """Every example once, in order; the last eighth scores ten times as much as the rest."""
    memory = Memory(recipes["auto" if adapts else "table"], N, seed=0, adapts=adapts)
    for version, first in enumerate(range(0, N, 16)):
        assert not memory.complete
        memory.learn(ScoreUpdate(ids(first), truth(ids(first)), version), torch.ones(16))
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
        memory.learn(ScoreUpdate(draw.positions, truth(draw.positions), version + 4), draw.weights)
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
        memory.learn(ScoreUpdate(draw.positions, truth(draw.positions), version + 4), draw.weights)
    assert memory.table.distribution == recipes["table"].distribution


def test_prices_come_from_the_scores_before() -> None:
    """The fresh scores of a batch are as the table says: any other order of the two lines shows."""
    memory = filled(adapts=False)
    for version in range(PRICED - 1):
        memory.learn(ScoreUpdate(ids(16), truth(ids(16)), version + 4), torch.ones(16))
    update = ScoreUpdate(ids(0), torch.full((16,), 50.0), 9)
    before = memory.table.relative(update.index)
    means = [memory.table.mean_power(exponent) for exponent in (0.5, 0.75, 1.0)]
    memory.learn(update, torch.ones(16))
    twin = type(memory.prices)()
    twin.add(update.score, before, torch.ones(16), 16, means)
    for proposal in twin.proposals:
        assert memory.prices.ratio(proposal).value == pytest.approx(
            twin.ratio(proposal).value, rel=1e-12
        )
    assert not torch.equal(memory.table.relative(update.index), before)
