"""What the per-example gradients of one parameter are made of, and their squared norms.

A layer's rule returns one contribution for each parameter and use. A squared norm is not additive
over uses of one parameter: their gradients add up first, or their inner products are counted.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradsift.scores.gradient_norm.costs import MOST_NUMBERS, direct_cost, gram_cost


class AbstractContribution(ABC):
    """The gradients of one parameter, for each example, in whatever form is cheap."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many examples."""

    @property
    @abstractmethod
    def numbers(self) -> int:
        """How many numbers the parameter has."""

    @abstractmethod
    def gradients(self, part: slice) -> Float[Tensor, "part numbers"]:
        """The gradients of some examples, each flattened in the order of the parameter."""

    @abstractmethod
    def squared_norms(self) -> Float[Tensor, " batch"]:
        """``‖g_i‖²`` for each example."""

    def scaled_squared_norms(self, scale: Float[Tensor, " numbers"]) -> Float[Tensor, " batch"]:
        """``‖P g_i‖²`` for a diagonal P."""
        return written_out(self, scale)


def written_out(
    contribution: AbstractContribution, scale: Tensor | None = None
) -> Float[Tensor, " batch"]:
    """Squared norms of gradients that are written out, a few examples at a time.

    Example:
        >>> written_out(Whole(torch.tensor([[3.0, 4.0]])))
        tensor([25.])
    """
    step = max(1, MOST_NUMBERS // max(1, contribution.numbers))
    parts: list[Tensor] = []
    for start in range(0, contribution.count, step):
        found = contribution.gradients(slice(start, min(start + step, contribution.count)))
        found = found if scale is None else found * scale
        parts.append(torch.linalg.vector_norm(found, dim=1).square())
    return torch.cat(parts)


def gram(terms: Float[Tensor, "batch terms numbers"]) -> Float[Tensor, "batch terms terms"]:
    """Inner products of the terms of each example.

    Example:
        >>> gram(torch.ones(1, 2, 3))
        tensor([[[3., 3.],
                 [3., 3.]]])
    """
    return torch.bmm(terms, terms.transpose(1, 2))


@dataclass(frozen=True, eq=False)
class Whole(AbstractContribution):
    """Gradients as they are, where they are small: ``[batch, numbers]``.

    Example:
        >>> Whole(torch.tensor([[3.0, 4.0]])).squared_norms()
        tensor([25.])
    """

    values: Float[Tensor, "batch numbers"]

    @property
    def count(self) -> int:
        """How many examples."""
        return self.values.shape[0]

    @property
    def numbers(self) -> int:
        """How many numbers the parameter has."""
        return self.values.shape[1]

    def gradients(self, part: slice) -> Float[Tensor, "part numbers"]:
        """The gradients of some examples."""
        return self.values[part]

    def squared_norms(self) -> Float[Tensor, " batch"]:
        """``‖g_i‖²``."""
        return torch.linalg.vector_norm(self.values, dim=1).square()


@dataclass(frozen=True, eq=False)
class Outer(AbstractContribution):
    """A sum of outer products, ``G_i = Σ_t left_it right_itᵀ``, of shape ``rows x columns``.

    One term: two norms. Several: Gram form or written out, by count.

    Example:
        >>> left, right = torch.ones(1, 2, 3), torch.ones(1, 2, 5)
        >>> Outer(left, right).squared_norms()
        tensor([60.])
    """

    left: Float[Tensor, "batch terms rows"]
    right: Float[Tensor, "batch terms columns"]
    left_gram: Callable[[], Tensor] | None = None
    """Inner products of the left terms, where several contributions share them."""

    @property
    def count(self) -> int:
        """How many examples."""
        return self.left.shape[0]

    @property
    def numbers(self) -> int:
        """How many numbers the parameter has."""
        return self.left.shape[2] * self.right.shape[2]

    @property
    def prefers_gram(self) -> bool:
        """Whether the Gram form has the smaller count."""
        terms, rows, columns = *self.left.shape[1:], self.right.shape[2]
        return gram_cost(terms, rows, columns) < direct_cost(terms, rows, columns)

    def gradients(self, part: slice) -> Float[Tensor, "part numbers"]:
        """The gradients of some examples."""
        return torch.bmm(self.left[part].transpose(1, 2), self.right[part]).flatten(1)

    def squared_norms(self) -> Float[Tensor, " batch"]:
        """``‖G_i‖²``."""
        if self.left.shape[1] == 1:
            norms = [torch.linalg.vector_norm(side, dim=(1, 2)) for side in (self.left, self.right)]
            return (norms[0] * norms[1]).square()
        return self.gram() if self.prefers_gram else written_out(self)

    def gram(self) -> Float[Tensor, " batch"]:
        """``Σ_{t,s} ⟨left_t, left_s⟩⟨right_t, right_s⟩``, which rounding can put below zero."""
        lefts = gram(self.left) if self.left_gram is None else self.left_gram()
        return (lefts * gram(self.right)).sum((1, 2)).clamp_min_(0.0)

    def scaled_squared_norms(self, scale: Float[Tensor, " numbers"]) -> Float[Tensor, " batch"]:
        """``‖P G_i‖²``; for one term ``Σ_{o,i} P_oi² left_o² right_i²``."""
        if self.left.shape[1] > 1:
            return written_out(self, scale)
        left, right = self.left[:, 0], self.right[:, 0]
        squares = scale.view(left.shape[1], right.shape[1]).square()
        return ((left.square() @ squares) * right.square()).sum(1)


@dataclass(frozen=True, eq=False)
class Stacked(AbstractContribution):
    """Blocks of a parameter, one after the other in its memory; squared norms add up.

    Example:
        >>> block = Whole(torch.tensor([[3.0, 4.0]]))
        >>> Stacked((block, block)).squared_norms()
        tensor([50.])
    """

    blocks: tuple[AbstractContribution, ...]

    @property
    def count(self) -> int:
        """How many examples."""
        return self.blocks[0].count

    @property
    def numbers(self) -> int:
        """How many numbers the parameter has."""
        return sum(block.numbers for block in self.blocks)

    def gradients(self, part: slice) -> Float[Tensor, "part numbers"]:
        """The gradients of some examples."""
        return torch.cat([block.gradients(part) for block in self.blocks], 1)

    def squared_norms(self) -> Float[Tensor, " batch"]:
        """The sum over the blocks."""
        return torch.stack([block.squared_norms() for block in self.blocks]).sum(0)

    def scaled_squared_norms(self, scale: Float[Tensor, " numbers"]) -> Float[Tensor, " batch"]:
        """The sum over the blocks, each with its part of the diagonal."""
        scales = scale.split([block.numbers for block in self.blocks])
        pairs = zip(self.blocks, scales, strict=True)
        return torch.stack([block.scaled_squared_norms(part) for block, part in pairs]).sum(0)


@dataclass(frozen=True, eq=False)
class Summed(AbstractContribution):
    """Several uses of one parameter: their gradients add up before anything is squared.

    Example:
        >>> use = Whole(torch.tensor([[3.0, 4.0]]))
        >>> Summed((use, use)).squared_norms()
        tensor([100.])
    """

    uses: tuple[AbstractContribution, ...]

    @property
    def count(self) -> int:
        """How many examples."""
        return self.uses[0].count

    @property
    def numbers(self) -> int:
        """How many numbers the parameter has."""
        return self.uses[0].numbers

    def gradients(self, part: slice) -> Float[Tensor, "part numbers"]:
        """The gradients of some examples."""
        return torch.stack([use.gradients(part) for use in self.uses]).sum(0)

    def squared_norms(self) -> Float[Tensor, " batch"]:
        """``‖Σ_u g_iu‖²``."""
        return written_out(self)


def combine(uses: Sequence[AbstractContribution]) -> AbstractContribution:
    """All uses of one parameter as one contribution; outer products are one longer sum.

    Example:
        >>> one = Outer(torch.ones(1, 1, 2), torch.ones(1, 1, 2))
        >>> combine([one, one]).squared_norms()
        tensor([16.])
    """
    if len(uses) == 1:
        return uses[0]
    outers = [use for use in uses if isinstance(use, Outer)]
    if len(outers) == len(uses):
        lefts, rights = [use.left for use in outers], [use.right for use in outers]
        return Outer(torch.cat(lefts, 1), torch.cat(rights, 1))
    return Summed(tuple(uses))
