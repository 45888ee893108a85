"""Rounds: a set of examples is chosen, trained on once in random order, and chosen anew.

The number of steps stays the loader's: ``for batch in train`` is ``len(train)`` steps of the same
size whatever a rule leaves out, so budgets in steps or epochs and schedules mean the same for every
recipe. What a rule saves is the length of a round, and a batch may hold the end of one round and
the beginning of the next.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import Draw, ScoreUpdate
from gradsift.rules.base import AbstractPicker, AbstractRule
from gradsift.rules.history import History

Chosen = tuple[Int64[np.ndarray, " chosen"], Float64[np.ndarray, " chosen"]]
"""The ids of a round, each once, and their weights."""


class AbstractRounds(AbstractPicker):
    """A picker that chooses round by round.

    Args:
        examples: N.

    Attributes:
        examples: N.
        history: latest scores.
        rounds: how many have begun.
    """

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples = examples
        self.history = History(examples)
        self.rounds = 0
        self._ids = np.empty(0, np.int64)
        self._weights = np.empty(0, np.float64)

    @abstractmethod
    def choose(self, generator: torch.Generator) -> Chosen:
        """The examples of the next round, at least one, in any order."""

    @property
    def left(self) -> int:
        """Examples of this round that are still to come."""
        return len(self._ids)

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """The next examples of this round, and where it ends those of the next."""
        while self.left < size:
            self._begin(generator)
        ids, self._ids = self._ids[:size], self._ids[size:]
        weights, self._weights = self._weights[:size], self._weights[size:]
        return Draw(torch.from_numpy(ids.copy()), torch.from_numpy(weights.copy()), size)

    def passed(self, examples: int) -> None:
        """Counts them."""
        self.history.passed += examples

    def learn(self, update: ScoreUpdate, weights: Tensor) -> None:
        """Keeps the latest scores."""
        del weights
        self.history.keep(update)

    def state_dict(self) -> dict[str, Any]:
        """The history and the rest of the round."""
        return {
            "history": self.history.state_dict(),
            "rounds": self.rounds,
            "ids": torch.from_numpy(self._ids.copy()),
            "weights": torch.from_numpy(self._weights.copy()),
            "lr_factor": self.lr_factor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on within the round."""
        self.history.load_state_dict(state["history"])
        self.rounds, self.lr_factor = state["rounds"], state["lr_factor"]
        self._ids = state["ids"].numpy().copy()
        self._weights = state["weights"].numpy().copy()

    def _begin(self, generator: torch.Generator) -> None:
        ids, weights = self.choose(generator)
        order = torch.randperm(len(ids), generator=generator).numpy()
        self._ids = np.concatenate([self._ids, ids[order]])
        self._weights = np.concatenate([self._weights, weights[order]])
        self.rounds += 1


def check_share(name: str, share: float) -> None:
    """Raises a `UsageError` unless a share is in (0, 1].

    Example:
        >>> check_share("RandomSubset", 1.5)
        Traceback (most recent call last):
        gradsift.errors.UsageError: RandomSubset received share 1.5, expected a share of the data...
    """
    if not 0 < share <= 1:
        raise UsageError(
            f"{name} received share {share}, expected a share of the data in (0, 1]: the part that "
            "a round trains on"
        )


@final
@dataclass(frozen=True)
class RandomSubset(AbstractRule):
    """A fresh uniform subset in every round: the control that pruning by score has to beat.

    A round trains on ``max(1, round(share · N))`` different examples, each set alike, rounds
    independent of each other. Each slot of a batch is uniform over the data, so with weights of one
    ``E[(1/b) Σ_j v(i_j)] = mean(v)``: **unbiased**.

    Deviations from the paper: none in the choice; its schedule is compressed to the budget, which
    here a budget and its schedule do for every recipe.

    Args:
        share: of the data in a round, in (0, 1].

    Raises:
        UsageError: for any other share.

    Reference:
        Okanovic et al., *Repeated Random Sampling for Minimizing the Time-to-Accuracy of
        Learning*, 2024, https://arxiv.org/abs/2305.18424.

    Example:
        >>> picker = RandomSubset(share=0.5).open(examples=6)
        >>> drawn = picker.draw(3, torch.Generator().manual_seed(0))
        >>> len(set(drawn.positions.tolist())), drawn.weights.tolist()
        (3, [1.0, 1.0, 1.0])
    """

    biased: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    share: float = 0.3

    def __post_init__(self) -> None:
        check_share("RandomSubset", self.share)

    def open(self, examples: int) -> AbstractPicker:
        """Rounds of random subsets."""
        return _RandomRounds(examples, max(1, round(self.share * examples)))


@final
class _RandomRounds(AbstractRounds):
    """Rounds of ``count`` examples."""

    def __init__(self, examples: int, count: int) -> None:
        super().__init__(examples)
        self._count = count

    def choose(self, generator: torch.Generator) -> Chosen:
        """Without replacement."""
        ids = torch.randperm(self.examples, generator=generator)[: self._count].numpy()
        return ids, np.ones(len(ids))
