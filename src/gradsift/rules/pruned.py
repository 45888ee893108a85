"""InfoBatch: a part of the easy examples is left out, and the rest of them counts for it."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from jaxtyping import Float64

from gradsift.errors import UsageError
from gradsift.rules.base import AbstractPicker, AbstractRule
from gradsift.rules.history import uniforms
from gradsift.rules.rounds import AbstractRounds, Chosen


@final
@dataclass(frozen=True)
class InfoBatch(AbstractRule):
    """Of n examples with a latest loss below the mean, a round leaves out ``⌊r·n⌋`` at random.

    The others of these n weigh ``n/(n − ⌊r·n⌋)``, about ``1/(1 − r)``, and all examples at or above
    the mean weigh one, so over a round ``E[Σ_kept w v] = Σ_all v`` exactly: unbiased for the *sum*
    of a round. From the share ``until`` of the run on, rounds are whole (annealing).

    **Biased** for a step: its weighted mean is ``N/kept`` times the mean over the data, in
    expectation, because a round has fewer steps and the same sum. With r = 0.5 that is 1.3 to 1.7:
    the steps are so much larger than the loader's own. ``train.gate`` and the report say how much
    larger they were; give the control arm that learning rate.

    Deviations from the paper: weights are those of the number that was really left out; examples
    without a loss are kept. Of the public code: epochs end, other loaders are left alone, no global
    random state is touched, ids stay integers, a loss that is not finite is ignored instead of
    ending the pruning, everything is saved, and the number of steps does not change.

    Args:
        prune: r, share of the examples below the mean that a round leaves out, in [0, 1).
        until: share of the run after which nothing is left out, in [0, 1].

    Raises:
        UsageError: for shares out of range.

    Reference:
        Qin et al., *InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning*, 2024,
        https://arxiv.org/abs/2303.04947.

    Example:
        >>> from gradsift.records import ScoreUpdate
        >>> picker = InfoBatch().open(examples=4)
        >>> losses = torch.tensor([0.1, 0.2, 3.0, 4.0])
        >>> picker.learn(ScoreUpdate(torch.arange(4), losses, 1), torch.ones(4).double())
        >>> drawn = picker.draw(3, torch.Generator().manual_seed(0))
        >>> sorted(drawn.weights.tolist())
        [1.0, 1.0, 2.0]
    """

    biased: ClassVar[bool] = True
    anneals: ClassVar[bool] = True

    prune: float = 0.5
    until: float = 0.875

    def __post_init__(self) -> None:
        if not (0 <= self.prune < 1 and 0 <= self.until <= 1):
            raise UsageError(
                f"InfoBatch received prune={self.prune}, until={self.until}: expected a share to "
                "leave out in [0, 1) and a share of the run in [0, 1]"
            )

    def open(self, examples: int) -> AbstractPicker:
        """Rounds of kept examples."""
        return _Kept(self, examples)


def kept(
    scores: Float64[np.ndarray, " N"], prune: float, keys: Float64[np.ndarray, " N"]
) -> Chosen:
    """The ids of a round and their weights.

    Args:
        scores: latest losses; nan where there is none.
        prune: share of the examples below the mean that is left out.
        keys: random numbers; the smallest of those below the mean are left out.

    Example:
        >>> keys = np.array([0.2, 0.9, 0.1, 0.3])
        >>> ids, weights = kept(np.array([1.0, 2.0, 9.0, np.nan]), 0.5, keys)
        >>> ids.tolist(), weights.tolist()
        ([1, 2, 3], [2.0, 1.0, 1.0])
    """
    weights = np.ones(len(scores))
    seen = ~np.isnan(scores)
    if seen.any():
        below = np.flatnonzero(scores < scores[seen].mean())
        out = int(prune * len(below))
        ascending = below[np.argsort(keys[below], kind="stable")]
        weights[ascending[:out]] = 0.0
        weights[ascending[out:]] = len(below) / max(len(below) - out, 1)
    ids = np.flatnonzero(weights)
    return ids, weights[ids]


@final
class _Kept(AbstractRounds):
    """Rounds of what is not left out."""

    def __init__(self, rule: InfoBatch, examples: int) -> None:
        super().__init__(examples)
        self._rule = rule

    def choose(self, generator: torch.Generator) -> Chosen:
        """By the latest losses, and all examples towards the end of the run."""
        over = self.progress is not None and self.progress >= self._rule.until
        keys = uniforms(self.examples, generator)
        return kept(self.history.scores, 0.0 if over else self._rule.prune, keys)
