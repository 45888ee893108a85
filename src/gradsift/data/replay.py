"""Passes over a user's own order that a later process can take up in the middle.

Nobody can save a Python iterator. It is begun again instead, with the random numbers that it had
before, and what was taken of it is skipped. Where those numbers came from the global generator,
which belongs to the user, the seed that it gave is kept, or the ids that are left.
"""

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from gradsift.errors import UsageError


class AbstractReplay(ABC):
    """Passes over something, and the place in the present one.

    Attributes:
        kind: how a pass is repeated; a state fits its own kind alone.
        taken: how many items of the pass were taken.
    """

    kind: str

    def __init__(self) -> None:
        self.taken = 0
        self._ended = True

    @abstractmethod
    def restart(self) -> Iterator[Any]:
        """Begins a pass."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The place, as plain tensors and numbers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> tuple[Iterator[Any], Any]:
        """Goes to a place: what is left of its pass, and the item that was taken last.

        Raises:
            UsageError: for the state of another kind of order, or one that ends too early.
        """
        if state["kind"] != self.kind:
            raise UsageError(
                f"the state of an order kept by {state['kind']} received, expected one kept by "
                f"{self.kind}: make the loader as it was when the state was saved"
            )
        self.taken, self._ended = state["taken"], state["ended"]
        return self._resume(state)

    @abstractmethod
    def _resume(self, state: Mapping[str, Any]) -> tuple[Iterator[Any], Any]: ...

    def _place(self) -> dict[str, Any]:
        return {"kind": self.kind, "taken": self.taken, "ended": self._ended}

    def _counted(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.taken += 1
            yield item
        self._ended = True

    def _skip(self, items: Iterator[Any]) -> Any:
        item = None
        for place in range(self.taken):
            try:
                item = next(items)
            except StopIteration:
                raise UsageError(
                    f"the loader ended after {place} batches, expected at least {self.taken}, "
                    "as when its state was saved: give it the same data"
                ) from None
        return item


class Repeated(AbstractReplay):
    """An order that is fixed, or drawn by generators of its own: it is begun again with them.

    Args:
        begin: starts a pass.
        owners: samplers and loaders, with a ``generator`` or an ``epoch`` that they draw by.

    Example:
        >>> items = Repeated(lambda: iter("abcd"), [])
        >>> first = items.restart()
        >>> next(first), next(first)
        ('a', 'b')
        >>> rest, last = Repeated(lambda: iter("abcd"), []).load_state_dict(items.state_dict())
        >>> last, list(rest)
        ('b', ['c', 'd'])
    """

    kind = "generators"

    def __init__(self, begin: Callable[[], Iterator[Any]], owners: Sequence[Any]) -> None:
        super().__init__()
        self._begin = begin
        self._generators = generators_of(*owners)
        self._counting = [owner for owner in owners if callable(getattr(owner, "set_epoch", None))]
        self._before = self._first = self._states()

    def restart(self) -> Iterator[Any]:
        """Begins a pass at once, as a plain loop does."""
        self.taken, self._ended = 0, False
        self._before = self._states()
        return self._items(self._begin())

    def state_dict(self) -> dict[str, Any]:
        """The place, and the generators: before the pass, at its first item, now."""
        states = {"before": self._before, "first": self._first, "now": self._states()}
        return {**self._place(), **states}

    def _items(self, source: Iterator[Any]) -> Iterator[Any]:
        self._first = self._states()  # between the two a DataLoader draws the seed of its workers
        yield from self._counted(source)

    def _resume(self, state: Mapping[str, Any]) -> tuple[Iterator[Any], Any]:
        saved = len(state["now"]["generators"])
        if saved != len(self._generators):
            raise UsageError(
                f"the state of a loader with {saved} generators received, this one has "
                f"{len(self._generators)}: make it as it was when the state was saved"
            )
        self._before, self._first = state["before"], state["first"]
        items: Iterator[Any] = iter(())
        last = None
        if not self._ended:
            self._set(self._before)
            items = self._begin()
            if self.taken:
                self._set(self._first)
                last = self._skip(items)
                items = self._counted(items)
            else:
                items = self._items(items)
        self._set(state["now"])
        return items, last

    def _states(self) -> dict[str, Any]:
        return {
            "generators": [generator.get_state() for generator in self._generators],
            "epochs": [getattr(owner, "epoch", 0) for owner in self._counting],
        }

    def _set(self, states: Mapping[str, Any]) -> None:
        for generator, state in zip(self._generators, states["generators"], strict=True):
            generator.set_state(state)
        for owner, epoch in zip(self._counting, states["epochs"], strict=True):
            owner.set_epoch(epoch)


class Reseeded(AbstractReplay):
    """Shuffled batches without a generator: PyTorch draws one seed per pass from the global one.

    The same seed is drawn at the same moment, and kept.

    Args:
        lists: a `BatchSampler` over a `RandomSampler` without a generator.
    """

    kind = "a seed per pass"

    def __init__(self, lists: BatchSampler) -> None:
        super().__init__()
        self._lists = lists
        self._seed = 0

    def restart(self) -> Iterator[list[int]]:
        """Begins a pass; the seed is drawn with its first item."""
        self.taken, self._ended = 0, False
        return self._items()

    def state_dict(self) -> dict[str, Any]:
        """The place, and the seed of the pass."""
        return {**self._place(), "seed": self._seed}

    def _items(self) -> Iterator[list[int]]:
        self._seed = int(torch.empty((), dtype=torch.int64).random_().item())
        yield from self._counted(self._seeded())

    def _seeded(self) -> Iterator[list[int]]:
        sampler: Any = copy.copy(self._lists.sampler)
        sampler.generator = Generator().manual_seed(self._seed)
        lists = copy.copy(self._lists)
        lists.sampler = sampler
        return iter(lists)

    def _resume(self, state: Mapping[str, Any]) -> tuple[Iterator[Any], Any]:
        self._seed = state["seed"]
        if self._ended:
            return iter(()), None
        if not self.taken:
            return self._items(), None
        items = self._seeded()
        last = self._skip(items)
        return self._counted(items), last


class Listed(AbstractReplay):
    """An order of which nothing is known: what is left of a pass is taken out and kept.

    Args:
        lists: batches of ids, as many as ``len`` says.
    """

    kind = "its ids"

    def __init__(self, lists: Any) -> None:
        super().__init__()
        self._lists = lists
        self._source: Iterator[list[int]] = iter(())
        self._rest: deque[list[int]] = deque()

    def restart(self) -> Iterator[list[int]]:
        """Begins a pass at once."""
        self.taken, self._ended = 0, False
        self._rest.clear()
        self._source = iter(self._lists)
        return self._counted(self._items())

    def state_dict(self) -> dict[str, Any]:
        """The place, and every id that is left; a sampler that draws as it goes draws them now.

        Raises:
            UsageError: where nobody knows how many are left.
        """
        if self.taken and not self._ended:
            if not hasattr(self._lists, "__len__"):
                raise UsageError(
                    f"the order of a {type(self._lists).__name__} cannot be saved: it has neither "
                    "a generator nor a length; give it an attribute `generator` that it draws from"
                )
            self._rest.extend(map(list, self._source))
        ids = [index for items in self._rest for index in items]
        return {
            **self._place(),
            "lengths": [len(items) for items in self._rest],
            "ids": torch.tensor(ids, dtype=torch.int64),
        }

    def _items(self) -> Iterator[list[int]]:
        while True:
            if self._rest:
                yield self._rest.popleft()
            elif (item := next(self._source, None)) is not None:
                yield item
            else:
                return

    def _resume(self, state: Mapping[str, Any]) -> tuple[Iterator[Any], Any]:
        if not self.taken and not self._ended:
            return self.restart(), None
        parts = state["ids"].split(state["lengths"])
        self._rest = deque(part.tolist() for part in parts)
        self._source = iter(())
        return self._counted(self._items()), None


def replay(lists: Any, *owners: Any) -> AbstractReplay:
    """The way to repeat a batch sampler.

    Args:
        lists: batches of ids.
        owners: others that may have a ``generator``, such as the loader.

    Example:
        >>> shuffled = RandomSampler(range(9), generator=Generator())
        >>> replay(BatchSampler(shuffled, 3, drop_last=False)).kind
        'generators'
        >>> replay(BatchSampler(RandomSampler(range(9)), 3, drop_last=False)).kind
        'a seed per pass'
    """
    sampler = lists.sampler if type(lists) is BatchSampler else lists
    known = isinstance(sampler, SequentialSampler | DistributedSampler)
    if known or generators_of(lists, sampler):
        return Repeated(lambda: iter(lists), (lists, sampler, *owners))
    if type(lists) is BatchSampler and type(sampler) is RandomSampler:
        return Reseeded(lists)
    return Listed(lists)


def generators_of(*owners: Any) -> list[Generator]:
    """The generators that samplers and loaders draw from, each once.

    Example:
        >>> shuffled = RandomSampler(range(9), generator=Generator())
        >>> len(generators_of(shuffled, shuffled, [1, 2]))
        1
    """
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(one): one for one in found if isinstance(one, Generator)}.values())
