"""A window is dealt out so that every batch has exactly the law of a stratified draw of its own."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradsift.records import Draw
from gradsift.sampling.draws import Stratified
from gradsift.sampling.table import ScoreTable
from gradsift.sampling.windows import deal, dealt

SCORES = [0.3, 4.0, 1.0, 0.0, 2.2, 0.7]


def slot_laws(probabilities: Tensor, slots: int) -> Tensor:
    """Row k: what slot k draws, by its overlap with every example's stretch of the line."""
    ends = (slots * probabilities).cumsum(0)
    starts = ends - slots * probabilities
    rows = [
        (ends.clamp(max=slot + 1) - starts.clamp(min=slot)).clamp_min(0) for slot in range(slots)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize(("size", "batches"), [(2, 2), (3, 2), (2, 3)])
def test_every_batch_has_the_law_of_a_stratified_draw(size: int, batches: int) -> None:
    """Over all ways to deal: what place j of batch k gets, against slot j of a draw of b."""
    scores = torch.tensor(SCORES, dtype=torch.float64)
    probabilities = 0.8 * scores / scores.sum() + 0.2 / len(scores)
    window = slot_laws(probabilities, size * batches)
    expected = slot_laws(probabilities, size)
    ways = list(itertools.product(itertools.permutations(range(batches)), repeat=size))
    found = torch.zeros(batches, size, len(scores), dtype=torch.float64)
    slots = torch.arange(size * batches)
    for way in ways:
        drawn = Draw(slots, torch.ones(len(slots), dtype=torch.float64), len(slots))
        for k, batch in enumerate(dealt(drawn, torch.tensor(way))):
            found[k] += window[batch.positions] / len(ways)
    for law in found:
        torch.testing.assert_close(law, expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(expected.sum(0), size * probabilities, rtol=1e-12)


def test_weights_travel_with_their_examples() -> None:
    drawn = Draw(torch.arange(12) * 7, torch.arange(12.0, dtype=torch.float64), 12)
    for batch in deal(drawn, 3, torch.Generator().manual_seed(3)):
        assert batch.size == 4
        assert (batch.positions.double() / 7).tolist() == batch.weights.tolist()
        assert [int(place) // 3 for place in batch.weights] == [0, 1, 2, 3]


def test_all_is_dealt_out_and_no_order_is_preferred() -> None:
    drawn = Draw(torch.arange(6), torch.ones(6, dtype=torch.float64), 6)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(400):
        batches = deal(drawn, 3, generator)
        together = torch.cat([batch.positions for batch in batches])
        assert sorted(together.tolist()) == list(range(6))
        seen.add(tuple(together.tolist()))
    assert len(seen) == math.factorial(3) ** 2


@settings(deadline=None, max_examples=40)
@given(
    scores=st.lists(st.floats(0.0, 50.0), min_size=12, max_size=40),
    size=st.integers(1, 4),
    batches=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_no_batch_has_more_copies_than_a_draw_of_its_own(
    scores: list[float], size: int, batches: int, seed: int
) -> None:
    table = ScoreTable(len(scores), draw=Stratified(), seed=seed)
    ids = torch.arange(len(scores))
    table.update(ids, torch.tensor(scores), 0)
    most = (size * table.probabilities(ids)).floor() + 2
    generator = torch.Generator().manual_seed(seed)
    for batch in deal(table.draw(size * batches, generator), batches, generator):
        assert (torch.bincount(batch.positions, minlength=len(scores)) <= most).all()
