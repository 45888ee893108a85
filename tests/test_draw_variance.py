"""Variances of the draws, from their exact laws: which is below which, and for which values.

With ``w_i v_i`` renamed ``v_i``, the variance of an estimator is ``vᵀ Cov(copies) v``. So one draw
is never worse than another, whatever the values, where the difference of the covariance
matrices of their copies has no negative eigenvalue.
"""

import pytest
import torch

from enumeration import (
    CASES,
    float64,
    moments,
    score_set,
    stratified_law,
    systematic_law,
    systematic_law_in_order,
)
from gradsift.sampling.distributions import Power, Proportional
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.quarantine import clean


def with_replacement(p: torch.Tensor, size: int) -> torch.Tensor:
    """The covariance of the copies in ``size`` independent draws."""
    return size * (p.diag() - torch.outer(p, p))


def stratified(p: torch.Tensor, size: int) -> torch.Tensor:
    """The covariance of the copies with one draw per slot: slots are independent."""
    slots = stratified_law(p, size)
    return sum((q.diag() - torch.outer(q, q) for q in slots), torch.zeros(len(p), len(p)).double())


def systematic(inclusion: torch.Tensor) -> torch.Tensor:
    """The covariance of the copies over all orders and offsets."""
    return moments(systematic_law(inclusion), torch.ones_like(inclusion))[1]


def smallest_eigenvalue(matrix: torch.Tensor) -> float:
    return float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[0])


def pairs_margin(inclusion: torch.Tensor, size: int) -> torch.Tensor:
    """``π_ij − (1 − 1/b) π_i π_j`` for every pair, with exact ``π_ij``."""
    product = torch.outer(inclusion, inclusion)
    together = systematic(inclusion) + product
    rows, columns = torch.triu_indices(len(inclusion), len(inclusion), offset=1)
    return (together - (1 - 1 / size) * product)[rows, columns]


def isotropic_trace(covariance: torch.Tensor, p: torch.Tensor, g: torch.Tensor) -> float:
    """The trace for orthogonal values with norms ``g`` and weights ``1/(N p)``, times ``b²``."""
    return float((covariance.diag() * (g / (len(p) * p)).square()).sum())


@pytest.mark.parametrize(("name", "size"), CASES)
@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_stratified_is_never_above_multinomial_for_any_values_and_order(
    name: str, size: int, exponent: float
) -> None:
    p = Power(exponent).probabilities(score_set(name))
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        difference = with_replacement(p, size) - stratified(p, size)
        assert smallest_eigenvalue(difference) >= -1e-12
        p = p[torch.randperm(len(p), generator=generator)]


def test_stratified_equals_multinomial_for_one_draw_and_beats_it_for_more() -> None:
    p = Proportional().probabilities(score_set("uneven"))
    torch.testing.assert_close(stratified(p, 1), with_replacement(p, 1), rtol=0, atol=1e-15)
    assert float(stratified(p, 4).trace()) < 0.6 * float(with_replacement(p, 4).trace())


@pytest.mark.parametrize(("name", "size"), CASES)
def test_pair_probabilities_of_systematic_have_the_sums_of_a_fixed_size(
    name: str, size: int
) -> None:
    inclusion = capped_inclusion(score_set(name), size)
    together = systematic(inclusion) + torch.outer(inclusion, inclusion)
    torch.testing.assert_close(together.diag(), inclusion, rtol=0, atol=1e-13)
    torch.testing.assert_close(together.sum(1), size * inclusion, rtol=0, atol=1e-13)


def test_pair_probabilities_of_even_scores_are_those_of_a_simple_random_sample() -> None:
    covariance = systematic(torch.full((5,), 0.4, dtype=torch.float64))
    together = covariance + 0.16
    off_diagonal = together[~torch.eye(5, dtype=torch.bool)]
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, 0.1), rtol=0, atol=1e-14)


def never_worse(inclusion: torch.Tensor, size: int) -> bool:
    """Whether no values make systematic worse than independent draws with ``p = π/b``."""
    difference = with_replacement(inclusion / size, size) - systematic(inclusion)
    return smallest_eigenvalue(difference) >= -1e-12


COMMON_PAIRS = {
    *(("ties", size) for size in (1, 2, 3, 4)),
    *(("all zero", size) for size in (1, 2, 3)),
    *(("broken", size) for size in (1, 2, 3, 4)),
    *((name, 1) for name in ("uneven", "five", "zero", "dominant", "two ties")),
    *((name, 4) for name in ("uneven", "zero", "dominant")),
    ("dominant", 3),
    ("five", 5),
    ("two ties", 5),
}
"""The cases in which every pair is drawn together with at least ``π_i π_j (b - 1)/b``."""

