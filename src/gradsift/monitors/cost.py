"""What the seconds of a run were spent on, and how much was scored for what was trained."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Seconds by what they were spent on, up to one moment, and the examples they were spent on.

    Attributes:
        total: of the budget.
        loading: fetching data and moving it to the device.
        scoring: scoring and drawing, apart from scores that come with a training step.
        training: forward, backward and update.
        trained: examples that a gradient was taken of, with repetitions.
        scored: examples that an extra forward pass was spent on.

    Example:
        >>> cost = Cost(10.0, loading=1.0, scoring=2.0, training=6.0, trained=400, scored=1200)
        >>> cost.waiting, cost.scored_per_trained, cost.seconds_per_example
        (1.0, 3.0, 0.025)
    """

    total: float
    loading: float
    scoring: float
    training: float
    trained: int
    scored: int

    @property
    def waiting(self) -> float:
        """What is left: the loop's own work, and waiting for anything else."""
        return max(self.total - self.loading - self.scoring - self.training, 0.0)

    @property
    def scored_per_trained(self) -> float:
        """Examples scored for each one trained; nan before the first."""
        return self.scored / self.trained if self.trained else math.nan

    @property
    def seconds_per_example(self) -> float:
        """Of the budget, for each example trained, everything included; nan before the first."""
        return self.total / self.trained if self.trained else math.nan

    def listed(self) -> dict[str, float | int]:
        """All numbers by name, as a log keeps them.

        Example:
            >>> listed = Cost(1.0, 0.5, 0.0, 0.5, trained=10, scored=0).listed()
            >>> listed["waiting"], listed["scored_per_trained"]
            (0.0, 0.0)
        """
        return {
            "total": self.total,
            "loading": self.loading,
            "scoring": self.scoring,
            "training": self.training,
            "waiting": self.waiting,
            "trained": self.trained,
            "scored": self.scored,
            "scored_per_trained": self.scored_per_trained,
            "seconds_per_example": self.seconds_per_example,
        }
