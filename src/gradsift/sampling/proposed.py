"""Draws from a table whose values come whole from elsewhere, such as forecasts of scores."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradsift.records import Draw
from gradsift.sampling.distributions import AbstractDistribution
from gradsift.sampling.inclusion import check_size
from gradsift.sampling.order import AbstractOrder, GivenOrder, NaturalOrder
from gradsift.sampling.tree import SumTree
from gradsift.sampling.walks import Mixture, TableLaw, stratified_places


class ProposedTable:
    """Stratified draws by ``p_i = (1 − λ) v_i^a / Σ v^a + λ/N``, with values ``v`` from outside.

    As `ScoreTable` draws, without any memory of where the values come from: no versions, no level
    and no smoothing. Weights are ``1/(N p)``, at most ``1/λ``, unbiased for any values >= 0.

    Args:
        size: N; every value begins at one.
        distribution: as that of a `ScoreTable`.

    Raises:
        UsageError: for a distribution that a table cannot draw by.

    Example:
        >>> from gradsift.sampling.distributions import Mixed, Proportional
        >>> table = ProposedTable(4, Mixed(Proportional(), uniform=0.5))
        >>> table.write(np.array([0.0, 0.0, 1.0, 3.0]))
        >>> table.masses(np.array([0, 3])).tolist()
        [0.5, 2.0]
        >>> drawn = table.draw(4, torch.Generator().manual_seed(0))
        >>> (drawn.weights.numpy() * table.masses(drawn.positions.numpy())).round(6).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, size: int, distribution: AbstractDistribution) -> None:
        self.size = size
        self._law = TableLaw.of(distribution)
        self._tree = SumTree(size, self._law.summed)
        self._order: AbstractOrder = NaturalOrder()

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self._tree.nbytes + self._order.nbytes

    def propose(self, distribution: AbstractDistribution) -> None:
        """Draws by another distribution from now on; another exponent takes O(N)."""
        law = TableLaw.of(distribution)
        if law.summed != self._tree.exponent:
            self._tree.rebuild(law.summed)
        self._law = law

    def arrange(self, order: Int64[Tensor, " N"]) -> None:
        """Walks in another order from now on: ``order[k]`` is the id at place ``k``; O(N)."""
        values = self.values(np.arange(self.size))
        self._order = GivenOrder(order)
        self.write(values)

    def write(self, values: Float[np.ndarray, " N"]) -> None:
        """Replaces all values, by id; O(N)."""
        self._tree.leaves[:] = values[self._order.ids(np.arange(self.size))]
        self._tree.rebuild(self._law.summed)

    def set(self, ids: Int64[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> None:
        """Replaces the values of different examples."""
        places = self._order.places(ids)
        ascending = places.argsort()
        self._tree.set(places[ascending], values[ascending].astype(np.float64))

    def values(self, ids: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """The values of some examples."""
        return self._tree.values(self._order.places(ids))

    def masses(self, ids: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """``N p``: one over the weight that each example would have."""
        return self._mixture().masses(self._tree.powers(self._order.places(ids)))

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Draws examples of the whole data set.

        Args:
            size: b, from 1 to N.
            generator: a CPU generator, the only source of randomness.

        Raises:
            UsageError: for a size out of range.
        """
        check_size(size, self.size)
        uniforms = torch.rand(size, dtype=torch.float64, generator=generator)
        places, masses = stratified_places(self._tree, self._mixture(), uniforms.numpy())
        ids = torch.from_numpy(self._order.ids(places))
        return Draw(ids, torch.from_numpy(1 / masses), size)

    def state_dict(self) -> dict[str, Any]:
        """Copies of values, law and order."""
        given = self._order.tensor() if isinstance(self._order, GivenOrder) else None
        return {
            "leaves": torch.from_numpy(self._tree.leaves.copy()),
            "law": [self._law.exponent, self._law.uniform],
            "order": given,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another table of the same size."""
        self._order = NaturalOrder() if state["order"] is None else GivenOrder(state["order"])
        self._law = TableLaw(*state["law"])
        self._tree.leaves[:] = state["leaves"].numpy()
        self._tree.rebuild(self._law.summed)

    def _mixture(self) -> Mixture:
        return self._law.mixture(self._tree.total, self.size)
