"""What models do with sparse inputs: pairs ``(column, value)``, ``[batch, pairs, 2]``."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.errors import UsageError

MOST_DENSE = 4096
"""Columns up to which an input may become a dense row, batch by batch."""


class SparseLinear(nn.Module):
    """An affine map of the rows that pairs stand for: ``y = b + Σ value · W[column]``.

    It reads the rows of W that a batch needs, so a step costs as many operations as there are
    pairs, however many columns there are. Gradients are dense.

    Args:
        columns: of the rows; every column number is below.
        outputs: numbers per row.

    Example:
        >>> layer = SparseLinear(3, 1)
        >>> with torch.no_grad():
        ...     layer.weight[:, 0] = torch.tensor([1.0, 10.0, 100.0])
        ...     layer.bias[:] = 0.5
        >>> layer(torch.tensor([[[2.0, 3.0], [0.0, 1.0]]])).detach()
        tensor([[301.5000]])
    """

    def __init__(self, columns: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(columns, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, pairs: Float[Tensor, "batch pairs 2"]) -> Float[Tensor, "batch outputs"]:
        """From pairs to ``[batch, outputs]``."""
        columns, values = pairs.unbind(dim=2)
        total = F.embedding_bag(
            columns.long(), self.weight, per_sample_weights=values.contiguous(), mode="sum"
        )
        return total + self.bias


class Densify(nn.Module):
    """The rows that pairs stand for, ``[batch, columns]``, for models that know no sparse ones.

    Args:
        columns: of the rows.

    Raises:
        UsageError: for more than 4,096 columns, where a batch of rows would fill the memory.

    Example:
        >>> Densify(4)(torch.tensor([[[2.0, 0.5], [0.0, 0.0]]]))
        tensor([[0.0000, 0.0000, 0.5000, 0.0000]])
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        if columns > MOST_DENSE:
            raise UsageError(
                f"the data are sparse with {columns} columns, expected at most {MOST_DENSE} for a "
                "model that needs dense rows: choose linear or mlp"
            )
        self._columns = columns

    def forward(self, pairs: Float[Tensor, "batch pairs 2"]) -> Float[Tensor, "batch columns"]:
        """From pairs to dense rows."""
        columns, values = pairs.unbind(dim=2)
        return values.new_zeros(len(pairs), self._columns).scatter_add_(1, columns.long(), values)
