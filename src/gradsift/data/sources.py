"""The user's loader as a source of examples: by id where its data have ids, or as a stream.

A map-style `torch.utils.data.DataLoader` is read through a second one that shares everything with
it but the batch sampler: ids come from the user's batch sampler, in the order and number that the
step's plan asks for, and the loader's own workers fetch and collate them. Any other iterable of
batches is a stream: its batches are joined and cut after they have arrived.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler
from torch.utils.data.distributed import DistributedSampler

from gradsift.data.passes import Passes, Portion
from gradsift.errors import UsageError
from gradsift.nested import length
from gradsift.records import Plan

Planner = Callable[[int], Plan]
"""What the next step will do, given the nominal batch size."""


@dataclass(frozen=True, eq=False)
class Fetched:
    """What arrived for one step.

    Attributes:
        plan: what was decided when its ids were requested.
        ids: int64 ids of the examples.
        data: the collated batch, as the user's ``collate_fn`` made it.
        batch_size: the nominal batch size.
    """

    plan: Plan
    ids: Int64[Tensor, " examples"]
    data: Any
    batch_size: int


class AbstractSource(ABC):
    """Where batches come from, one epoch at a time.

    Attributes:
        examples: how many examples the data hold, or None for a stream.
        plain_order: whether the user's order samples every example alike, so that ids may be
            drawn from the whole data set without another objective.
        one_pass: whether the data can be read only once.
    """

    examples: int | None
    plain_order: bool
    one_pass: bool

    @abstractmethod
    def epoch(self, planner: Planner) -> Iterator[Fetched]:
        """The batches of one epoch; every step's plan is asked for when its ids are needed."""

    @abstractmethod
    def __len__(self) -> int:
        """Steps in an epoch; a TypeError where that is unknown."""


def open_source(loader: Any) -> AbstractSource:
    """The source that fits a loader.

    Raises:
        UsageError: when it is not iterable.

    Example:
        >>> import torch
        >>> loader = torch.utils.data.DataLoader(torch.arange(6), batch_size=4)
        >>> [step.ids.tolist() for step in open_source(loader).epoch(lambda size: Plan())]
        [[0, 1, 2, 3], [4, 5]]
    """
    if not hasattr(loader, "__iter__"):
        raise UsageError(
            f"the loader is a {type(loader).__name__}, expected a DataLoader or another iterable "
            "of batches"
        )
    by_id = (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )
    return MapSource(loader) if by_id else StreamSource(loader)


def _run(
    passes: Passes, planner: Planner, steps: int | None, nominal: int | None
) -> Iterator[tuple[Plan, Portion, int]]:
    """One epoch: a pass while every step takes what comes, else as many steps as a pass has."""
    done = 0
    while True:
        known = steps if steps is not None else passes.batches_in_pass
        if passes.carries_over and known is not None and done >= known:
            return
        ahead = passes.peek(restart=passes.carries_over)
        if ahead is None:
            return
        size = nominal if nominal is not None else len(ahead)
        plan = planner(size)
        portion = _portion(passes, plan, size)
        if portion is None:
            return
        yield plan, portion, size
        done += 1


def _portion(passes: Passes, plan: Plan, size: int) -> Portion | None:
    if plan.draw is not None:
        passes.carries_over = True
        return Portion(plan.draw.positions)
    if plan.candidates is not None:
        return passes.take(plan.candidates)
    return passes.take(size) if passes.carries_over else passes.next()


def _portion_of(ids: Any) -> Portion:
    return Portion(torch.from_numpy(np.array(ids, np.int64)))


def _take_what_comes(batch_size: int) -> Plan:
    del batch_size
    return Plan()


class _PlannedBatches(Sampler[list[int]]):
    """A batch sampler that asks for a plan before it gives out ids, and remembers both in order."""

    def __init__(self, batch_sampler: Any, steps: int | None, nominal: int | None) -> None:
        self.planned: deque[tuple[Plan, Portion, int]] = deque()
        self.planner: Planner = _take_what_comes
        self._passes = Passes(lambda: map(_portion_of, iter(batch_sampler)))
        self._steps = steps
        self._nominal = nominal

    def __iter__(self) -> Iterator[list[int]]:
        self._passes.begin()
        self.planned.clear()
        return self._ids()

    def _ids(self) -> Iterator[list[int]]:
        for step in _run(self._passes, self.planner, self._steps, self._nominal):
            self.planned.append(step)
            yield step[1].ids.tolist()


class MapSource(AbstractSource):
    """Map-style data behind a DataLoader: examples are fetched by id, by the user's own workers.

    Ids are the indices that the user's sampler yields, so they mean the same in every epoch,
    however the data set is wrapped. The order of a DataLoader's batches is part of its contract;
    a loader made with ``in_order=False`` is read in order all the same.

    Attributes:
        loader: the user's own.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        nominal = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        self.loader = loader
        self._sampler = _PlannedBatches(loader.batch_sampler, _steps(loader), nominal)
        self._reader: DataLoader[Any] = _twin(loader, self._sampler)
        self.examples = len(loader.dataset)  # pyright: ignore[reportArgumentType]
        self.plain_order = loader.batch_size is not None and isinstance(
            loader.sampler, RandomSampler | DistributedSampler
        )
        self.one_pass = False

    def epoch(self, planner: Planner) -> Iterator[Fetched]:
        """Fetches by id. Prefetching workers ask for plans ahead of their steps."""
        self._sampler.planner = planner
        try:
            for data in self._reader:
                plan, portion, size = self._sampler.planned.popleft()
                yield Fetched(plan, portion.ids, data, size)
        finally:
            self._sampler.planner = _take_what_comes

    def __len__(self) -> int:
        return len(self.loader)


def _twin(loader: DataLoader[Any], batch_sampler: Sampler[list[int]]) -> DataLoader[Any]:
    """A DataLoader that differs from the user's in its batch sampler alone."""
    names = (
        "num_workers",
        "collate_fn",
        "pin_memory",
        "timeout",
        "worker_init_fn",
        "multiprocessing_context",
        "generator",
        "prefetch_factor",
        "persistent_workers",
        "pin_memory_device",
    )
    options = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    return DataLoader(loader.dataset, batch_sampler=batch_sampler, **options)


class StreamSource(AbstractSource):
    """Any iterable of batches. Ids count the examples in the order in which they arrived."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._nominal: int | None = getattr(loader, "batch_size", None)
        self._arrived = 0
        self._passes = Passes(lambda: self._portions(iter(loader)))
        self.one_pass = hasattr(loader, "__next__")
        self.examples = None
        self.plain_order = False

    def epoch(self, planner: Planner) -> Iterator[Fetched]:
        """Reads as many batches as each plan asks for."""
        self._passes.begin()
        for plan, portion, size in _run(
            self._passes, planner, None if self.one_pass else _steps(self._loader), self._nominal
        ):
            yield Fetched(plan, portion.ids, portion.data, size)

    def _portions(self, batches: Iterator[Any]) -> Iterator[Portion]:
        for batch in batches:
            count = length(batch)
            ids = torch.arange(self._arrived, self._arrived + count)
            self._arrived += count
            yield Portion(ids, batch)

    def __len__(self) -> int:
        if self.one_pass:
            raise TypeError(
                "a one-pass stream has no length: the number of steps depends on how often "
                "several batches are joined into a pool"
            )
        return len(self._loader)


def _steps(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None
