"""In which order a table walks through its examples: as they are, scrambled, or as given.

Stratified draws are unbiased, and no worse than independent ones, in every order, and gain where
neighbours are alike: the order of the ids is fine. A systematic draw can be ``b`` times worse in
one fixed order, wherever its stride meets a period of the data: it walks a scrambled order.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from gradsift.errors import UsageError

ROUNDS = 4
"""Rounds of the scrambling bijection; three already pass the tests of its quality."""


class AbstractOrder(ABC):
    """A bijection between example ids and places, both ``0 … N−1``."""

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        return 0

    def tensor(self) -> Int64[Tensor, " N"] | None:
        """The permutation, where it was given from outside; None for one that is computed."""
        return None

    @abstractmethod
    def places(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Where examples stand."""

    @abstractmethod
    def ids(self, places: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Who stands at some places."""


class NaturalOrder(AbstractOrder):
    """Place and id are the same number.

    Example:
        >>> NaturalOrder().ids(np.array([2, 0])).tolist()
        [2, 0]
    """

    def places(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The ids."""
        return ids

    def ids(self, places: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The places."""
        return places


class ScrambledOrder(AbstractOrder):
    """A pseudo-random bijection that takes no memory.

    On the numbers below a power of two ``2^m >= N`` each round is ``x ^= x >> ⌈m/2⌉`` and
    ``x = (x · odd + add) mod 2^m``, which can be inverted; numbers that land at ``N`` or above are
    mapped again until they do not ("cycle-walking": Black, Rogaway, "Ciphers with arbitrary finite
    domains", 2002), fewer than two times on average. Not a cipher. An affine map modulo N would
    be shorter, but keeps every period that divides N.

    Args:
        size: N, up to 2^31 − 1.
        seed: chooses the constants.

    Example:
        >>> order = ScrambledOrder(5, seed=0)
        >>> ids = order.ids(np.arange(5))
        >>> sorted(ids.tolist()), order.places(ids).tolist()
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        bits = (size - 1).bit_length()
        self._mask = (1 << bits) - 1
        self._shift = (bits + 1) // 2
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(self._mask + 1, (ROUNDS, 2), generator=generator).tolist()
        self._keys = [(odd | 1, add) for odd, add in drawn]
        self._inverses = [(pow(odd, -1, self._mask + 1), add) for odd, add in reversed(self._keys)]

    def places(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The inverse of `ids`."""
        found = self._backward(ids)
        while (outside := np.flatnonzero(found >= self._size)).size:
            found[outside] = self._backward(found[outside])
        return found

    def ids(self, places: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The bijection."""
        found = self._forward(places)
        while (outside := np.flatnonzero(found >= self._size)).size:
            found[outside] = self._forward(found[outside])
        return found

    def _forward(self, x: np.ndarray) -> np.ndarray:
        x = x ^ (x >> self._shift)
        for odd, add in self._keys:
            x = (x * odd + add) & self._mask
            x ^= x >> self._shift
        return x

    def _backward(self, x: np.ndarray) -> np.ndarray:
        # The shift is at least half of the bits, so folding twice is the identity.
        x = x ^ (x >> self._shift)
        for inverse, add in self._inverses:
            x = ((x - add) * inverse) & self._mask
            x ^= x >> self._shift
        return x


class GivenOrder(AbstractOrder):
    """An order from outside, in two int32 maps: 8 bytes per example.

    Args:
        order: ``order[k]`` is the id at place ``k``: a permutation of ``0 … N−1``.

    Raises:
        UsageError: for anything else.

    Example:
        >>> order = GivenOrder(torch.tensor([2, 0, 1]))
        >>> order.ids(np.array([0])).tolist(), order.places(np.array([0])).tolist()
        ([2], [1])
    """

    def __init__(self, order: Int64[Tensor, " N"]) -> None:
        given = order.detach().cpu().numpy()
        inside = given[(given >= 0) & (given < len(given))]
        missing = np.flatnonzero(np.bincount(inside, minlength=len(given)) == 0)
        if len(missing):
            raise UsageError(
                f"the order of {len(given)} examples lacks {len(missing)} ids, the first is "
                f"{missing[0]}; expected a permutation of 0 to {len(given) - 1}: name each id once"
            )
        self._ids: Int32[np.ndarray, " N"] = given.astype(np.int32)
        self._places: Int32[np.ndarray, " N"] = np.empty_like(self._ids)
        self._places[self._ids] = np.arange(len(given), dtype=np.int32)

    @property
    def nbytes(self) -> int:
        """Two maps."""
        return self._ids.nbytes + self._places.nbytes

    def tensor(self) -> Int64[Tensor, " N"]:
        """The permutation as it was given."""
        return torch.from_numpy(self._ids.astype(np.int64))

    def places(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Looked up."""
        return self._places[ids].astype(np.int64)

    def ids(self, places: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Looked up."""
        return self._ids[places].astype(np.int64)


def order_of(
    given: Int64[Tensor, " n"] | None, size: int, seed: int, *, scrambled: bool
) -> AbstractOrder:
    """The order of a table: as given, or one that takes no memory.

    Args:
        given: a permutation of all ids, or None.
        size: N.
        seed: of a scrambled order.
        scrambled: whether ids are scrambled where nothing is given.

    Raises:
        UsageError: for another number of ids, or no permutation.

    Example:
        >>> order_of(None, 3, seed=0, scrambled=False).ids(np.array([2])).tolist()
        [2]
    """
    if given is None:
        return ScrambledOrder(size, seed) if scrambled else NaturalOrder()
    if len(given) != size:
        raise UsageError(
            f"ScoreTable of {size} examples received an order of {len(given)}: "
            "expected a permutation of all ids"
        )
    return GivenOrder(given)