SOMETIMES_WORSE = {("zero", 2), ("two ties", 3)}
"""The cases in which systematic is worse than independent draws for some values."""


@pytest.mark.parametrize(("name", "size"), CASES)
def test_pairs_that_are_common_enough_make_systematic_never_worse(name: str, size: int) -> None:
    inclusion = capped_inclusion(score_set(name), size)
    common = bool((pairs_margin(inclusion, size) >= -1e-12).all())
    assert common == ((name, size) in COMMON_PAIRS)
    assert never_worse(inclusion, size) == ((name, size) not in SOMETIMES_WORSE)


def test_common_pairs_are_sufficient_but_not_necessary() -> None:
    """The difference is a Laplacian where they hold; it can do without a few of its edges."""
    inclusion = capped_inclusion(score_set("uneven"), 2)
    assert float(pairs_margin(inclusion, 2).min()) < -0.08
    difference = with_replacement(inclusion / 2, 2) - systematic(inclusion)
    assert smallest_eigenvalue(difference) >= -1e-12
    torch.testing.assert_close(
        difference.sum(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(("name", "size"), CASES)
def test_never_worse_needs_pairs_that_are_not_too_common(name: str, size: int) -> None:
    """Narain's necessary condition, ``π_ij <= 2 (1 − 1/b) π_i π_j``: the 2 by 2 minors."""
    inclusion = capped_inclusion(score_set(name), size)
    rows, columns = torch.triu_indices(len(inclusion), len(inclusion), offset=1)
    product = torch.outer(inclusion, inclusion)[rows, columns]
    too_common = pairs_margin(inclusion, size) > (1 - 1 / size) * product + 1e-12
    assert not (bool(too_common.any()) and never_worse(inclusion, size))
    assert (name, size) != ("two ties", 3) or bool(too_common.any())


def test_some_values_make_systematic_worse() -> None:
    """The number of low scores drawn varies 7/6 times as much as in independent draws."""
    inclusion = capped_inclusion(float64([1.0, 1.0, 4.0, 4.0]), 2)
    low = float64([1.0, 1.0, 0.0, 0.0])
    ours = float(low @ systematic(inclusion) @ low)
    theirs = float(low @ with_replacement(inclusion / 2, 2) @ low)
    assert ours / theirs == pytest.approx(7 / 6, rel=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_one_fixed_order_can_be_as_many_times_worse_as_the_batch_is_large(size: int) -> None:
    inclusion = torch.full((2 * size,), 0.5, dtype=torch.float64)
    alternating = float64([1.0, -1.0] * size)
    ones = torch.ones_like(inclusion)
    fixed = moments(systematic_law_in_order(inclusion), ones)[1]
    uniform = with_replacement(inclusion / size, size)
    ratio = float(alternating @ fixed @ alternating) / float(alternating @ uniform @ alternating)
    assert ratio == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_the_isotropic_trace_of_systematic_lies_below_multinomial(name: str, size: int) -> None:
    g = clean(score_set(name)).values
    p, inclusion = Proportional().probabilities(g), capped_inclusion(g, size)
    ours = isotropic_trace(systematic(inclusion), inclusion / size, g)
    theirs = isotropic_trace(with_replacement(p, size), p, g)
    closed = float((size / len(g)) ** 2 * (g.square() * (1 / inclusion - 1)).sum())
    rounding = 1e-14 * float((size * g / (len(g) * inclusion)).square().max())
    assert ours == pytest.approx(closed, rel=1e-12, abs=rounding)
    if size == 1:
        assert ours == pytest.approx(theirs, rel=1e-9)
    else:
        assert ours < 0.7 * theirs


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("n", [8, 64, 512])
@pytest.mark.parametrize("share", [0.125, 0.25, 0.5])
def test_the_isotropic_trace_lies_below_multinomial_on_a_grid(
    sigma: float, n: int, share: float
) -> None:
    g = torch.special.ndtri((torch.arange(n).double() + 0.5) / n).mul(sigma).exp()
    size = round(share * n)
    p, inclusion = Proportional().probabilities(g), capped_inclusion(g, size)
    ours = float((g.square() * (1 / inclusion - 1)).sum())
    theirs = float((g.square() * (1 / p - 1)).sum()) / size
    assert ours == pytest.approx(theirs, rel=1e-12) if size == 1 else ours < theirs
    assert ours <= theirs * (1 - (size - 1) / n) * (1 + 1e-12)
