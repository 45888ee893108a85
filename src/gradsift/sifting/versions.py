"""How many updates the parameters have taken, without an optimiser to ask.

An update in place moves the version counter of a tensor; a step that `GradScaler` skips does not,
nor does a micro-batch of an accumulated step.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

SILENT = 64
"""Micro-batches and skipped steps that may come before the first update."""


class Versions:
    """Counts updates by what they leave behind in the parameters.

    Fused optimisers and updates of ``parameter.data`` leave nothing behind: where no counter has
    moved for `SILENT` readings from the first one on, every further reading counts as an update.

    Args:
        model: to be watched; of a callable that is no module, readings are counted.

    Attributes:
        count: as of the last reading; the first one is 1.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> versions = Versions(model)
        >>> for accumulated in (1, 2, 1):
        ...     for _ in range(accumulated):
        ...         model(torch.ones(1, 2)).sum().backward()
        ...         print(versions.read())
        ...     optimizer.step()
        1
        2
        2
        3
    """

    def __init__(self, model: Any) -> None:
        self.count = 0
        self._parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
        self._mark = self._counters()
        self._updated: bool | None = None
        self._moves = False
        self._readings = 0

    def read(self) -> int:
        """The number of updates so far, read before the update of the step under way."""
        mark = self._counters()
        moved = mark != self._mark if self._updated is None else self._updated
        self._mark, self._updated = mark, None
        self._moves |= moved
        self._readings += 1
        silent = not self._moves and self._readings > SILENT
        if moved or silent or self.count == 0 or not self._parameters:
            self.count += 1
        return self.count

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "count": self.count,
            "updated": self._counters() != self._mark,
            "moves": self._moves,
            "readings": self._readings,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on counting, whenever the parameters themselves are loaded.

        Example:
            >>> model = nn.Linear(2, 1)
            >>> old, new = Versions(model), Versions(model)
            >>> old.read()
            1
            >>> new.load_state_dict(old.state_dict())
            >>> new.read()
            1
        """
        self.count = state["count"]
        self._updated = state["updated"]
        self._moves, self._readings = state["moves"], state["readings"]

    def _counters(self) -> int:
        return sum(parameter._version for parameter in self._parameters)
