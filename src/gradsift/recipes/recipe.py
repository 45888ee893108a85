"""A recipe is a product of parts: where candidates come from, score, distribution, draw."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from gradsift.errors import UsageError
from gradsift.gate import AbstractGate, MeasuredGate
from gradsift.recipes.search import Search
from gradsift.sampling.capping import check_cap
from gradsift.sampling.corrections import AbstractCorrection
from gradsift.sampling.distributions import AbstractDistribution, Proportional
from gradsift.sampling.draws import AbstractDraw, Systematic
from gradsift.scores.base import AbstractOutputScore, ScoreFunction
from gradsift.scores.gradient_norm import GradientNorm
from gradsift.scores.output_gradient import OutputGradient

Origin = Literal["loader", "iid", "pool", "table", "auto", "engine"]

REMEMBERED = ("table", "auto")
"""Sources that keep the scores of training steps in a table."""


@dataclass(frozen=True)
class Recipe:
    """A method as an assembly of parts. It contains no algorithm of its own.

    Attributes:
        source: "loader" for the user's own order, "iid" for independent uniform ids, "pool" for
            candidates that are scored in the step, "table" for ids drawn by the scores of earlier
            steps, "auto" for whichever of them pays, "engine" for ids drawn by scores that an
            engine measures beside the training.
        ratio: r, candidates per trained example.
        score: how much an example matters.
        distribution: scores to probabilities.
        draw: probabilities to examples, with the weights that belong to it.
        correction: a change of the weights that trades bias for variance, or None.
        gate: when scores are used; None uses them in every step. "auto" has a `MeasuredGate`.
        smoothing: of a table: the share of an example's old score that is kept beside a new one.
        cap: of a table: quantile of recent fresh scores above which a score counts as much as the
            one there, in (0, 1). It bounds what a wrong label does to the proposal, and biases
            nothing. With the source "auto" the table is then the only offer. None for no cap.
        search: of the source "engine", and of no other: how its scores are used.
        reference: where the method was published.
        name: what reports call it.

    Raises:
        UsageError: for an unknown source, a ratio that is not a finite number of at least one, or
            a table of scores that a training step does not give away, or a cap without a table.

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
    gate: AbstractGate | MeasuredGate | None = None
    smoothing: float = 0.5
    cap: float | None = None
    search: Search | None = None
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

        given_away = (AbstractOutputScore, GradientNorm)[: 1 + (self.source == "table")]
        if self.source in REMEMBERED and not isinstance(self.score, given_away):
            raise UsageError(
                f"recipe source {self.source!r} received the score {self.score!r}, expected one "
                "that the outputs of a training step determine, such as OutputGradient() or "
                "Loss(), or for a table GradientNorm(), which its backward pass tells"
            )
        if (self.source == "engine") != (self.search is not None):
            raise UsageError(
                f"recipe source {self.source!r} received search={self.search!r}: a Search belongs "
                "to the source 'engine', and to no other"
            )
        if (self.source == "auto") != isinstance(self.gate, MeasuredGate):
            raise UsageError(
                f"recipe source {self.source!r} received the gate {self.gate!r}: a MeasuredGate "
                "belongs to the source 'auto', and to no other"
            )
        check_cap(self.cap)
        if self.cap is not None and self.source not in REMEMBERED:
            raise UsageError(
                f"cap {self.cap} received with recipe {self.name!r}, which keeps no table of "
                "scores: use recipe 'auto' or 'table', or leave the cap out"
            )

    @property
    def scored(self) -> bool:
        """Whether examples are chosen by score at all."""
        return self.source not in ("loader", "iid")

    @property
    def biased(self) -> bool:
        """Whether the weighted mean differs from the mean over the data, on purpose."""
        if self.search is not None and self.search.stale == "filter":
            return True
        return self.draw.biased or (self.correction is not None and self.correction.biased)
