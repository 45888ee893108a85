"""Data-parallel processes that sift together: one table, one decision, and no silent hang.

Every process trains on its own share of a step, and the mean over processes of their weighted means
is what is unbiased. Before each batch is handed out they meet: all have a batch, or the epoch ends
for all, or one has failed and all stop and say why.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from gradsift.errors import TrainingError
from gradsift.sifting.observations import Scored

T = TypeVar("T")


class TogetherError(TrainingError):
    """What another process told, or that it does not answer."""


class EpochOverError(Exception):
    """Another process has no further batch in this epoch."""


class AbstractRanks(ABC):
    """The processes of a data-parallel run, as one of them sees them.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process decides."""
        return self.size == 1 or self.rank == 0

    @abstractmethod
    def agree(self, examples: int | None, *, wish: bool) -> list[int]:
        """Meets the others before a batch is handed out.

        Args:
            examples: of the batch at hand; None where the epoch has ended.
            wish: whether this process would look more closely at the next batch.

        Returns:
            The examples of every process.

        Raises:
            EpochOverError: where another process has no batch.
            TrainingError: where another one has failed, does not answer, or is elsewhere.
        """

    @abstractmethod
    def follows(self, wish: bool) -> bool:
        """What the first process wished when they last met; alone, one's own wish of now."""

    @abstractmethod
    def recall(self, *, wish: bool) -> None:
        """What the first process had wished when a state was saved."""

    @abstractmethod
    def gather(self, found: Sequence[Scored]) -> list[Scored]:
        """The scores of all processes, in the order of their ranks, the same everywhere."""

    @abstractmethod
    def gather_scores(self, scores: Tensor) -> Tensor:
        """Likewise of scores without ids."""

    @abstractmethod
    def lead(self, value: T) -> T:
        """The value of the first process; alone, one's own."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Tells the others, who stop at their next meeting."""


class Alone(AbstractRanks):
    """One process, or several that do not talk about their scores.

    Example:
        >>> Alone().agree(8, wish=False), Alone().lead("mine"), Alone(rank=3).rank
        ([8], 'mine', 3)
    """

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.size = 1

    def agree(self, examples: int | None, *, wish: bool) -> list[int]:
        """Nobody to meet."""
        del wish
        return [examples or 0]

    def follows(self, wish: bool) -> bool:
        """One's own wish."""
        return wish

    def recall(self, *, wish: bool) -> None:
        """Nothing to recall."""
        del wish

    def gather(self, found: Sequence[Scored]) -> list[Scored]:
        """What was found here."""
        return list(found)

    def gather_scores(self, scores: Tensor) -> Tensor:
        """What was scored here."""
        return scores

    def lead(self, value: Any) -> Any:
        """One's own."""
        return value

    def fail(self, error: Exception) -> None:
        """Nobody to tell."""
        del error
