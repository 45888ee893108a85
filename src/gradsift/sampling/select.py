"""One selection out of candidates: scores, distribution, draw and correction in a row."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from gradsift.records import Draw
from gradsift.sampling.corrections import AbstractCorrection
from gradsift.sampling.distributions import AbstractDistribution
from gradsift.sampling.draws import AbstractDraw
from gradsift.sampling.quarantine import clean


def select(
    scores: Float[Tensor, " n"],
    distribution: AbstractDistribution,
    draw: AbstractDraw,
    size: int,
    generator: torch.Generator,
    correction: AbstractCorrection | None = None,
) -> Draw:
    """Chooses ``size`` of the scored candidates: the draw of a pool.

    ``E[(1/size) Σ_j w_j v(i_j)]`` is the mean of ``v`` over the candidates, for every ``v``,
    unless the draw or the correction is declared ``biased``. The scale of the scores does not
    matter.

    Args:
        scores: one score >= 0 per candidate, on any device. Scores that are not finite get the
            neutral score and are counted in the ``quarantined`` of the result.
        distribution: scores to probabilities.
        draw: probabilities to positions and weights.
        size: the nominal number of examples, from 1 to the number of candidates.
        generator: a CPU generator, the only source of randomness.
        correction: changes the weights afterwards, or None.

    Raises:
        UsageError: for a size outside ``1..n``, no scores, or a negative score.

    Example:
        >>> import torch
        >>> from gradsift.sampling.distributions import Mixed, Power
        >>> from gradsift.sampling.draws import Systematic
        >>> scores = torch.tensor([1.0, torch.nan, 4.0, 9.0])
        >>> proposal = Mixed(Power(0.5), uniform=0.1)
        >>> drawn = select(scores, proposal, Systematic(), 2, torch.Generator().manual_seed(0))
        >>> drawn.size, len(drawn.positions), drawn.quarantined
        (2, 2, 1)
    """
    cleaned = clean(scores)
    probabilities = distribution.probabilities(cleaned.values)
    drawn = draw.draw(probabilities, size, generator)
    weights = drawn.weights if correction is None else correction.apply(drawn.weights)
    return replace(drawn, weights=weights, quarantined=cleaned.quarantined)
