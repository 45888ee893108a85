"""Lookups: the gradient of a row is the sum over the places where its token stands."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gradsift.scores.gradient_norm.contributions import AbstractContribution
from gradsift.scores.gradient_norm.rules import Use, register_rule


@dataclass(frozen=True, eq=False)
class Rows(AbstractContribution):
    """``G_i[token] = Σ_{t: tokens_it = token} values_it``; only rows that occur are formed.

    Attributes:
        tokens: row numbers, ``[batch, places]``.
        values: what is added to them, ``[batch, places, columns]``.
        rows: of the table.

    Example:
        >>> tokens, values = torch.tensor([[1, 1, 0]]), torch.ones(1, 3, 1)
        >>> Rows(tokens, values, 9).squared_norms()
        tensor([5.])
    """

    tokens: Int64[Tensor, "batch places"]
    values: Float[Tensor, "batch places columns"]
    rows: int

    @property
    def count(self) -> int:
        """How many examples."""
        return self.tokens.shape[0]

    @property
    def numbers(self) -> int:
        """How many numbers the table has."""
        return self.rows * self.values.shape[2]

    def gradients(self, part: slice) -> Float[Tensor, "part numbers"]:
        """The gradients of some examples, with a row for every token there is."""
        tokens, values = self.tokens[part], self.values[part]
        first = torch.arange(len(tokens), device=tokens.device).unsqueeze(1) * self.rows
        table = values.new_zeros(len(tokens) * self.rows, values.shape[2])
        table.index_add_(0, (tokens + first).flatten(), values.flatten(0, 1))
        return table.view(len(tokens), self.numbers)

    def squared_norms(self) -> Float[Tensor, " batch"]:
        """``‖G_i‖²``."""
        return self._by_example(*self._occurring())

    def scaled_squared_norms(self, scale: Float[Tensor, " numbers"]) -> Float[Tensor, " batch"]:
        """``‖P G_i‖²``, with the rows of P that occur."""
        keys, sums = self._occurring()
        rows = scale.view(self.rows, -1)[keys % self.rows]
        return self._by_example(keys, sums * rows)

    def _occurring(self) -> tuple[Tensor, Tensor]:
        """Numbers of the pairs of example and token that occur, and the row of each."""
        first = torch.arange(self.count, device=self.tokens.device).unsqueeze(1) * self.rows
        keys, places = torch.unique(self.tokens + first, return_inverse=True)
        sums = self.values.new_zeros(len(keys), self.values.shape[2])
        return keys, sums.index_add_(0, places.flatten(), self.values.flatten(0, 1))

    def _by_example(self, keys: Tensor, rows: Tensor) -> Tensor:
        squares = torch.linalg.vector_norm(rows, dim=1).square()
        return squares.new_zeros(self.count).index_add_(0, keys // self.rows, squares)


@register_rule(nn.Embedding, reads_outputs=False)
def embedding(use: Use) -> Mapping[str, AbstractContribution]:
    """Repeated tokens add up, and ``padding_idx`` receives nothing."""
    layer = use.layer
    tokens, gradient = use.by_example(use.input), use.by_example(use.gradient)
    tokens = tokens.reshape(use.count, -1).long()
    values = gradient.reshape(use.count, tokens.shape[1], gradient.shape[-1])
    if layer.padding_idx is not None:
        values = values.masked_fill((tokens == layer.padding_idx).unsqueeze(2), 0.0)
    if layer.scale_grad_by_freq:
        values = values / _frequency(tokens).unsqueeze(2).to(values.dtype)
    return {"weight": Rows(tokens, values, layer.num_embeddings)}


def _frequency(tokens: Tensor) -> Tensor:
    """How often the token of each place stands in its own example."""
    return (tokens.unsqueeze(1) == tokens.unsqueeze(2)).sum(2)
