"""Who watches a run. The trainer tells; it never prints."""

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One evaluation on the way.

    Attributes:
        step: steps taken so far.
        seconds: of the budget's clock.
        share: of the budget that is spent, from 0 to 1.
        train_loss: on a fixed part of the training set.
        test_loss: on the test set.
        test_error: on the test set.
    """

    step: int
    seconds: float
    share: float
    train_loss: float
    test_loss: float
    test_error: float


class AbstractProgress(ABC):
    """Is told how far a run is."""

    @abstractmethod
    def moved(self, share: float, step: int) -> None:
        """After every step; ``share`` of the budget is spent, from 0 to 1."""

    @abstractmethod
    def evaluated(self, point: Point) -> None:
        """After every evaluation."""


class Silent(AbstractProgress):
    """Watches nothing."""

    def moved(self, share: float, step: int) -> None:
        """Does nothing."""
        del share, step

    def evaluated(self, point: Point) -> None:
        """Does nothing."""
        del point
