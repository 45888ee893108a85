"""Static importance: probabilities from the data alone, and draws made ahead of the steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import ScoreUpdate
from gradsift.rules.base import NOBODY, AbstractPicker, AbstractRule
from gradsift.rules.history import uniforms
from gradsift.rules.rounds import AbstractRounds, Chosen
from gradsift.sampling.distributions import Power
from gradsift.sampling.positions import multinomial_positions


@final
@dataclass(frozen=True)
class Fixed(AbstractRule):
    """``p_i ∝ L_i^a`` with ``L_i`` a bound that is known beforehand, such as ``‖x_i‖``.

    For a Lipschitz loss of a linear model the gradient norm is at most a constant times ``‖x_i‖``,
    for a smooth one the curvature is at most one times ``‖x_i‖²``. The scores of all examples are
    taken once, after the first step; then the ids of a whole pass are drawn ahead, independently
    and with replacement, with weights ``1/(N p_i)``: **unbiased**. No step costs more than a
    uniform one, and nothing adapts. The gain to expect is ``N Σ L² / (Σ L)²``, one for equal norms.

    Deviations from the papers: a score of zero is raised to a millionth of the mean, as everywhere
    here; steps until the scores are known are the loader's own; one process draws from one
    distribution, not a thread from its own part of the data.

    Args:
        power: a, dimensionless, > 0.

    Raises:
        UsageError: for any other power.

    Reference:
        Zhao & Zhang, *Stochastic Optimization with Importance Sampling*, 2015,
        https://arxiv.org/abs/1401.2753; Wang et al., IS-ASGD, 2017,
        https://arxiv.org/abs/1706.08210.

    Example:
        >>> picker = Fixed().open(examples=2)
        >>> picker.answer(ScoreUpdate(picker.wanted(4), torch.tensor([1.0, 3.0]), version=1))
        >>> drawn = picker.draw(4, torch.Generator().manual_seed(0))
        >>> sorted(set(drawn.weights.round(decimals=3).tolist()))
        [0.667, 2.0]
    """

    biased: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    power: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and self.power > 0):
            raise UsageError(f"Fixed received power {self.power}, expected a number above 0")

    def open(self, examples: int) -> AbstractPicker:
        """Passes that are drawn ahead."""
        return _Ahead(self, examples)


@final
class _Ahead(AbstractRounds):
    """A pass is a round in which examples may come several times."""

    def __init__(self, rule: Fixed, examples: int) -> None:
        super().__init__(examples)
        self._law = Power(rule.power)
        self._probabilities: Tensor | None = None

    @property
    def ready(self) -> bool:
        """Once all scores are known."""
        return self._probabilities is not None

    def wanted(self, size: int) -> Int64[Tensor, " wanted"]:
        """All of them, once."""
        del size
        return torch.arange(self.examples) if self._probabilities is None else NOBODY

    def answer(self, update: ScoreUpdate) -> None:
        """Fixes the probabilities."""
        scores = torch.zeros(self.examples, dtype=torch.float64)
        scores[update.index] = update.score.double()
        self._probabilities = self._law.probabilities(scores)

    def choose(self, generator: torch.Generator) -> Chosen:
        """N independent draws."""
        assert self._probabilities is not None
        p = self._probabilities
        ids = multinomial_positions(p, torch.from_numpy(uniforms(self.examples, generator)))
        return ids.numpy(), (1 / (self.examples * p[ids])).numpy()

    def state_dict(self) -> dict[str, Any]:
        """The probabilities too."""
        known = None if self._probabilities is None else self._probabilities.clone()
        return {**super().state_dict(), "probabilities": known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The probabilities too."""
        super().load_state_dict(state)
        self._probabilities = state["probabilities"]
