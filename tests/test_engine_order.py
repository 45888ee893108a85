"""Work goes where it pays: the adaptive order against round-robin, by the variance of the draws.

Scores wander as planted, so both the price of every proposal and the best one are known exactly at
every step. The engine is the inline one: all of it repeats to the bit.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from engines import CROSS_ENTROPY
from gradsift import engines, recipes
from gradsift.engine.interface import Block, Scored, blocks_of
from gradsift.sifting.proposals import FilteredProposal, NeutralProposal
from gradsift.sifting.searched import Searched

BLOCKS, SIZE, STEPS, WARM = 16, 12, 400, 100
MEMORY = 0.98
"""Of the wandering logarithms of scores, per step."""


class Wandering(nn.Module):
    """Its parameters are the logarithms of all scores."""

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.logs = nn.Parameter(base.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def planted(network: Any, loss_fn: object, inputs: Tensor, targets: Tensor) -> Tensor:
    """The score of example i is what the model says."""
    return network.logs.detach()[inputs[:, 0].long()].exp()


def study(order: str, noise: Tensor, spread: float = 0.7) -> tuple[float, Counter[int]]:
    """Mean of ``E[g²/(Np)]/E[g]² − 1`` over steps, and how often each block was measured.

    Args:
        order: of the engine.
        noise: by how much the score of each example wanders in a step.
        spread: of the scores at their mean.
    """
    count = len(noise)
    generator = torch.Generator().manual_seed(3)
    base = spread * torch.randn(count, generator=generator)
    network = Wandering(base)
    data = TensorDataset(torch.arange(count).float().unsqueeze(1), torch.zeros(count).long())
    search = recipes["issgd"].search
    assert search is not None
    asked = replace(recipes["issgd"], score=planted, search=replace(search, constant=0.05, every=1))
    train = gradsift.sift(
        DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(1)),
        network,
        CROSS_ENTROPY,
        recipe=asked,
        engine=engines.inline(block=count // BLOCKS, order=order),
    )
    assert isinstance(train.policy, Searched)
    visits: Counter[int] = Counter()
    came = train.policy.sweep.came

    def counted(block: Block, *rest: Any) -> None:
        visits[block.number] += 1
        came(block, *rest)

    train.policy.sweep.came = counted  # pyright: ignore[reportAttributeAccessIssue]
    prices, ids = [], torch.arange(count)
    while train.steps < STEPS:
        for _ in train:
            step = noise * torch.randn(count, generator=generator)
            with torch.no_grad():
                network.logs.copy_(base + MEMORY * (network.logs - base) + step)
            train.settle()
            assert train.table is not None
            g, p = network.logs.detach().double().exp(), train.table.probabilities(ids)
            if train.steps > WARM:
                prices.append(float((g.square() / p).mean() / count / g.mean() ** 2 - 1))
    return float(np.mean(prices)), visits


def blocks_that_wander(fast: int, quickly: float, slowly: float) -> Tensor:
    rates = torch.full((BLOCKS, SIZE), slowly)
    rates[:fast] = quickly
    return rates.flatten()


@pytest.mark.slow
def test_blocks_that_wander_are_visited_more_often_and_draws_are_better() -> None:
    noise = blocks_that_wander(2, quickly=0.35, slowly=0.02)
    plain, even = study("round-robin", noise)
    adaptive, visits = study("adaptive", noise)
    assert max(even.values()) - min(even.values()) <= 1
    fast = (visits[0] + visits[1]) / 2
    slow = np.mean([visits[k] for k in range(2, BLOCKS)])
    assert 4 < fast / slow < 17
    assert min(visits.values()) > 0.25 * even[0] / 4
    assert adaptive < 0.75 * plain


@pytest.mark.slow
def test_blocks_that_are_drawn_often_are_visited_more_often() -> None:
    """All wander alike; those of larger scores cost more."""
    noise = blocks_that_wander(0, 0.0, 0.15)
    generator = torch.Generator().manual_seed(3)
    base = 0.7 * torch.randn(len(noise), generator=generator)
    _, visits = study("adaptive", noise, spread=0.7)
    means = base.exp().reshape(BLOCKS, SIZE).mean(1)
    counts = torch.tensor([float(visits[k]) for k in range(BLOCKS)])
    heavy, light = means.argsort(descending=True)[:5], means.argsort()[:5]
    assert float(counts[heavy].mean()) > 1.1 * float(counts[light].mean())


@pytest.mark.slow
@pytest.mark.parametrize("quickly", [0.05, 0.3])
def test_where_all_blocks_are_alike_it_costs_little(quickly: float) -> None:
    """What it costs is why round-robin is the default: rates follow costs that are known badly."""
    noise = blocks_that_wander(0, 0.0, quickly)
    plain, _ = study("round-robin", noise, spread=0.3)
    adaptive, _ = study("adaptive", noise, spread=0.3)
    assert adaptive < 1.25 * plain


def test_what_a_stale_block_costs_is_the_formula() -> None:
    """``mean(δ²/m)`` by hand, m the mass N·p that each example was drawn by."""
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0])
    proposal = FilteredProposal(4, constant=1.0)
    (first,) = proposal.take([Scored(Block(0, 0, 4), scores, 1, 0.1)])
    (second,) = proposal.take([Scored(Block(0, 0, 4), scores + 2, 2, 0.1)])
    assert first is None
    assert second == pytest.approx(sum(4 / (s + 1) for s in (1, 2, 3, 6)) / 4)


def test_the_cost_is_what_old_scores_add_to_the_second_moment() -> None:
    """``E[g²/(Np)] − E[g]²`` by hand, for scores whose mean has stayed."""
    generator = torch.Generator().manual_seed(0)
    stale = torch.rand(400, generator=generator).double() + 0.5
    for size in (0.02, 0.3):
        fresh = stale * (1 + size * torch.randn(400, generator=generator).double())
        fresh *= stale.mean() / fresh.mean()
        mass = stale / stale.mean()
        excess = float((fresh.square() / mass).mean() - fresh.mean() ** 2)
        cost = float(((fresh - stale).square() / mass).mean())
        assert excess == pytest.approx(cost, rel=1e-9)


def test_scores_of_no_age_price_nothing() -> None:
    """A block that comes twice by the same parameters would price a proposal that nobody has."""
    blocks = blocks_of(8, 4)
    proposal = NeutralProposal(recipes["issgd"], 8, blocks=2, seed=0, exact=False)
    counts = []
    for version in (1, 1, 2, 2, 3):
        fresh = [Scored(block, torch.arange(1.0, 5.0) * version, version, 0.1) for block in blocks]
        costs = proposal.take(fresh)
        counts.append(proposal.memory.prices.batches)
        assert all(cost is None for cost in costs) == (len(counts) == 1)
    assert counts == [0, 0, 1, 1, 2]
