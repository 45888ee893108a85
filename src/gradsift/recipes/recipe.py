"""A recipe is a product of parts: where candidates come from, score, distribution, draw."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from gradsift.errors import UsageError
from gradsift.gate import AbstractGate
from gradsift.sampling.corrections import AbstractCorrection
from gradsift.sampling.distributions import AbstractDistribution, Proportional
from gradsift.sampling.draws import AbstractDraw, Systematic
from gradsift.scores.base import ScoreFunction
from gradsift.scores.output_gradient import OutputGradient

Origin = Literal["loader", "iid", "pool"]


@dataclass(frozen=True)
class Recipe:
    """A method as an assembly of parts. It contains no algorithm of its own.

    Attributes:
        source: "loader" for the user's own order, "iid" for independent uniform ids, "pool" for
            candidates that are scored in the step.
        ratio: r, candidates per trained example.
        score: how much an example matters.
        distribution: scores to probabilities.
        draw: probabilities to examples, with the weights that belong to it.
        correction: a change of the weights that trades bias for variance, or None.
        gate: when the pool is used; None uses it in every step.
        reference: where the method was published.
        name: what reports call it.

    Raises:
        UsageError: for an unknown source or a ratio that is not a finite number of at least one.

    Example:
        >>> from gradsift.sampling import distributions, draws
        >>> from gradsift.scores import Loss
        >>> recipe = Recipe(
        ...     source="pool",
        ...     ratio=4,
        ...     score=Loss(),
        ...     distribution=distributions.Mixed(distributions.Power(0.5), uniform=0.1),
        ...     draw=draws.Systematic(),
        ... )
        >>> recipe.biased
        False
    """

    source: Origin = "pool"
    ratio: float = 3.0
    score: ScoreFunction = field(default_factory=OutputGradient)
    distribution: AbstractDistribution = field(default_factory=Proportional)
    draw: AbstractDraw = field(default_factory=Systematic)
    correction: AbstractCorrection | None = None
    gate: AbstractGate | None = None
    reference: str = ""
    name: str = "custom"

    def __post_init__(self) -> None:
        if self.source not in get_args(Origin):
            raise UsageError(
                f"recipe source {self.source!r} is unknown: use one of "
                f"{', '.join(map(repr, get_args(Origin)))}"
            )
        if not (math.isfinite(self.ratio) and self.ratio >= 1):
            raise UsageError(
                f"pool ratio {self.ratio} received, expected a finite number of at least 1: "
                "candidates per trained example"
            )

    @property
    def biased(self) -> bool:
        """Whether the weighted mean differs from the mean over the data, on purpose."""
        return self.draw.biased or (self.correction is not None and self.correction.biased)
