"""The latest score of every example, as a plain array: O(N) to look at, for rounds and ranks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from gradsift.records import ScoreUpdate


class History:
    """Latest scores and how many examples were trained on.

    A score that is not finite never replaces one that is: one broken loss cannot spoil a mean.

    Args:
        examples: N.

    Attributes:
        scores: of all examples; nan where there is none yet.
        passed: examples trained on so far, repeated ones too.

    Example:
        >>> history = History(3)
        >>> ids = torch.tensor([2, 0, 2])
        >>> history.keep(ScoreUpdate(ids, torch.tensor([1.0, torch.nan, 3.0]), version=1))
        >>> history.scores.tolist(), history.seen.tolist()
        ([nan, nan, 3.0], [False, False, True])
    """

    def __init__(self, examples: int) -> None:
        self.scores: Float64[np.ndarray, " N"] = np.full(examples, np.nan)
        self.passed = 0

    @property
    def seen(self) -> np.ndarray:
        """Which examples have a score."""
        return ~np.isnan(self.scores)

    @property
    def complete(self) -> bool:
        """Whether as many examples were trained on as there are."""
        return self.passed >= len(self.scores)

    def keep(self, update: ScoreUpdate) -> None:
        """Replaces the scores of some examples; of a repeated one the last counts."""
        ids, scores = finite(update)
        self.scores[ids] = scores

    def state_dict(self) -> dict[str, Any]:
        """A copy."""
        return {"scores": torch.from_numpy(self.scores.copy()), "passed": self.passed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another history of the same data."""
        self.scores = state["scores"].numpy().copy()
        self.passed = state["passed"]


def finite(
    update: ScoreUpdate,
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """The ids and scores of an update that are finite, in its order.

    Example:
        >>> update = ScoreUpdate(torch.tensor([4, 7]), torch.tensor([torch.inf, 2.0]), version=0)
        >>> finite(update)
        (array([7]), array([2.]))
    """
    ids = update.index.detach().cpu().numpy()
    scores = update.score.detach().cpu().double().numpy()
    kept = np.isfinite(scores)
    return ids[kept], scores[kept]


def uniforms(count: int, generator: torch.Generator) -> Float64[np.ndarray, " count"]:
    """Independent uniform numbers in [0, 1)."""
    return torch.rand(count, dtype=torch.float64, generator=generator).numpy()
