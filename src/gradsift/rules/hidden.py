"""KAKURENBO: what is learnt for certain is hidden for a round, and looked at again after it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import ScoreUpdate
from gradsift.rules.base import NOBODY, AbstractPicker, AbstractRule
from gradsift.rules.rounds import AbstractRounds, Chosen

STAGES = ((0.0, 1.0), (0.3, 0.8), (0.6, 0.6), (0.8, 0.4))
"""From which share of the run on the hidden share is multiplied by what."""


@final
@dataclass(frozen=True)
class Hidden(AbstractRule):
    """Hides up to a share F of the lowest losses, those that are predicted correctly and surely.

    Of the ``⌊F·N⌋`` examples with the lowest loss those with ``p_y >= confidence``, the predicted
    probability of their own class, are hidden in the next round; the others move back. Above one
    half that is the paper's rule, a correct prediction with this confidence: no other class can be
    the most probable. At the end of a round the hidden examples are looked at again, by a forward
    pass. All others are trained on once, in random order and with weight one, at a learning rate
    ``N/kept`` times the loader's own: `train.lr_factor`, as ``1/(1 − F)`` in the paper. F falls to
    .8, .6 and .4 of itself at 30, 60 and 80 % of the run. **Biased**: hidden examples have no part
    in the gradient.

    Its score is `scores.Doubt`, ``1 − p_y``, which orders examples as the cross-entropy does.

    Deviations from the paper: the moments at which F falls are shares of the run; the learning
    rate follows what is really hidden. Of the public code: the softmax is over classes, not over
    the batch.

    Args:
        share: F, of the data, in (0, 1).
        confidence: in (0.5, 1].

    Raises:
        UsageError: for parameters out of range.

    Reference:
        Nguyen et al., *KAKURENBO: Adaptively Hiding Samples in Deep Neural Network Training*,
        2023, https://arxiv.org/abs/2310.10102.

    Example:
        >>> picker = Hidden(share=0.5).open(examples=4)
        >>> doubts = torch.tensor([0.9, 0.1, 0.4, 0.8])
        >>> picker.learn(ScoreUpdate(torch.arange(4), doubts, 1), torch.ones(4).double())
        >>> drawn = picker.draw(3, torch.Generator().manual_seed(0))
        >>> sorted(drawn.positions.tolist()), round(picker.lr_factor, 3)
        ([0, 2, 3], 1.333)
    """

    biased: ClassVar[bool] = True
    anneals: ClassVar[bool] = True

    share: float = 0.3
    confidence: float = 0.7

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0.5 < self.confidence <= 1):
            raise UsageError(
                f"Hidden received share={self.share}, confidence={self.confidence}: expected a "
                "share in (0, 1) and a confidence in (0.5, 1]"
            )

    def open(self, examples: int) -> AbstractPicker:
        """Rounds of what is not hidden."""
        return _Hiding(self, examples)


def hidden(
    doubts: Float64[np.ndarray, " N"], share: float, confidence: float
) -> Int64[np.ndarray, " hidden"]:
    """The ids to hide, those with the lowest doubt first.

    Args:
        doubts: ``1 − p_y``; nan where it is not known, which is never hidden.
        share: of all examples, at most.
        confidence: least ``p_y``.

    Example:
        >>> hidden(np.array([0.2, 0.05, np.nan, 0.4, 0.9]), share=0.6, confidence=0.7).tolist()
        [1, 0]
    """
    lowest = np.argsort(doubts, kind="stable")[: int(share * len(doubts))]
    return lowest[doubts[lowest] <= 1 - confidence]


def stage(progress: float | None) -> float:
    """What the hidden share is multiplied by at some share of the run.

    Example:
        >>> stage(None), stage(0.3), stage(0.99)
        (1.0, 0.8, 0.4)
    """
    return next(factor for begins, factor in reversed(STAGES) if (progress or 0.0) >= begins)


@final
class _Hiding(AbstractRounds):
    """Rounds, and what is hidden in the present one."""

    def __init__(self, rule: Hidden, examples: int) -> None:
        super().__init__(examples)
        self._rule = rule
        self._hidden = np.empty(0, np.int64)
        self._stale = False

    def choose(self, generator: torch.Generator) -> Chosen:
        """All that is not hidden."""
        del generator
        share = self._rule.share * stage(self.progress)
        self._hidden = hidden(self.history.scores, share, self._rule.confidence)
        self._stale = len(self._hidden) > 0
        kept = np.setdiff1d(np.arange(self.examples), self._hidden)
        self.lr_factor = self.examples / len(kept)
        return kept, np.ones(len(kept))

    def wanted(self, size: int) -> Int64[Tensor, " wanted"]:
        """What is hidden, once, before the next draw ends the round."""
        ends = self._stale and self.left < size
        return torch.from_numpy(self._hidden.copy()) if ends else NOBODY

    def answer(self, update: ScoreUpdate) -> None:
        """What was hidden has been looked at."""
        super().answer(update)
        self._stale = False

    def state_dict(self) -> dict[str, Any]:
        """The round, and what is hidden in it."""
        hiding = {"hidden": torch.from_numpy(self._hidden.copy()), "stale": self._stale}
        return {**super().state_dict(), **hiding}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on within the round."""
        super().load_state_dict(state)
        self._hidden, self._stale = state["hidden"].numpy().copy(), state["stale"]
