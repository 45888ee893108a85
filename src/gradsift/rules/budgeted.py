"""Budgeted training: a part of the data in each round, by what the model has doubted so far."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import ScoreUpdate
from gradsift.rules.base import AbstractPicker, AbstractRule
from gradsift.rules.history import finite, uniforms
from gradsift.rules.rounds import AbstractRounds, Chosen, check_share

Measure = Literal["p", "c"]


@final
@dataclass(frozen=True)
class Budgeted(AbstractRule):
    """A round trains on ``⌊share·N⌋`` different examples, drawn by a mean over their past visits.

    With q the mean of ``p_y`` over the visits of an example, p-SGD draws by ``1 − q``, the
    probability of its being wrong, and c-SGD by ``q(1 − q)``, how undecided it is. To each its mean
    over the data is added, so that nothing is forgotten; unseen examples get the largest value.
    Draws are successive: one example after the other, proportionally among those that are left.
    Weights are one: **biased**, a curriculum. Its score is `scores.Doubt`, ``1 − p_y``.

    Deviations from the paper: none in the choice; its learning rate falls linearly over the
    budget, which is ``--schedule linear``.

    Args:
        measure: "p" or "c".
        share: of the data in a round, in (0, 1].

    Raises:
        UsageError: for another measure or share.

    Reference:
        Chang et al., *Active Bias*, 2017, https://arxiv.org/abs/1704.07433; Arazo et al., *How
        Important is Importance Sampling for Deep Budgeted Training?*, 2021,
        https://arxiv.org/abs/2110.14283.

    Example:
        >>> picker = Budgeted("c", share=0.5).open(examples=4)
        >>> doubts = torch.tensor([0.0, 0.5, 1.0, 0.5])
        >>> picker.learn(ScoreUpdate(torch.arange(4), doubts, 1), torch.ones(4).double())
        >>> len(picker.draw(2, torch.Generator().manual_seed(0)).positions)
        2
    """

    biased: ClassVar[bool] = True

    measure: str = "p"
    share: float = 0.3

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise UsageError(f"Budgeted received measure {self.measure!r}, expected 'p' or 'c'")
        check_share("Budgeted", self.share)

    def open(self, examples: int) -> AbstractPicker:
        """Rounds of the budgeted size."""
        return _BudgetedRounds(self, examples)


def interest(doubts: Float64[np.ndarray, " N"], measure: str) -> Float64[np.ndarray, " N"]:
    """What examples are drawn by, smoothed; all one where nothing is known.

    Args:
        doubts: mean of ``1 − p_y`` over visits; nan where there was none.
        measure: "p" or "c".

    Example:
        >>> interest(np.array([0.2, 0.4, np.nan]), "p").round(6).tolist()
        [0.5, 0.7, 0.7]
    """
    seen = ~np.isnan(doubts)
    values = doubts if measure == "p" else doubts * (1 - doubts)
    if not seen.any() or not values[seen].sum() > 0:
        return np.ones(len(doubts))
    known = values[seen]
    return np.where(seen, values, known.max()) + known.mean()


def successive(
    values: Float64[np.ndarray, " N"], count: int, uniform: Float64[np.ndarray, " N"]
) -> Int64[np.ndarray, " count"]:
    """``count`` ids, drawn one after the other, each proportionally among those that are left.

    The clocks ``T_i = −ln(1 − u_i)/v_i`` are exponential with rates ``v_i``: the first to ring is
    i with probability ``v_i/Σv``, and the rest have no memory. Efraimidis & Spirakis (2006).

    Args:
        values: above zero.
        count: how many.
        uniform: independent numbers in [0, 1).

    Example:
        >>> successive(np.array([1.0, 9.0, 1.0]), 2, np.array([0.5, 0.5, 0.9])).tolist()
        [1, 0]
    """
    return np.argsort(-np.log1p(-uniform) / values, kind="stable")[:count]


@final
class _BudgetedRounds(AbstractRounds):
    """Rounds by the mean of all visits."""

    def __init__(self, rule: Budgeted, examples: int) -> None:
        super().__init__(examples)
        self._rule = rule
        self._count = max(1, int(rule.share * examples))
        self._sums = np.zeros(examples)
        self._visits = np.zeros(examples, np.int64)

    def learn(self, update: ScoreUpdate, weights: Tensor) -> None:
        """One more visit of each example."""
        del weights
        ids, doubts = finite(update)
        np.add.at(self._sums, ids, doubts)
        np.add.at(self._visits, ids, 1)

    def choose(self, generator: torch.Generator) -> Chosen:
        """Without replacement."""
        known = np.where(self._visits > 0, self._sums / np.maximum(self._visits, 1), np.nan)
        values = interest(known, self._rule.measure)
        ids = successive(values, self._count, uniforms(self.examples, generator))
        return ids, np.ones(len(ids))

    def state_dict(self) -> dict[str, Any]:
        """The round and the means."""
        sums, visits = (torch.from_numpy(part.copy()) for part in (self._sums, self._visits))
        return {**super().state_dict(), "sums": sums, "visits": visits}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on within the round."""
        super().load_state_dict(state)
        self._sums = state["sums"].numpy().copy()
        self._visits = state["visits"].numpy().copy()
