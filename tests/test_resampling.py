"""The soft max-loss of 2017, by enumeration of presamples and draws, and what each part changes."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from enumeration import float64, multinomial_law
from gradsift.errors import UsageError
from gradsift.sampling.positions import multinomial_positions
from gradsift.sampling.resampling import LEAST, MOMENTUM, Resampler, Resampling
from gradsift.sampling.smoothing import AbstractSmoothing, AddConstant, AddShare, TakePower

N, CANDIDATES, SIZE = 4, 2, 2
EXPONENTS = (1.0, 0.5, 0.0, -1.0)
PAST = float64([0.4, 2.0, 1.1])
"""Scores of an earlier presample: of no importance, but fixed."""

A = float64([1.0, 0.5, -2.0, 0.3, 0.2, 3.0, 0.1, 0.1]).reshape(N, 2)
Y = float64([0.3, -2.0, 1.0, 0.7])
THETA = float64([0.4, -0.2])


def losses(theta: Tensor) -> Tensor:
    """Four squared errors, from 0.2 to 5.6."""
    return (A @ theta - Y).square() + 0.1


def gradient(objective: Callable[[Tensor], Tensor]) -> Tensor:
    theta = THETA.clone().requires_grad_()
    (found,) = torch.autograd.grad(objective(losses(theta)), theta)
    return found


def each_gradient() -> Tensor:
    """``∇L_i`` as rows."""
    return torch.stack([gradient(lambda loss, i=i: loss[i]) for i in range(N)])


def informed(resampling: Resampling) -> Resampler:
    """A resampler that has a past: an earlier presample, and a survey of everyone's losses."""
    resampler = Resampler(resampling)
    resampler.observe(PAST)
    resampler.survey(losses(THETA))
    return resampler


def expectation(resampler: Resampler, scores: Tensor, values: Tensor) -> Tensor:
    """``E[(1/b) Σ_j w_j v_j]`` over all presamples with replacement and all draws from each."""
    total = torch.zeros_like(values[0])
    for presample in itertools.product(range(N), repeat=CANDIDATES):
        ids = torch.tensor(presample)
        smoothed = resampler.smoothed(scores[ids])
        law = multinomial_law(smoothed / smoothed.sum())
        for drawn in itertools.product(range(CANDIDATES), repeat=SIZE):
            positions = torch.tensor(drawn)
            weights = resampler.weights(smoothed, positions)
            chance = float(law[positions].prod()) / N**CANDIDATES
            total += chance * (weights[:, None] * values[ids[positions]]).sum(0) / SIZE
    return total


def known(resampler: Resampler) -> float:
    normaliser = resampler.normaliser
    assert normaliser is not None
    return normaliser


