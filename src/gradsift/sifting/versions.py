"""How many updates the parameters have taken, without an optimiser to ask.

An update in place moves the version counter of a tensor; a step that `GradScaler` skips does not,
nor does a micro-batch of an accumulated step.
"""

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
        self._moves = False
        self._readings = 0

    def read(self) -> int:
        """The number of updates so far, read before the update of the step under way."""
        mark = self._counters()
        moved = mark != self._mark
        self._mark = mark
        self._moves |= moved
        self._readings += 1
        silent = not self._moves and self._readings > SILENT
        if moved or silent or self.count == 0 or not self._parameters:
            self.count += 1
        return self.count

    def _counters(self) -> int:
        return sum(parameter._version for parameter in self._parameters)
