"""What a recipe asks of a predictor."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from gradsift.errors import UsageError


@dataclass(frozen=True)
class Prediction:
    """How a small recurrent network predicts losses, and how they are drawn by.

    Attributes:
        candidates: B, examples whose losses are predicted in each step; the batch comes from them.
        history: losses of each example that are remembered, 1 to 255.
        warm_up: steps in the user's own order before the first draw.
        refresh: examples per step whose history is read anew by the network as it has become,
            besides those just trained on; all take turns. None reads the histories of all
            candidates anew in every step, as published, at several times the cost.
        every: training steps between two of the network's own; 1 as published. Readings that are
            kept age with each of the network's steps, so fewer of them cost less *and* predict
            better (``benchmarks/predictor_settings.py``).
        lr: learning rate of its Adam optimiser.
        log_scale: whether logarithms of losses are remembered and predicted.
        classes: rows of the class embedding; further classes share them.

    Raises:
        UsageError: for values out of range.

    Example:
        >>> Prediction().candidates
        2048
    """

    candidates: int = 2048
    history: int = 10
    warm_up: int = 100
    refresh: int | None = 64
    every: int = 4
    lr: float = 1e-3
    log_scale: bool = False
    classes: int = 1000

    def __post_init__(self) -> None:
        counts = (self.candidates, self.history, self.every, self.classes)
        waits = (self.warm_up, 0 if self.refresh is None else self.refresh)
        if min(counts) < 1 or min(waits) < 0 or self.history > 255:
            raise UsageError(
                f"a prediction received candidates={self.candidates}, history={self.history}, "
                f"every={self.every}, classes={self.classes}, warm_up={self.warm_up}, "
                f"refresh={self.refresh}: expected at least one of each, warm_up and refresh at "
                "least zero, and a history of at most 255"
            )
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise UsageError(f"a prediction received lr {self.lr}, expected a finite number >= 0")


@dataclass(frozen=True, eq=False)
class Forecasting:
    """That today's scores of a table's examples are forecast, and drawn by while that pays.

    Attributes:
        features: frozen numbers about each example, ``[N, d]`` by id, finite, such as the outputs
            of a network that stays as it is; None for none. They are standardised.

    Raises:
        UsageError: for features of another shape, or that are not finite.

    Example:
        >>> Forecasting().features is None
        True
    """

    features: Float[Tensor, "N d"] | None = None

    def __post_init__(self) -> None:
        if self.features is None:
            return
        if self.features.dim() != 2 or not bool(self.features.isfinite().all()):
            raise UsageError(
                f"forecasting received features of shape {list(self.features.shape)}, expected "
                "finite numbers [examples, features]: clean or flatten them first"
            )
