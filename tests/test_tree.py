"""The sum tree and the walks on it: loops, exact laws over every uniform number, bits of sums."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import cells, float64, stratified_law
from gradsift.errors import UsageError
from gradsift.sampling import tree as tree_module
from gradsift.sampling import walks
from gradsift.sampling.distributions import AbstractDistribution, Mixed, Power, Proportional
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.positions import stratified_positions, systematic_positions
from gradsift.sampling.tree import SumTree, powered
from gradsift.sampling.walks import Mixture, TableLaw, stratified_places, systematic_places

ALMOST_ONE = 1 - 2**-53

VALUES = {
    "one": [3.0],
    "unseen": [1.0] * 7,
    "uneven": [0.3, 1.0, 2.5, 4.0, 0.1],
    "all zero": [0.0] * 6,
    "zeros": [0.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0],
    "extreme": [1e-30, 1.0, 1e30, 1e-30, 0.0, 1e30, 3.0, 1e-30, 1.0],
    "dominant": [1.0] * 10 + [1e6] + [1.0] * 10,
    "steps": [2.0**k for k in range(-4, 13)],
}
"""Values that cover the edges; on a narrow tree they need up to three levels."""

LAWS = [(1.0, 0.2), (0.5, 0.05), (0.75, 1.0), (2.0, 1e-3)]
"""Exponents and uniform shares."""

CASES = [
    (name, size, law)
    for name, values in VALUES.items()
    for size in sorted({1, 2, 5, len(values) - 1, len(values)})
    if 1 <= size <= len(values)
    for law in LAWS
]


@contextmanager
def narrow() -> Iterator[None]:
    """Four children per node and two nodes on top, so that small trees are deep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "WIDTH", 4)
        patch.setattr(tree_module, "TOP", 2)
        yield


def grown(values: list[float], exponent: float = 1.0) -> SumTree:
    tree = SumTree(len(values), exponent)
    tree.set(np.arange(len(values)), np.array(values))
    return tree


def law_of(tree: SumTree, law: tuple[float, float]) -> tuple[Mixture, torch.Tensor]:
    """The line of a tree and the probabilities, the latter by a loop."""
    exponent, uniform = law
    powers = [value**exponent for value in tree.leaves.tolist()]
    total = math.fsum(powers)
    if total == 0:
        p = [1 / tree.size] * tree.size
    else:
        p = [(1 - uniform) * power / total + uniform / tree.size for power in powers]
    return TableLaw(exponent, uniform).mixture(tree.total, tree.size), float64(p)


def bits(tree: SumTree) -> list[bytes]:
    return [part.tobytes() for part in (*tree._blocks, tree._top)]


@pytest.mark.parametrize(("name", "size", "law"), CASES)
def test_stratified_has_the_law_of_the_plain_draw_and_is_unbiased(
    name: str, size: int, law: tuple[float, float]
) -> None:
    with narrow():
        tree = grown(VALUES[name], law[0])
        mixture, p = law_of(tree, law)
        n = len(p)
        found = torch.zeros(size, n, dtype=torch.float64)
        weighted = torch.zeros(n, dtype=torch.float64)
        for slot in range(size):
            for middle, length in cells((size * p.cumsum(0) - slot).tolist()):
                uniforms = np.full(size, 0.5)
                uniforms[slot] = middle
                places, masses = stratified_places(tree, mixture, uniforms)
                found[slot, places[slot]] += length
                weighted[places[slot]] += length / masses[slot]
    torch.testing.assert_close(found, stratified_law(p, size), rtol=0, atol=1e-13)
    torch.testing.assert_close(weighted, torch.full_like(p, size / n), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("name", "size", "law"), CASES)
