"""A recipe is a product of parts: where candidates come from, score, distribution, draw."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from gradsift.errors import UsageError
from gradsift.fitting.held_out import Holdout
from gradsift.gate import AbstractGate, MeasuredGate
from gradsift.predictor.settings import Forecasting, Prediction
from gradsift.recipes.search import Search
from gradsift.rules.base import AbstractRule
from gradsift.sampling.capping import check_cap
from gradsift.sampling.corrections import AbstractCorrection
from gradsift.sampling.distributions import AbstractDistribution, Proportional
from gradsift.sampling.draws import AbstractDraw, Multinomial, Stratified, Systematic
from gradsift.sampling.resampling import Resampling
from gradsift.scores.base import AbstractOutputScore, ScoreFunction
from gradsift.scores.gradient_norm import GradientNorm
from gradsift.scores.loss import Loss
from gradsift.scores.output_gradient import OutputGradient

Origin = Literal["loader", "iid", "pool", "table", "auto", "engine", "history", "predicted"]

REMEMBERED = ("table", "auto", "predicted")
"""Sources that keep the scores of training steps."""


@dataclass(frozen=True)
class Recipe:
    """A method as an assembly of parts. It contains no algorithm of its own.

    Attributes:
        source: "loader" for the user's own order, "iid" for independent uniform ids, "pool" for
            candidates that are scored in the step, "table" for ids drawn by the scores of earlier
            steps, "auto" for whichever of them pays, "engine" for ids drawn by scores that an
            engine measures beside the training, "history" for ids that a rule picks by the latest
            scores of all examples, "predicted" for ids drawn by predicted scores.
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
        finish: of the source "auto", and of no other: the last share of a run that is in the user's
            own order again, where the loop says by ``train.policy.progress`` how far it is.
        search: of the source "engine", and of no other: how its scores are used.
        rule: of the source "history", and of no other: who picks the ids and their weights.
        holdout: of a pool without a gate: how to fit the losses that its scores, which have to be
            losses, are set against.
        prediction: of the source "predicted", and of no other: how scores are predicted.
        resampling: of the source "predicted", and of a "pool" that is weighted as in 2017; it
            takes the place of distribution and correction.
        forecast: of a "table" or "auto": forecasts today's scores, and draws by them while that
            is measured to be better than the scores as they are. None never does.
        reference: where the method was published.
        name: what reports call it.

    Raises:
        UsageError: for an unknown source, a ratio that is not a finite number of at least one, a
            table or a rule with scores that a training step does not give away, a cap without a
            table, a finish that is no share or of another source, or parts that do not belong
            together.

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
    finish: float = 0.0
    search: Search | None = None
    rule: AbstractRule | None = None
    holdout: Holdout | None = None
    prediction: Prediction | None = None
    resampling: Resampling | None = None
    forecast: Forecasting | None = None
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
        _check_owners(self)
        _check_predictors(self)
        _check_rule(self)
        _check_holdout(self)
        _check_cap(self)
        _check_finish(self)

    @property
    def scored(self) -> bool:
        """Whether examples are chosen by score at all."""
        return self.source not in ("loader", "iid")

    @property
    def biased(self) -> bool:
        """Whether the weighted mean differs from the mean over the data, on purpose."""
        if self.rule is not None:
            return self.rule.biased
        if self.search is not None and self.search.stale == "filter":
            return True
        if self.resampling is not None and self.resampling.biased:
            return True
        return self.draw.biased or (self.correction is not None and self.correction.biased)


