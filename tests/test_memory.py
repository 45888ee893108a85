"""A batch is priced by what the table held before it; then its scores are in force."""

import itertools

import pytest
import torch
from torch import Tensor

from gradsift import recipes
from gradsift.records import ScoreUpdate
from gradsift.sifting import memory as room
from gradsift.sifting.memory import START, WINDOW, Memory

N = 64


def ids(first: int, count: int = 16) -> Tensor:
    return torch.arange(first, first + count)


def filled(*, adapts: bool) -> Memory:
    """Every example once, in order; the last eighth scores ten times as much as the rest."""
    memory = Memory(recipes["auto" if adapts else "table"], N, seed=0, adapts=adapts)
    for version, first in enumerate(range(0, N, 16)):
        assert not memory.complete
        update = ScoreUpdate(ids(first), truth(ids(first)), version)
        memory.learn(update, torch.ones(16))
        memory.passed(16)
    memory.draw(4, torch.Generator())
    return memory


def truth(index: Tensor) -> Tensor:
    return torch.where(index < 56, 1.0, 10.0).double()


def test_the_first_pass_fills() -> None:
    memory = filled(adapts=True)
    assert memory.complete
    assert memory.price is None
    assert memory.table.seen == N


def test_a_proposal_adapts_one_step_at_a_time_towards_the_cheapest() -> None:
    memory = filled(adapts=True)
    generator = torch.Generator().manual_seed(0)
    seen = [memory.proposal]
    for version in range(200):
        draw = memory.draw(16, generator)
        update = ScoreUpdate(draw.positions, truth(draw.positions), version + 4)
        memory.learn(update, draw.weights)
        if memory.proposal != seen[-1]:
            seen.append(memory.proposal)
    assert seen[0] == START
    grid = [0.2, 0.3, 0.5, 0.7, 1.0]
    places = [grid.index(proposal.uniform) for proposal in seen]
    assert all(abs(after - before) <= 1 for before, after in itertools.pairwise(places))
    assert places[-1] == 0
    assert memory.table.distribution.uniform == seen[-1].uniform
    assert memory.prices.drawn.value > 2


def test_a_fixed_mixture_stays() -> None:
    memory = filled(adapts=False)
    for version in range(20):
        draw = memory.draw(16, torch.Generator().manual_seed(version))
        update = ScoreUpdate(draw.positions, truth(draw.positions), version + 4)
        memory.learn(update, draw.weights)
    assert memory.table.distribution == recipes["table"].distribution


def test_prices_come_from_the_scores_before() -> None:
    """Against a twin that prices and updates all examples at once, in that order."""
    memory, twin = filled(adapts=False), filled(adapts=False)
    exponents = (0.5, 0.75, 1.0)
    means = [twin.table.mean_power(exponent) for exponent in exponents]
    for version in range(2):
        scores = torch.arange(1.0, N + 1) * (1 + version)
        memory.learn(ScoreUpdate(torch.arange(N), scores, 9 + version), torch.ones(N))
        stale = twin.table.relative(torch.arange(N))
        twin.prices.add(scores, stale, torch.ones(N), N, means)
        twin.table.update(torch.arange(N), scores, 9 + version, torch.ones(N))
        means = [twin.table.mean_power(exponent) for exponent in exponents]
    assert torch.equal(memory.table.relative(torch.arange(N)), twin.table.relative(torch.arange(N)))
    for proposal in twin.prices.proposals:
        expected = twin.prices.ratio(proposal).value
        assert memory.prices.ratio(proposal).value == pytest.approx(expected, rel=1e-9)


def test_a_window_is_dealt_out_whole() -> None:
    """What the table drew for a window comes in batches, each example with its weight."""
    memory, twin = filled(adapts=False), filled(adapts=False)
    memory.draw(3, torch.Generator())
    expected = twin.table.draw(WINDOW * 4, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    dealt = [memory.draw(4, generator) for _ in range(WINDOW)]
    assert all((len(draw.positions), draw.size) == (4, 4) for draw in dealt)
    pairs = torch.stack(
        [
            torch.cat([draw.positions for draw in dealt]).double(),
            torch.cat([draw.weights for draw in dealt]),
        ],
        1,
    )
    whole = torch.stack([expected.positions.double(), expected.weights], 1)
    assert sorted(pairs.tolist()) == sorted(whole.tolist())


def test_windows_fit_small_data() -> None:
    memory = filled(adapts=False)
    assert len(memory.draw(N, torch.Generator()).positions) == N
    assert len(memory.draw(N - 1, torch.Generator()).positions) == N - 1


def labelled(memory: Memory, labels: Tensor) -> Memory:
    """One pass over all examples, of even scores, and one window more."""
    for version, part in enumerate((*torch.arange(N).split(16), ids(0))):
        update = ScoreUpdate(part, torch.ones(16), version, labels[part])
        memory.learn(update, torch.ones(16))
        memory.passed(16)
    return memory


def test_after_a_pass_every_draw_has_its_share_of_every_class() -> None:
    """Even scores, four classes of 16 in a scrambled order: 8 of 32 from each, in every draw."""
    labels = torch.arange(N).remainder(4)[torch.randperm(N, generator=torch.Generator())]
    memory = labelled(Memory(recipes["table"], N, seed=0, adapts=False), labels)
    for seed in range(5):
        drawn = memory.draw(32, torch.Generator().manual_seed(seed))
        assert torch.bincount(labels[drawn.positions]).tolist() == [8] * 4
        assert drawn.weights.tolist() == pytest.approx([1.0] * 32)


@pytest.mark.parametrize("kind", ["one class", "no labels", "too many examples"])
def test_otherwise_the_order_stays(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "too many examples":
        monkeypatch.setattr(room, "ARRANGED", N - 1)
    memory = Memory(recipes["table"], N, seed=0, adapts=False)
    if kind == "no labels":
        memory = filled(adapts=False)
    else:
        classes = 1 if kind == "one class" else 4
        memory = labelled(memory, torch.arange(N).remainder(classes))
    assert memory.table.state_dict()["order"] is None