def test_systematic_has_the_law_of_the_plain_walk_and_is_unbiased(
    name: str, size: int, law: tuple[float, float]
) -> None:
    with narrow():
        tree = grown(VALUES[name], law[0])
        before = bits(tree)
        mixture, p = law_of(tree, law)
        inclusion = capped_inclusion(p, size)
        weighted = torch.zeros_like(p)
        edges = inclusion[inclusion < 1].cumsum(0) % 1
        for middle, length in cells(edges.tolist()):
            places, pi = systematic_places(tree, mixture, size, middle)
            assert len(set(places.tolist())) == size
            if length > 1e-9:
                assert places.tolist() == systematic_positions(inclusion, middle).tolist()
            torch.testing.assert_close(
                torch.from_numpy(pi), inclusion[torch.from_numpy(places)], rtol=1e-11, atol=0
            )
            weighted[torch.from_numpy(places)] += length * torch.from_numpy(size / (len(p) * pi))
            assert bits(tree) == before
    torch.testing.assert_close(weighted, torch.full_like(p, size / len(p)), rtol=1e-7, atol=0)


@given(
    n=st.integers(1, 90),
    updates=st.lists(
        st.dictionaries(
            st.integers(0, 89), st.sampled_from([0.0, 1e-30, 0.1, 1.0, 7.3, 1e30]), max_size=9
        ),
        max_size=6,
    ),
    exponent=st.sampled_from([1.0, 0.5, 0.7]),
)
@settings(max_examples=60)
def test_after_any_updates_the_sums_are_those_of_a_fresh_tree_to_the_bit(
    n: int, updates: list[dict[int, float]], exponent: float
) -> None:
    with narrow():
        tree = SumTree(n, exponent)
        for update in updates:
            places = np.array(sorted(place for place in update if place < n), dtype=np.int64)
            tree.set(places, np.array([update[place] for place in places.tolist()]))
        fresh = SumTree(n, exponent)
        fresh.leaves[:] = tree.leaves
        fresh.rebuild(exponent)
        assert bits(tree) == bits(fresh)


@pytest.mark.parametrize("n", [63, 64, 65, 4096, 300_001])
def test_the_same_at_full_width(n: int) -> None:
    generator = np.random.default_rng(n)
    tree = SumTree(n, 1.0)
    for _ in range(20):
        places = np.unique(generator.integers(n, size=50))
        tree.set(places, generator.lognormal(0.0, 3.0, len(places)))
    fresh = SumTree(n, 1.0)
    fresh.leaves[:] = tree.leaves
    fresh.rebuild(1.0)
    assert bits(tree) == bits(fresh)
    assert tree.total == pytest.approx(math.fsum(tree.leaves.tolist()), rel=1e-13)


@given(
    values=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=90),
    uniforms=st.lists(
        st.one_of(st.floats(0.0, ALMOST_ONE), st.sampled_from([0.0, ALMOST_ONE])),
        min_size=1,
        max_size=12,
    ),
    law=st.sampled_from(LAWS),
)
@settings(max_examples=80)
def test_stratified_agrees_with_the_flat_draw_and_bounds_the_copies(
    values: list[float], uniforms: list[float], law: tuple[float, float]
) -> None:
    with narrow():
        tree = grown(values, law[0])
        mixture, p = law_of(tree, law)
        size = len(uniforms)
        places, masses = stratified_places(tree, mixture, np.array(uniforms))
    points = (np.arange(size) + np.array(uniforms)) / size
    flat = stratified_positions(p, float64(uniforms))
    for place, point, expected in zip(places, points, flat.tolist(), strict=True):
        if float((p.cumsum(0) - point).abs().min()) > 1e-12:
            assert place == expected
    copies = np.bincount(places, minlength=len(p))
    assert (copies <= np.floor(size * p.numpy() + 1e-12) + 2).all()
    np.testing.assert_allclose(masses, len(p) * p.numpy()[places], rtol=1e-12)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("uniform", [0.0, ALMOST_ONE])
def test_end_points_stay_inside(name: str, uniform: float) -> None:
    with narrow():
        tree = grown(VALUES[name])
        mixture, _ = law_of(tree, (1.0, 0.2))
        n = tree.size
        for size in (1, 3, 8):
            places, _ = stratified_places(tree, mixture, np.full(size, uniform))
            assert 0 <= places.min() <= places.max() < n
        beyond = np.array([n, n * (1 + 1e-9), 10.0 * n])
        assert tree.find(beyond, mixture.slope, mixture.floor)[0].tolist() == [n - 1] * 3


