"""Orders are bijections, and scrambling breaks periods."""

import numpy as np
import pytest
import torch

from gradsift.sampling.order import AbstractOrder, GivenOrder, NaturalOrder, ScrambledOrder


@pytest.mark.parametrize("size", [*range(1, 40), 64, 65, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_orders_are_bijections(size: int, seed: int) -> None:
    everybody = np.arange(size)
    permutation = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    orders: list[AbstractOrder] = [
        NaturalOrder(),
        ScrambledOrder(size, seed),
        GivenOrder(permutation),
    ]
    for order in orders:
        ids = order.ids(everybody)
        assert np.array_equal(np.sort(ids), everybody)
        assert np.array_equal(order.places(ids), everybody)
        assert np.array_equal(everybody, np.arange(size))
    assert np.array_equal(orders[2].ids(everybody), permutation.numpy())


def test_scrambled_ids_up_to_the_largest_table() -> None:
    order = ScrambledOrder(2**31 - 1, 0)
    ids = np.array([0, 1, 2**24, 2**24 + 1, 2**31 - 2])
    assert np.array_equal(order.ids(order.places(ids)), ids)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scrambling_breaks_the_periods_that_a_systematic_walk_meets(seed: int) -> None:
    """Ten classes in turn and a stride of 100: along the ids every draw has a single class."""
    size, batch = 6000, 60
    independent = batch * 0.1 * 0.9

    def variance(order: AbstractOrder) -> float:
        counts = [
            np.count_nonzero(order.ids(np.arange(offset, size, 100)) % 10 == 0)
            for offset in range(100)
        ]
        return float(np.var(counts))

    assert variance(NaturalOrder()) == pytest.approx(batch * independent)
    assert variance(ScrambledOrder(size, seed)) < 1.5 * independent
