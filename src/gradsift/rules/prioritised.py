"""Proportional prioritisation: a sum tree over powers of the latest losses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import Draw, ScoreUpdate
from gradsift.rules.base import AbstractPicker, AbstractRule
from gradsift.rules.history import finite, uniforms
from gradsift.sampling.tree import SumTree


@final
@dataclass(frozen=True)
class Prioritised(AbstractRule):
    """``p_i ∝ (s_i + ε)^α``, ``w_i = (N p_i)^(−β) / max_j (N p_j)^(−β)`` over the batch.

    Draws are stratified: one in each of b equal parts of the cumulated ``p``. The exponent β grows
    linearly to one over the run. **Biased**: below β = 1 examples with high scores count too much,
    and the division by the largest weight of the batch makes steps smaller, by a factor that
    changes from batch to batch. `Recipe(source="table")` has neither.

    Deviations from the paper: the priority is a loss instead of a temporal-difference error; the
    first pass is in the loader's own order, which gives every example its first priority, instead
    of insertion at the largest one; those that it left out get the largest one then. The paper
    leaves open over what the largest weight is taken: the batch, as in most implementations.

    Args:
        alpha: exponent of the priorities, dimensionless, > 0.
        beta: exponent of the weights at the start, in [0, 1].
        epsilon: ε, in the unit of the score, > 0.

    Raises:
        UsageError: for parameters out of range, and for scores below zero.

    Reference:
        Schaul et al., *Prioritized Experience Replay*, 2016, https://arxiv.org/abs/1511.05952.

    Example:
        >>> picker = Prioritised(alpha=1.0, beta=1.0, epsilon=1e-9).open(examples=2)
        >>> picker.passed(2)
        >>> update = ScoreUpdate(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]), version=1)
        >>> picker.learn(update, torch.ones(2, dtype=torch.float64))
        >>> drawn = picker.draw(4, torch.Generator().manual_seed(0))
        >>> drawn.positions.tolist(), drawn.weights.round(decimals=3).tolist()
        ([0, 1, 1, 1], [1.0, 0.333, 0.333, 0.333])
    """

    biased: ClassVar[bool] = True
    anneals: ClassVar[bool] = True

    alpha: float = 0.6
    beta: float = 0.4
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        exponents = math.isfinite(self.alpha) and self.alpha > 0 and 0 <= self.beta <= 1
        if not (exponents and math.isfinite(self.epsilon) and self.epsilon > 0):
            raise UsageError(
                f"Prioritised received alpha={self.alpha}, beta={self.beta}, "
                f"epsilon={self.epsilon}: expected alpha > 0, beta from 0 to 1, epsilon > 0"
            )

    def open(self, examples: int) -> AbstractPicker:
        """A sum tree."""
        return _Priorities(self, examples)


@final
class _Priorities(AbstractPicker):
    """Priorities of N examples."""

    def __init__(self, rule: Prioritised, examples: int) -> None:
        super().__init__()
        self._rule = rule
        self._tree = SumTree(examples, rule.alpha)
        self._seen = np.zeros(examples, dtype=np.bool_)
        self._passed = 0
        self._filled = False

    @property
    def ready(self) -> bool:
        """After one pass in the loader's own order."""
        return self._passed >= self._tree.size

    def passed(self, examples: int) -> None:
        """Counts the first pass."""
        self._passed += examples

    def learn(self, update: ScoreUpdate, weights: Tensor) -> None:
        """New priorities, in force at the next draw; of a repeated example the last counts."""
        del weights
        ids, scores = finite(update)
        if len(scores) and scores.min() < 0:
            raise UsageError(
                f"Prioritised received the score {scores.min():g}, expected scores >= 0: use a "
                "loss that is bounded below by zero"
            )
        latest, places = np.unique(ids[::-1], return_index=True)
        self._tree.set(latest, scores[::-1][places] + self._rule.epsilon)
        self._seen[latest] = True

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """One example in each of ``size`` equal parts of the cumulated priorities."""
        self._fill()
        total = self._tree.total
        points = (np.arange(size) + uniforms(size, generator)) / size * total
        ids, lengths = self._tree.find(points, slope=1.0, floor=0.0)
        weights = (lengths.min() / lengths) ** self._beta
        return Draw(torch.from_numpy(ids), torch.from_numpy(weights), size)

    def state_dict(self) -> dict[str, Any]:
        """Priorities, and which of them were told."""
        return {
            "priorities": torch.from_numpy(self._tree.leaves.copy()),
            "seen": torch.from_numpy(self._seen.copy()),
            "passed": self._passed,
            "filled": self._filled,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sums are taken anew."""
        self._tree.leaves[:] = state["priorities"].numpy()
        self._tree.rebuild(self._rule.alpha)
        self._seen = state["seen"].numpy().copy()
        self._passed, self._filled = state["passed"], state["filled"]

    @property
    def _beta(self) -> float:
        return self._rule.beta + (1 - self._rule.beta) * (self.progress or 0.0)

    def _fill(self) -> None:
        """What the first pass left out gets the largest priority, so that it comes soon."""
        if self._filled:
            return
        self._filled = True
        unseen = np.flatnonzero(~self._seen)
        if 0 < len(unseen) < self._tree.size:
            largest = float(self._tree.leaves[self._seen].max())
            self._tree.set(unseen, np.full(len(unseen), largest))