def test_places_without_length_are_never_found() -> None:
    with narrow():
        tree = grown(VALUES["zeros"])
        points = np.array([0.0, 1.0, np.nextafter(2.0, 0), 2.0, 2.9, 3.0, 50.0])
        places, lengths = tree.find(points, slope=1.0, floor=0.0)
        assert places.tolist() == [2, 2, 2, 4, 4, 4, 4]
        assert lengths.tolist() == [2.0] * 3 + [1.0] * 4


@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=90), st.floats(0.01, 10))
@settings(max_examples=60)
def test_at_least_agrees_with_a_loop(values: list[float], power: float) -> None:
    with narrow():
        found = grown(values, 0.5).at_least(power).tolist()
    assert found == [place for place, value in enumerate(values) if math.sqrt(value) >= power]


@pytest.mark.parametrize("exponent", [0.25, 0.3, 0.5, 0.75, 1.0, 2.0, 3.5])
def test_powers_agree_with_python(exponent: float) -> None:
    values = [0.0, 1e-30, 0.3, 1.0, 17.0, 1e30]
    expected = [value**exponent for value in values]
    np.testing.assert_allclose(powered(np.array(values), exponent), expected, rtol=1e-14)
    tree = grown(values, exponent)
    kept = tree.leaves.astype(float).tolist()
    assert tree.mean_power(0.7) == pytest.approx(math.fsum(v**0.7 for v in kept) / 6, rel=1e-13)
    assert tree.total == pytest.approx(math.fsum(v**exponent for v in kept), rel=1e-13)
    tree.rebuild(1.0)
    assert bits(tree) == bits(grown(values))


def test_memory_is_at_most_five_bytes_per_value() -> None:
    assert SumTree(300_000, 1.0).nbytes <= 5 * 300_000


@pytest.mark.parametrize(
    "distribution",
    [
        Proportional(),
        Power(0.5),
        Mixed(Mixed(Proportional(), uniform=0.1), uniform=0.2),
        Mixed(Power(4.5), uniform=0.2),
    ],
    ids=repr,
)
def test_distributions_without_a_floor_are_refused(distribution: AbstractDistribution) -> None:
    with pytest.raises(UsageError, match=r"expected Mixed.*only a uniform share bounds"):
        TableLaw.of(distribution)


@pytest.mark.parametrize("inner", [Proportional(), Power(0.5), Power(0.0)], ids=repr)
def test_laws_are_distributions(inner: AbstractDistribution) -> None:
    mixed = Mixed(inner, uniform=0.3)
    law = TableLaw.of(mixed)
    assert law.distribution == mixed
    values = [0.5, 1.0, 4.0]
    tree = grown(values, law.summed)
    masses = law.mixture(tree.total, 3).masses(tree.powers(np.arange(3)))
    expected = 3 * mixed.probabilities(float64(values))
    torch.testing.assert_close(torch.from_numpy(masses), expected, rtol=1e-12, atol=0)


def test_rounding_never_takes_a_place_twice() -> None:
    tree = grown([1.0] * 97)
    for size in (7, 60, 96):
        inclusion = size / 97
        mixture = TableLaw(1.0, 0.2).mixture(tree.total, 97)
        for offset in np.concatenate((np.arange(97) * inclusion % 1, [0.0, ALMOST_ONE])):
            places, pi = systematic_places(tree, mixture, size, float(offset))
            assert len(set(places.tolist())) == size
            np.testing.assert_allclose(pi, inclusion, rtol=1e-12)


@pytest.mark.parametrize(
    ("found", "certain", "apart"),
    [
        ([3, 3, 5], [1, 4], [3, 5, 6]),
        ([0, 2, 6], [1, 4], [0, 2, 6]),
        ([6, 6, 6], [1, 4], [3, 5, 6]),
        ([0, 0], [], [0, 1]),
        ([0, 0], [1, 2, 3], [0, 4]),
    ],
)
def test_places_found_twice_move_to_the_next_that_is_open(
    found: list[int], certain: list[int], apart: list[int]
) -> None:
    taken = np.array(certain, dtype=np.int64)
    assert walks._apart(np.array(found), taken, 7).tolist() == apart
