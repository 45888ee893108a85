"""What a rule is: it picks the examples of the coming steps from what earlier steps told.

A rule holds the parameters of a published method, and is part of a recipe. Opened on a data set it
is a picker, which remembers what it was told and can be saved.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from gradsift.records import Draw, ScoreUpdate

NOBODY = torch.empty(0, dtype=torch.int64)
"""No example."""


class AbstractPicker(ABC):
    """Picks ids and their weights, batch after batch, for one run.

    A picker is told the scores of trained batches one step late, and the share of the run that is
    over where the loop says it. It never sees the batch that it picks.

    Attributes:
        lr_factor: what the learning rate of the coming steps is to be multiplied by.
        progress: share of the run that is over, from 0 to 1; None where nobody says it.
    """

    def __init__(self) -> None:
        self.lr_factor = 1.0
        self.progress: float | None = None

    @property
    def ready(self) -> bool:
        """Whether it can pick; until then steps take the user's own order."""
        return True

    @abstractmethod
    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """The next ``size`` examples.

        Args:
            size: how many; the divisor of the weighted mean.
            generator: a CPU generator, the only source of randomness.

        Returns:
            Positions are example ids.
        """

    def passed(self, examples: int) -> None:
        """So many more examples were trained on."""
        del examples

    def learn(self, update: ScoreUpdate, weights: Tensor) -> None:
        """Takes scores in.

        Args:
            update: of examples that were trained on, or that were `wanted`.
            weights: float64, those that each example was drawn with.
        """
        del update, weights

    def answer(self, update: ScoreUpdate) -> None:
        """Takes the scores of examples that were `wanted`."""
        self.learn(update, torch.ones(len(update.index), dtype=torch.float64))

    def wanted(self, size: int) -> Int64[Tensor, " wanted"]:
        """Ids whose scores it wants now, by an extra forward pass; mostly none.

        Args:
            size: of the next draw.
        """
        del size
        return NOBODY

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that was learnt, as plain tensors and numbers."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another picker of the same rule and data, to the bit."""


class AbstractRule(ABC):
    """The parameters of a method that picks examples by their history.

    Attributes:
        biased: whether the expected weighted mean of a step differs from the mean over the data.
        learns: whether it is told the scores of training steps.
        anneals: whether it changes along the run, and so has to be told how much of it is over.
    """

    biased: ClassVar[bool]
    learns: ClassVar[bool] = True
    anneals: ClassVar[bool] = False

    @abstractmethod
    def open(self, examples: int) -> AbstractPicker:
        """A picker for a data set of N examples, which knows nothing yet."""