def _check_predictors(recipe: Recipe) -> None:
    source, resampling = recipe.source, recipe.resampling
    if (source == "predicted") != (recipe.prediction is not None):
        raise UsageError(
            f"recipe source {source!r} received prediction={recipe.prediction!r}: a Prediction "
            "belongs to the source 'predicted', and to no other"
        )
    if recipe.forecast is not None and source not in ("table", "auto"):
        raise UsageError(
            f"recipe source {source!r} received a forecast, which belongs to the sources 'table' "
            "and 'auto': leave it out"
        )
    if recipe.forecast is not None and source == "table" and recipe.draw != Stratified():
        raise UsageError(
            f"a forecast received with the draw {recipe.draw!r}, expected Stratified(): forecasts "
            "are drawn from by it alone"
        )
    needed, allowed = source == "predicted", source in ("predicted", "pool")
    if (needed and resampling is None) or (resampling is not None and not allowed):
        raise UsageError(
            f"recipe source {source!r} received resampling={resampling!r}: 'predicted' needs a "
            "Resampling, 'pool' may have one, and no other does"
        )
    if resampling is not None:
        _check_resampled(recipe, resampling)


def _check_resampled(recipe: Recipe, resampling: Resampling) -> None:
    parts = (recipe.distribution, recipe.draw, recipe.correction, recipe.gate)
    if parts != (Proportional(), Multinomial(), None, None):
        raise UsageError(
            f"a recipe with a resampling received {', '.join(map(str, parts))}, expected "
            "Proportional(), Multinomial(), no correction and no gate: smoothing and exponent are "
            "those of the resampling"
        )
    if recipe.source == "pool" and resampling.normaliser == "population":
        raise UsageError(
            "a pool received the normaliser 'population', whose losses it does not know: expected "
            "'previous' or 'batch'"
        )


def _check_owners(recipe: Recipe) -> None:
    """Parts that belong to one source, and to no other."""
    source = recipe.source
    if (source == "engine") != (recipe.search is not None):
        raise UsageError(
            f"recipe source {source!r} received search={recipe.search!r}: a Search belongs "
            "to the source 'engine', and to no other"
        )
    if (source == "auto") != isinstance(recipe.gate, MeasuredGate):
        raise UsageError(
            f"recipe source {source!r} received the gate {recipe.gate!r}: a MeasuredGate "
            "belongs to the source 'auto', and to no other"
        )
    if (source == "history") != (recipe.rule is not None):
        raise UsageError(
            f"recipe source {source!r} received rule={recipe.rule!r}: a rule belongs to the "
            "source 'history', and to no other"
        )


def _check_rule(recipe: Recipe) -> None:
    """A rule that learns needs a score that its steps can give away."""
    learns = recipe.rule is not None and recipe.rule.learns
    if learns and not isinstance(recipe.score, AbstractOutputScore):
        raise UsageError(
            f"recipe source 'history' received the score {recipe.score!r}, expected one that the "
            "outputs of a training step determine, such as Loss() or OutputGradient()"
        )


def _check_holdout(recipe: Recipe) -> None:
    """Hold-out losses are set against the losses of a pool that is always there."""
    alone = recipe.source == "pool" and recipe.gate is None and isinstance(recipe.score, Loss)
    if recipe.holdout is not None and not alone:
        raise UsageError(
            f"recipe source {recipe.source!r} received holdout={recipe.holdout!r}: hold-out losses "
            "belong to a pool without a gate whose score is Loss()"
        )


def _check_cap(recipe: Recipe) -> None:
    check_cap(recipe.cap)
    if recipe.cap is not None and recipe.source not in ("table", "auto"):
        raise UsageError(
            f"cap {recipe.cap} received with recipe {recipe.name!r}, which keeps no table of "
            "scores: use recipe 'auto' or 'table', or leave the cap out"
        )


def _check_finish(recipe: Recipe) -> None:
    if not 0 <= recipe.finish <= 1:
        raise UsageError(
            f"finish {recipe.finish} received, expected a share of the run, from 0 to 1"
        )
    if recipe.finish and recipe.source != "auto":
        raise UsageError(
            f"finish {recipe.finish} received with recipe {recipe.name!r}, which does not go back "
            "to your own order: use recipe 'auto', or leave the finish out"
        )
