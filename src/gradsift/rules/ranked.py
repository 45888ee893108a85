"""Online batch selection: probabilities that fall exponentially with the rank of the loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import Draw, ScoreUpdate
from gradsift.rules.base import NOBODY, AbstractPicker, AbstractRule
from gradsift.rules.history import History, uniforms


@final
@dataclass(frozen=True)
class RankedByLoss(AbstractRule):
    """``p_k ∝ exp(−ln(s)·k/N)`` for the example of rank k, rank 0 the largest latest loss.

    So the first is drawn s times as often as the last would be at rank N; ``s = 1`` is uniform.
    The pressure goes from ``s_0`` to ``s_1`` over the run by ``s(t) = s_0·(s_1/s_0)^t``. Batches
    are drawn independently with replacement, every example with weight one: **biased** towards
    high losses, ``E[(1/b) Σ v] = Σ p_i v_i``.

    Losses are those of the training steps; every ``recompute`` passes all of them are computed
    anew, by a forward pass over the data that counts as scoring. Examples are ranked once in a pass
    over N drawn examples and after each recomputation; unseen ones rank first.

    Deviations from the paper: it tunes s and the recomputation per problem, so the defaults here
    are a middle choice: constant s = 100, recomputed every second pass.

    Args:
        pressure: s at the start, >= 1.
        final: s at the end of the run, >= 1.
        recompute: passes between recomputations, > 0; infinity for none.

    Raises:
        UsageError: for parameters out of range.

    Reference:
        Loshchilov & Hutter, *Online Batch Selection for Faster Training of Neural Networks*,
        2016, https://arxiv.org/abs/1511.06343.

    Example:
        >>> picker = RankedByLoss(pressure=1e6, final=1e6).open(examples=2)
        >>> picker.passed(2)
        >>> update = ScoreUpdate(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]), version=1)
        >>> picker.learn(update, torch.ones(2, dtype=torch.float64))
        >>> picker.draw(4, torch.Generator().manual_seed(0)).positions.tolist()
        [1, 1, 1, 1]
    """

    biased: ClassVar[bool] = True
    anneals: ClassVar[bool] = True

    pressure: float = 100.0
    final: float = 100.0
    recompute: float = 2.0

    def __post_init__(self) -> None:
        pressures = (self.pressure, self.final)
        if not all(math.isfinite(s) and s >= 1 for s in pressures) or not self.recompute > 0:
            raise UsageError(
                f"RankedByLoss received pressure={self.pressure}, final={self.final}, "
                f"recompute={self.recompute}: expected finite pressures of at least 1 and a number "
                "of passes above 0"
            )

    def open(self, examples: int) -> AbstractPicker:
        """Ranks of N examples."""
        return _Ranks(self, examples)


def ranks_at(
    uniform: Float64[np.ndarray, " n"], pressure: float, count: int
) -> Int64[np.ndarray, " n"]:
    """Inverts the cumulated probabilities of ranks ``0 … count − 1``, in closed form.

    With ``a = s^(−1/N)`` they are ``F(k) = (1 − a^(k+1))/(1 − 1/s)``, so rank k is where
    ``a^(k+1) < 1 − u(1 − 1/s) <= a^k``.

    Args:
        uniform: numbers in [0, 1).
        pressure: s >= 1.
        count: N.

    Example:
        >>> ranks_at(np.array([0.0, 0.5, 0.99]), 1.0, 10).tolist()
        [0, 5, 9]
    """
    if pressure == 1.0:
        ranks = np.floor(uniform * count)
    else:
        ranks = np.floor(-count * np.log1p(-uniform * (1 - 1 / pressure)) / math.log(pressure))
    return np.minimum(ranks, count - 1).astype(np.int64)


@final
class _Ranks(AbstractPicker):
    """Latest losses, and their order."""

    def __init__(self, rule: RankedByLoss, examples: int) -> None:
        super().__init__()
        self._rule = rule
        self._examples = examples
        self._history = History(examples)
        self._order = np.arange(examples)
        self._until_ranked = 0
        self._until_recomputed = rule.recompute * examples

    @property
    def ready(self) -> bool:
        """After one pass in the loader's own order."""
        return self._history.complete

    def passed(self, examples: int) -> None:
        """Counts them."""
        self._history.passed += examples

    def learn(self, update: ScoreUpdate, weights: Tensor) -> None:
        """Keeps the latest losses."""
        del weights
        self._history.keep(update)

    def answer(self, update: ScoreUpdate) -> None:
        """All losses are new, and ranked at the next draw."""
        super().answer(update)
        self._until_recomputed = self._rule.recompute * self._examples
        self._until_ranked = 0

    def wanted(self, size: int) -> Int64[Tensor, " wanted"]:
        """Everything, when it is time."""
        del size
        return torch.arange(self._examples) if self._until_recomputed <= 0 else NOBODY

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Independent ranks."""
        if self._until_ranked <= 0:
            losses = self._history.scores
            self._order = np.argsort(np.where(self._history.seen, -losses, -np.inf), kind="stable")
            self._until_ranked = self._examples
        self._until_ranked -= size
        self._until_recomputed -= size
        ids = self._order[ranks_at(uniforms(size, generator), self._pressure, self._examples)]
        return Draw(torch.from_numpy(ids), torch.ones(size, dtype=torch.float64), size)

    def state_dict(self) -> dict[str, Any]:
        """Losses, order, and when they are taken anew."""
        return {
            "history": self._history.state_dict(),
            "order": torch.from_numpy(self._order.copy()),
            "until_ranked": self._until_ranked,
            "until_recomputed": self._until_recomputed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the same order."""
        self._history.load_state_dict(state["history"])
        self._order = state["order"].numpy().copy()
        self._until_ranked = state["until_ranked"]
        self._until_recomputed = state["until_recomputed"]

    @property
    def _pressure(self) -> float:
        first, last = self._rule.pressure, self._rule.final
        return first * (last / first) ** (self.progress or 0.0)