@pytest.mark.parametrize("normaliser", ["previous", "population"])
@pytest.mark.parametrize("k", EXPONENTS)
def test_exact_losses_descend_on_the_soft_max_loss(k: float, normaliser: str) -> None:
    """The gradient of ``mean(L^(2−k))/(2−k)``, over the normaliser."""
    resampler = informed(Resampling(exponent=k, normaliser=normaliser))
    found = expectation(resampler, losses(THETA), each_gradient())
    expected = gradient(lambda loss: (loss ** (2 - k)).mean() / (2 - k))
    torch.testing.assert_close(found, expected / known(resampler), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("k", EXPONENTS)
def test_a_predicted_loss_changes_the_objective_to_what_is_stated(k: float) -> None:
    predicted = float64([0.9, 1.0, 0.2, 3.0])
    resampler = informed(Resampling(exponent=k))
    found = expectation(resampler, predicted, each_gradient())
    expected = (predicted ** (1 - k))[:, None] * each_gradient() / known(resampler)
    torch.testing.assert_close(found, expected.mean(0), rtol=1e-12, atol=1e-14)
    unbiased = gradient(lambda loss: loss.mean())
    assert torch.allclose(found, unbiased, rtol=1e-12) == (k == 1)


def level_of_past() -> float:
    return MOMENTUM * 1.0 + (1 - MOMENTUM) * float(PAST.mean())


SMOOTHINGS: list[tuple[AbstractSmoothing, Callable[[Tensor], Tensor]]] = [
    (AddConstant(0.7), lambda loss: loss + 0.7),
    (AddShare(0.5), lambda loss: loss + 0.5 * level_of_past()),
    (TakePower(0.3), lambda loss: loss**0.3),
]


@pytest.mark.parametrize(("smoothing", "smooth"), SMOOTHINGS)
@pytest.mark.parametrize("k", EXPONENTS)
def test_smoothing_changes_the_objective_to_what_is_stated(
    k: float, smoothing: AbstractSmoothing, smooth: Callable[[Tensor], Tensor]
) -> None:
    """``mean(smooth(L)^(1−k) ∇L)``; with a constant the gradient of ``(L + a)^(2−k)/(2−k)``."""
    resampler = informed(Resampling(exponent=k, smoothing=smoothing))
    found = expectation(resampler, losses(THETA), each_gradient())
    factors = smooth(losses(THETA)) ** (1 - k)
    expected = (factors[:, None] * each_gradient()).mean(0) / known(resampler)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    if not isinstance(smoothing, TakePower):
        soft = gradient(lambda loss: (smooth(loss) ** (2 - k)).mean() / (2 - k))
        torch.testing.assert_close(found, soft / known(resampler), rtol=1e-12, atol=1e-14)


def coefficients(resampling: Resampling) -> Tensor:
    """What each example counts for, over what it should: equal numbers where the claim holds."""
    found = expectation(informed(resampling), losses(THETA), torch.eye(N, dtype=torch.float64))
    return found / losses(THETA) ** (1 - resampling.exponent)


@pytest.mark.parametrize("k", EXPONENTS)
def test_the_normaliser_of_the_authors_code_breaks_it(k: float) -> None:
    """It divides by a mean over the batch, which is large exactly where large losses were drawn."""
    spread = coefficients(Resampling(exponent=k, normaliser="batch"))
    even = coefficients(Resampling(exponent=k))
    assert float(even.max() / even.min()) == pytest.approx(1, rel=1e-12)
    if k == 1:
        assert float(spread.max() / spread.min()) == pytest.approx(1, rel=1e-12)
    else:
        assert float(spread.max() / spread.min()) > 1.2
        assert spread.argmin() == losses(THETA).argmax()


@pytest.mark.parametrize("normaliser", ["previous", "population", "batch"])
def test_with_k_of_one_everything_is_unbiased(normaliser: str) -> None:
    resampler = informed(Resampling(1.0, normaliser, AddShare(0.5)))
    found = expectation(resampler, float64([9.0, 0.1, 0.4, 2.0]), torch.eye(N).double())
    torch.testing.assert_close(found, torch.full((N,), 1 / N).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", EXPONENTS)
def test_the_first_draw_knows_no_normaliser_and_is_unbiased(k: float) -> None:
    resampler = Resampler(Resampling(exponent=k))
    assert resampler.normaliser is None
    found = expectation(resampler, losses(THETA), torch.eye(N).double())
    torch.testing.assert_close(found, torch.full((N,), 1 / N).double(), rtol=1e-12, atol=0)


def test_weights_of_the_batch_normaliser_are_those_of_the_authors_formula() -> None:
    """``w^k · Σ w s/Σ w^k s`` with ``w = mean(s)/s``."""
    scores, k = float64([0.5, 2.0, 1.0, 7.0]), 0.3
    positions = torch.tensor([3, 1, 3])
    inverse = scores.mean() / scores[positions]
    top = (inverse * scores[positions]).sum()
    expected = inverse**k * top / (inverse**k * scores[positions]).sum()
    found = Resampler(Resampling(k, "batch")).weights(scores, positions)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", EXPONENTS)
def test_the_surveyed_normaliser_keeps_the_mean_of_weighted_scores(k: float) -> None:
    """Over the population as the presample: ``E[w s] = mean(s)``, as without bias."""
    scores = float64([0.5, 2.0, 1.0, 7.0])
    resampler = Resampler(Resampling(k, "population"))
    resampler.survey(scores)
    weights = resampler.weights(scores, torch.arange(4))
    mean = float((scores / scores.sum() * weights * scores).sum())
    assert mean == pytest.approx(float(scores.mean()), rel=1e-12)


def test_a_draw_uses_the_past_alone_and_then_learns() -> None:
    """Against a loop that keeps both moving averages by hand."""
    resampler = Resampler(Resampling(exponent=0.5, smoothing=AddShare(0.5)))
    level, top, bottom = 1.0, 0.0, 0.0
    generator, twin = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for step in range(5):
        scores = torch.rand(6, generator=torch.Generator().manual_seed(step)).double() * (1 + step)
        drawn = resampler.draw(scores, 3, generator)
        smoothed = [s + 0.5 * level for s in scores.tolist()]
        total = math.fsum(smoothed)
        uniforms = torch.rand(3, dtype=torch.float64, generator=twin)
        positions = multinomial_positions(float64([s / total for s in smoothed]), uniforms)
        assert torch.equal(drawn.positions, positions)
        c = top / bottom if step else None
        for position, weight in zip(positions.tolist(), drawn.weights.tolist(), strict=True):
            s = smoothed[position]
            unbiased = total / 6 / s
            assert weight == pytest.approx(unbiased if c is None else unbiased * s**0.5 / c)
        level_before, level = level, MOMENTUM * level + (1 - MOMENTUM) * float(scores.mean())
        seen = [s + 0.5 * level_before for s in scores.tolist()]
        top = MOMENTUM * top + (1 - MOMENTUM) * math.fsum(s**1.5 for s in seen) / 6
        bottom = MOMENTUM * bottom + (1 - MOMENTUM) * math.fsum(seen) / 6
        assert known(resampler) == pytest.approx(top / bottom, rel=1e-12)


def test_it_goes_on_from_its_state() -> None:
    whole, first, second = (Resampler(Resampling(smoothing=AddShare(0.5))) for _ in range(3))
    one, other = (torch.Generator().manual_seed(1) for _ in range(2))
    expected = [whole.draw(float64([1, 2, k]), 2, one).weights.tolist() for k in range(1, 9)]
    found = [first.draw(float64([1, 2, k]), 2, other).weights.tolist() for k in range(1, 5)]
    second.load_state_dict(first.state_dict())
    found += [second.draw(float64([1, 2, k]), 2, other).weights.tolist() for k in range(5, 9)]
    assert found == expected


@given(
    scores=st.lists(
        st.one_of(st.floats(0, 1e12), st.just(math.nan), st.just(math.inf)), min_size=3, max_size=8
    ),
    k=st.sampled_from([1.0, 0.5, -2.0]),
    smoothing=st.sampled_from([None, AddConstant(0.0), AddShare(0.5), TakePower(0.0)]),
    normaliser=st.sampled_from(["previous", "population", "batch"]),
)
def test_weights_are_finite_whatever_is_drawn_by(
    scores: list[float], k: float, smoothing: AbstractSmoothing | None, normaliser: str
) -> None:
    resampler = Resampler(Resampling(k, normaliser, smoothing))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        drawn = resampler.draw(float64(scores), 3, generator)
        resampler.survey(float64(scores))
        assert bool((drawn.weights >= 0).all())
        assert bool(drawn.weights.isfinite().all())
        assert drawn.quarantined == sum(not math.isfinite(score) for score in scores)


@pytest.mark.parametrize("exponent", [1.01, LEAST - 1, math.nan, -math.inf])
def test_exponents_out_of_range_are_refused(exponent: float) -> None:
    with pytest.raises(UsageError, match="expected -20 to 1"):
        Resampling(exponent=exponent)


def test_other_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="normaliser 'mean', expected one of previous, pop"):
        Resampling(normaliser="mean")
    for make in (AddConstant, AddShare):
        for value in (-0.1, math.nan, math.inf):
            with pytest.raises(UsageError, match=f"{make.__name__} received"):
                make(value)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="TakePower received exponent"):
            TakePower(value)
    with pytest.raises(UsageError, match="cannot draw 3 of 2"):
        Resampler(Resampling()).draw(torch.ones(2), 3, torch.Generator())
