"""From uniform numbers to positions: loops, end points, rounding, large ids."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enumeration import CASES, cells, float64, score_set
from gradsift.sampling.distributions import Proportional
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.positions import (
    multinomial_positions,
    poisson_positions,
    spread,
    stratified_positions,
    systematic_positions,
)

ALMOST_ONE = 1 - 2**-53


def slow_inverse(p: list[float], u: float) -> int:
    """The first position whose cumulated probability passes ``u``, in rational arithmetic."""
    cumulated = Fraction(0)
    for place, probability in enumerate(p):
        cumulated += Fraction(probability)
        if Fraction(u) < cumulated:
            return place
    return len(p) - 1


def slow_systematic(inclusion: list[float], offset: float) -> list[int]:
    """Every position where ``floor(C_i − u)`` jumps, in rational arithmetic."""
    total = Fraction(round(math.fsum(inclusion)))
    taken = []
    before = Fraction(0)
    for place, pi in enumerate(inclusion):
        after = total if place == len(inclusion) - 1 else before + Fraction(pi)
        if math.floor(after - Fraction(offset)) > math.floor(before - Fraction(offset)):
            taken.append(place)
        before = after
    return taken


@pytest.mark.parametrize("name", ["ties", "uneven", "five", "zero", "dominant", "broken"])
def test_multinomial_agrees_with_a_loop_in_every_cell(name: str) -> None:
    p = Proportional().probabilities(score_set(name))
    middles = [middle for middle, length in cells(p.cumsum(0).tolist()) if length > 1e-12]
    expected = [slow_inverse(p.tolist(), middle) for middle in middles]
    assert multinomial_positions(p, float64(middles)).tolist() == expected
    assert expected == list(range(len(p)))


@given(
    weights=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=12),
    uniforms=st.lists(st.floats(0.0, ALMOST_ONE), min_size=1, max_size=12),
)
@settings(derandomize=True, max_examples=150, deadline=None)
def test_stratified_agrees_with_a_loop_and_bounds_the_copies(
    weights: list[float], uniforms: list[float]
) -> None:
    p = float64(weights) / sum(weights)
    size = len(uniforms)
    points = [(slot + u) / size for slot, u in enumerate(uniforms)]
    edges = p.cumsum(0)
    found = stratified_positions(p, float64(uniforms))
    for place, point in zip(found.tolist(), points, strict=True):
        if float((edges - point).abs().min()) > 1e-12:
            assert place == slow_inverse(p.tolist(), point)
    copies = torch.bincount(found, minlength=len(p))
    assert bool((copies <= (size * p + 1e-12).floor() + 2).all())
    assert bool((found.diff() >= 0).all())


@pytest.mark.parametrize(("name", "size"), CASES)
def test_systematic_agrees_with_a_loop_in_every_cell(name: str, size: int) -> None:
    inclusion = capped_inclusion(score_set(name), size)
    checked = 0
    for middle, length in cells((inclusion.cumsum(0) % 1).tolist()):
        if length > 1e-12:
            found = systematic_positions(inclusion, middle).tolist()
            assert found == slow_systematic(inclusion.tolist(), middle)
            checked += 1
    assert checked


@st.composite
def walks(draw: st.DrawFn) -> tuple[torch.Tensor, int, float]:
    """Inclusion probabilities of up to 5,000 candidates, hard to round, and an offset."""
    n = draw(st.integers(1, 5000))
    size = draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    noise = torch.randn(n, dtype=torch.float64, generator=generator)
    scores = {
        "ties": torch.ones(n),
        "spread": (draw(st.floats(0.0, 12.0)) * noise).exp(),
        "steps": noise.round().abs() + 0.1,
        "dominated": torch.where(torch.arange(n) < max(1, size // 2), 1e9, 1 + 0 * noise),
        "nearly certain": 1 + 1e-15 * noise,
    }[draw(st.sampled_from(["ties", "spread", "steps", "dominated", "nearly certain"]))]
    inclusion = capped_inclusion(scores.double(), size)
    edge = float(inclusion.cumsum(0)[draw(st.integers(0, n - 1))]) % 1
    offset = draw(
        st.one_of(
            st.sampled_from([0.0, 2**-53, 0.5, ALMOST_ONE]),
            st.floats(0.0, ALMOST_ONE),
            st.sampled_from([edge, math.nextafter(edge, 0.0), math.nextafter(edge, 1.0)]),
        )
    )
    return inclusion, size, min(offset, ALMOST_ONE)


@given(walk=walks())
@settings(derandomize=True, max_examples=300, deadline=None)
def test_systematic_always_takes_exactly_the_size_without_duplicates(
    walk: tuple[torch.Tensor, int, float],
) -> None:
    inclusion, size, offset = walk
    found = systematic_positions(inclusion, offset)
    assert found.dtype == torch.int64
    assert len(found) == size
    assert bool((found.diff() > 0).all())
    assert int(found[0]) >= 0
    assert int(found[-1]) < len(inclusion)
    certain = (inclusion == 1).nonzero().flatten()
    assert bool(torch.isin(certain, found).all())


@pytest.mark.parametrize("n", [1, 2, 3, 50, 5000])
@pytest.mark.parametrize("offset", [0.0, 0.3, ALMOST_ONE])
def test_probabilities_just_below_one_never_collide(n: int, offset: float) -> None:
    inclusion = torch.full((n,), ALMOST_ONE, dtype=torch.float64)
    assert systematic_positions(inclusion, offset).tolist() == list(range(n))


def test_steps_that_meet_in_one_example_move_on_to_the_next() -> None:
    inclusion = float64([0.999, ALMOST_ONE, ALMOST_ONE, ALMOST_ONE, 0.001])
    for offset in (0.0, 0.999, math.nextafter(0.999, 1), math.nextafter(0.999, 0), ALMOST_ONE):
        found = systematic_positions(inclusion, offset).tolist()
        assert len(set(found)) == 4


def test_the_end_point_is_reached_although_the_sum_stays_below_one() -> None:
    p = torch.full((10,), 0.1, dtype=torch.float64)
    assert float(p.cumsum(0)[-1]) <= ALMOST_ONE
    last = float64([ALMOST_ONE])
    assert multinomial_positions(p, last).tolist() == [9]
    assert stratified_positions(p, last).tolist() == [9]
    assert systematic_positions(p, ALMOST_ONE).tolist() == [9]


def test_an_edge_belongs_to_the_later_candidate() -> None:
    p = float64([0.25, 0.25, 0.5])
    assert multinomial_positions(p, float64([0.25, 0.5])).tolist() == [1, 2]
    assert stratified_positions(p, float64([0.5, 0.0])).tolist() == [1, 2]
    assert systematic_positions(float64([0.5, 0.5, 0.25, 0.75]), 0.5).tolist() == [1, 3]


@given(
    found=st.lists(st.integers(0, 14), min_size=1, max_size=10).map(sorted),
    extra=st.integers(0, 5),
)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_spread_agrees_with_a_loop(found: list[int], extra: int) -> None:
    count = max(len(found), found[-1]) + extra
    expected: list[int] = []
    for place, position in enumerate(found):
        after = expected[-1] + 1 if expected else 0
        expected.append(min(max(position, after), count - len(found) + place))
    assert spread(torch.tensor(found), count).tolist() == expected
    assert len(set(expected)) == len(found)
    assert expected[-1] < count


def test_the_offset_keeps_its_last_bits() -> None:
    inclusion = float64([0.25, 0.75])
    assert systematic_positions(inclusion, math.nextafter(0.25, 0.0)).tolist() == [0]
    assert systematic_positions(inclusion, 0.25).tolist() == [1]


def test_the_start_is_the_first_candidate() -> None:
    p = torch.full((10,), 0.1, dtype=torch.float64)
    first = float64([0.0])
    assert multinomial_positions(p, first).tolist() == [0]
    assert stratified_positions(p, first).tolist() == [0]
    assert systematic_positions(p, 0.0).tolist() == [0]


def test_a_last_slot_that_rounds_to_one_stays_inside() -> None:
    uniforms = torch.full((5000,), ALMOST_ONE, dtype=torch.float64)
    assert (4999 + ALMOST_ONE) / 5000 == 1.0
    found = stratified_positions(torch.full((7,), 1 / 7, dtype=torch.float64), uniforms)
    assert int(found[-1]) == 6


def test_sums_that_pass_one_by_rounding_stay_inside() -> None:
    p = float64([0.6, 0.4 + 1e-15, 1e-16])
    assert multinomial_positions(p, float64([0.1, 0.7, ALMOST_ONE])).tolist() == [0, 1, 1]


def test_poisson_takes_what_is_certain_and_draws_each_alone() -> None:
    inclusion = float64([1.0, 0.5, 0.5, 1e-300])
    uniforms = float64([ALMOST_ONE, 0.5, math.nextafter(0.5, 0), 0.0])
    assert poisson_positions(inclusion, uniforms).tolist() == [0, 2, 3]


def test_ids_beyond_two_to_the_24_are_told_apart() -> None:
    n = 2**24 + 100
    p = torch.full((n,), 1 / n, dtype=torch.float64)
    ids = torch.tensor([2**24 - 1, 2**24, 2**24 + 1, 2**24 + 3, n - 1])
    middles = (ids.double() + 0.5) / n
    assert multinomial_positions(p, middles).tolist() == ids.tolist()
    slots = stratified_positions(p, torch.full((n // 2,), 0.25, dtype=torch.float64))
    assert torch.equal(slots, 2 * torch.arange(n // 2))
