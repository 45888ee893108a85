"""Traces of the covariance of a gradient estimator, by the formula that belongs to its draw.

Here the whole population is known: every gradient, or every norm. What one drawn batch tells is in
`sampled`. All traces are in the unit of a squared gradient.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.monitors.moments import SecondMoments


@dataclass(frozen=True)
class Traces:
    """Covariance traces of one example's weighted gradient, for independent draws.

    The mean over ``b`` independent draws has the ``b``-th part of each.

    Attributes:
        moments: second moments, uniform, drawn and ideal.
        mean_square: ``‖μ‖²``, the squared norm of the mean gradient.

    Example:
        >>> traces = Traces(SecondMoments(uniform=6.0, drawn=4.0, ideal=3.0), mean_square=2.0)
        >>> traces.uniform, traces.drawn, traces.ideal
        (4.0, 2.0, 1.0)
        >>> traces.second_moment_ratio, traces.variance_ratio
        (1.5, 2.0)
    """

    moments: SecondMoments
    mean_square: float

    @property
    def uniform(self) -> float:
        """``E g² − ‖μ‖²``."""
        return self.moments.uniform - self.mean_square

    @property
    def drawn(self) -> float:
        """``E[w² g²] − ‖μ‖²`` of the proposal in question."""
        return self.moments.drawn - self.mean_square

    @property
    def ideal(self) -> float:
        """``(E g)² − ‖μ‖²``: of probabilities in proportion to ``g``; no proposal has less."""
        return self.moments.ideal - self.mean_square

    @property
    def second_moment_ratio(self) -> float:
        """``A/D``: on the same side of one as `variance_ratio`, and closer to one."""
        return self.moments.ratio

    @property
    def variance_ratio(self) -> float:
        """``(A − ‖μ‖²)/(D − ‖μ‖²)``; nan where the draw has no variance left."""
        return self.uniform / self.drawn if self.drawn > 0 else math.nan


def population_traces(
    norms: Float[Tensor, " n"], scores: Float[Tensor, " n"], mean_square: float
) -> Traces:
    """The traces of uniform draws, of draws with ``p ∝ scores``, and of ideal ones.

    With replacement, and with the scores that are really sampled by::

        uniform = mean(g²) − ‖μ‖²,   drawn = mean(s)·mean(g²/s) − ‖μ‖²,   ideal = mean(g)² − ‖μ‖²

    Any proposal is a vector of scores: probabilities themselves, stale norms, stale norms plus a
    constant. ``s ∝ g`` gives the ideal trace; a constant, or ``s ∝ g²``, exactly the uniform one;
    a growing constant leads from stale to uniform.

    Args:
        norms: ``g``, a gradient norm for every example of the population.
        scores: ``s``, each >= 0, of which only the ratios matter.
        mean_square: ``‖μ‖²`` of the same gradients.

    Returns:
        ``drawn`` is infinite where an example that has a gradient has no chance.

    Raises:
        UsageError: for a negative score, one that is not finite, or scores that are all zero.

    Reference:
        Alain et al., "Variance reduction in SGD by distributed importance sampling" (2015), whose
        public monitor took the square root of norms that were norms already.

    Example:
        >>> import torch
        >>> norms, old = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
        >>> population_traces(norms, old, 0.0).drawn, population_traces(norms, norms, 0.0).drawn
        (5.0, 4.0)
        >>> population_traces(norms, norms + 1.0, 0.0).drawn
        4.125
    """
    g, s = _known(norms), _known(scores)
    if not (bool((s >= 0).all()) and 0 < float(s.sum()) < math.inf):
        raise UsageError(
            "population_traces received scores that are negative, not finite or all zero, "
            "expected what is sampled by: clean them first"
        )
    return Traces(
        SecondMoments(
            uniform=float(g.square().mean()),
            drawn=float(s.mean() * _square_over(g, s).mean()),
            ideal=float(g.mean()) ** 2,
        ),
        mean_square,
    )


def pool_trace(
    gradients: Float[Tensor, "n d"], scores: Float[Tensor, " n"], pool_size: int, size: int
) -> float:
    """Of the published two-step scheme with any scores, exactly.

    ``B`` candidates are drawn uniformly with replacement, then ``b`` of them with replacement by
    ``p ∝ s``, with weights ``1/(B p)``. With ``D = mean(s)·mean(g²/s)``, ``m2 = mean(g²)`` and
    ``v = m2 − ‖μ‖²``::

        trace = v/B + (1/b) · [(1 − 1/B)·D + m2/B − ‖μ‖² − v/B]

    The first term is the pool's own: without it one measures the draw from the whole population.
    Candidates whose score is zero may occur only where their gradient is zero too.

    Raises:
        UsageError: for sizes below 1, or scores that `population_traces` refuses.

    Example:
        >>> import torch
        >>> gradients = torch.tensor([[1.0], [-1.0]])
        >>> pool_trace(gradients, torch.ones(2), pool_size=4, size=2)
        0.625
    """
    if pool_size < 1 or size < 1:
        raise UsageError(
            f"received pool_size {pool_size} and size {size}, expected at least one of each"
        )
    values = _known(gradients)
    if not bool(values.any()):
        return 0.0
    mean_square = float(values.mean(0).square().sum())
    moments = population_traces(values.norm(dim=1), scores, mean_square).moments
    v = moments.uniform - mean_square
    second = (1 - 1 / pool_size) * moments.drawn + moments.uniform / pool_size
    return v / pool_size + (second - mean_square - v / pool_size) / size


def without_replacement_trace(
    gradients: Float[Tensor, "n d"], inclusion: Float[Tensor, " n"]
) -> float:
    """Hájek's approximation for a draw of fixed size without replacement.

    With ``z_i = g_i/(N π_i)`` and ``c = Σ π(1 − π) z / Σ π(1 − π)`` it is
    ``Σ π(1 − π) ‖z − c‖²``: what is sure to be drawn adds nothing. Exact for a simple random
    sample up to a factor ``(N − 1)/N``. The formula for draws with replacement is 1.3 to 1.55
    times larger where a third of a population is drawn.

    Args:
        gradients: of the whole population of ``N``.
        inclusion: ``π``, in (0, 1], with the size of the draw as its sum.

    Raises:
        UsageError: for probabilities outside (0, 1].

    Reference:
        Hájek, "Asymptotic theory of rejective sampling with varying probabilities from a finite
        population" (1964).

    Example:
        >>> import torch
        >>> gradients = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
        >>> without_replacement_trace(gradients, torch.full((4,), 0.5))
        0.25
    """
    g, pi = _known(gradients), _known(inclusion)
    if not bool(((pi > 0) & (pi <= 1)).all()):
        raise UsageError("received inclusion probabilities outside (0, 1]: see capped_inclusion")
    z = g / (len(pi) * pi).unsqueeze(1)
    return _spread(z, pi * (1 - pi))


def stratified_trace(
    gradients: Float[Tensor, "n d"], probabilities: Float[Tensor, " n"], size: int
) -> float:
    """Of one draw in each of ``b`` equal slots of the cumulated ``p``, exactly.

    Slots are independent, so the trace is ``(1/b²) Σ_k (E_k‖w g‖² − ‖E_k[w g]‖²)`` with the law of
    slot ``k``, which is the overlap of the slot with each example's stretch of the cumulated
    ``p``. It is at most that of ``b`` independent draws, in every order.

    Args:
        gradients: in the order of the cumulated probabilities.
        probabilities: ``p > 0``; they are divided by their sum.
        size: ``b``.

    Raises:
        UsageError: for a size below 1 or a probability that is not above zero.

    Example:
        >>> import torch
        >>> gradients = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
        >>> stratified_trace(gradients, torch.ones(4), 1), stratified_trace(gradients,
        ...     torch.ones(4), 2)
        (1.0, 0.0)
    """
    g, p = _known(gradients), _known(probabilities)
    if size < 1 or not bool((p > 0).all()):
        raise UsageError(
            f"received size {size} and a smallest probability {float(p.min())}, expected a size "
            "of at least 1 and probabilities above zero"
        )
    p = p / p.sum()
    weighted = g / (len(p) * p).unsqueeze(1)
    ends = p.cumsum(0)
    total = 0.0
    for slot in range(size):
        low, high = slot / size, (slot + 1) / size
        overlap = (ends.clamp(max=high) - (ends - p).clamp(min=low)).clamp(min=0.0)
        inside = overlap > 0
        total += _spread(weighted[inside], overlap[inside] / overlap[inside].sum())
    return total / size**2


def _spread(values: Float64[Tensor, "n d"], masses: Float64[Tensor, " n"]) -> float:
    """``Σ m ‖v − c‖²`` around ``c = Σ m v/Σ m``; zero where there is no mass."""
    mass = masses.sum()
    if not float(mass) > 0:
        return 0.0
    centre = (masses.unsqueeze(1) * values).sum(0) / mass
    return float((masses * (values - centre).square().sum(1)).sum())


def _square_over(g: Float64[Tensor, " n"], s: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """``g²/s``, zero where both are zero."""
    quotient = g.square() / torch.where(s > 0, s, 1.0)
    impossible = torch.where(g > 0, math.inf, 0.0).to(g)
    return torch.where(s > 0, quotient, impossible)


def _known(values: Tensor) -> Tensor:
    return values.detach().double().cpu()
