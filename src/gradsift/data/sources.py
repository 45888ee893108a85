"""The user's loader as a source of examples: by id where its data have ids, or as a stream.

A map-style `torch.utils.data.DataLoader` is read through a second one that shares everything with
it but the batch sampler: ids come from the user's batch sampler, in the order and number that the
step's plan asks for, and the loader's own workers fetch and collate them. Any other iterable of
batches is a stream: its batches are joined and cut after they have arrived.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler
from torch.utils.data.distributed import DistributedSampler

from gradsift.data.passes import Passes, Portion
from gradsift.data.planned import PlannedBatches, Planner, plan_epoch, steps_of, take_what_comes
from gradsift.data.replay import Repeated
from gradsift.data.seeded import Seeded
from gradsift.errors import UsageError
from gradsift.nested import length
from gradsift.records import Plan


class Fetched(NamedTuple):
    """What arrived for one step.

    Attributes:
        plan: what was decided when its ids were requested.
        portion: the examples by id.
        data: the collated batch, as the user's ``collate_fn`` made it.
        batch_size: the nominal batch size.
    """

    plan: Plan
    portion: Portion
    data: Any
    batch_size: int


class AbstractSource(ABC):
    """Where batches come from, one epoch at a time.

    Attributes:
        examples: how many examples the data hold, or None for a stream.
        plain_order: whether the user's order samples every example alike, so that ids may be
            drawn from the whole data set without another objective.
        one_pass: whether the data can be read only once.
        workers: how many processes fetch the data, beside this one.
    """

    examples: int | None
    plain_order: bool
    one_pass: bool
    workers: int

    def __init__(self) -> None:
        self._epoch: object | None = None
        self._resumed = False

    def epoch(self, planner: Planner) -> Iterator[Fetched]:
        """The batches of one epoch; every step's plan is asked for when its ids are needed.

        After a state was loaded that had been saved within an epoch: what is left of that epoch.
        """
        self._epoch = mine = object()
        try:
            yield from self._fetched(planner)
        finally:
            if self._epoch is mine:
                self._epoch = None

    @property
    def underway(self) -> bool:
        """Whether an epoch has begun and has not ended."""
        return self._resumed or self._epoch is not None

    @abstractmethod
    def _fetched(self, planner: Planner) -> Iterator[Fetched]: ...

    @abstractmethod
    def __len__(self) -> int:
        """Steps in an epoch; a TypeError where that is unknown."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The place in the user's order, and what was requested ahead, without any data."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a place. Data that are needed again are read again.

        Raises:
            UsageError: for the state of a source of another kind.
        """


def open_source(loader: Any, per_example_seed: int | None = None) -> AbstractSource:
    """The source that fits a loader.

    Args:
        loader: the user's own.
        per_example_seed: seeds every access to an example; None leaves what is random to chance.

    Raises:
        UsageError: when it is not iterable, or has no ids to seed by.

    Example:
        >>> import torch
        >>> loader = torch.utils.data.DataLoader(torch.arange(6), batch_size=4)
        >>> [step.portion.listed for step in open_source(loader).epoch(lambda size: Plan())]
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
    if by_id:
        return MapSource(loader, per_example_seed)
    if per_example_seed is not None:
        raise UsageError(
            f"per_example_seed received with a {type(loader).__name__} that is read as a stream, "
            "expected a DataLoader over map-style data, whose examples have ids: leave it out"
        )
    return StreamSource(loader)


class MapSource(AbstractSource):
    """Map-style data behind a DataLoader: examples are fetched by id, by the user's own workers.

    Ids are the indices that the user's sampler yields, so they mean the same in every epoch,
    however the data set is wrapped. The order of a DataLoader's batches is part of its contract;
    a loader made with ``in_order=False`` is read in order all the same.

    Attributes:
        loader: the user's own.
    """

    def __init__(self, loader: DataLoader[Any], per_example_seed: int | None = None) -> None:
        super().__init__()
        nominal = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        self.loader = loader
        self._sampler = PlannedBatches(loader, nominal, visits=per_example_seed is not None)
        dataset = loader.dataset
        if per_example_seed is not None:
            dataset = Seeded(dataset, per_example_seed)
        self._reader: DataLoader[Any] = _twin(loader, dataset, self._sampler)
        self.examples = len(loader.dataset)  # pyright: ignore[reportArgumentType]
        self.plain_order = loader.batch_size is not None and isinstance(
            loader.sampler, RandomSampler | DistributedSampler
        )
        self.one_pass = False
        self.workers = loader.num_workers

    def _fetched(self, planner: Planner) -> Iterator[Fetched]:
        """Fetches by id. Prefetching workers ask for plans ahead of their steps."""
        self._sampler.planner = planner
        try:
            for data in self._read():
                plan, portion, size = self._sampler.planned.popleft()
                yield Fetched(plan, portion, data, size)
        finally:
            self._sampler.planner = take_what_comes

    def _read(self) -> Iterator[Any]:
        """The reader's batches. An epoch that goes on draws no second seed for its workers."""
        if not self._resumed:
            return iter(self._reader)
        self._resumed = False
        self._reader.generator = torch.Generator()
        try:
            return iter(self._reader)
        finally:
            self._reader.generator = self.loader.generator

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """The place in the order of ids, the ids that were requested ahead, and their plans."""
        generator = self.loader.generator
        return {
            **self._sampler.state_dict(underway=self.underway),
            "underway": self.underway,
            "generator": None if generator is None else generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a place."""
        _check_kind(state, "ahead", self)
        self._sampler.load_state_dict(state, underway=state["underway"])
        self._epoch, self._resumed = None, state["underway"]
        if self.loader.generator is not None and state["generator"] is not None:
            self.loader.generator.set_state(state["generator"])


def _twin(
    loader: DataLoader[Any], dataset: Any, batch_sampler: Sampler[list[int]]
) -> DataLoader[Any]:
    """A DataLoader that differs from the user's in its batch sampler, and maybe in its data."""
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
    return DataLoader(dataset, batch_sampler=batch_sampler, **options)


class StreamSource(AbstractSource):
    """Any iterable of batches. Ids count the examples in the order in which they arrived."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self._loader = loader
        self._nominal: int | None = getattr(loader, "batch_size", None)
        self._arrived = 0
        self._order = Repeated(lambda: iter(loader), (loader,))
        self._passes = Passes(lambda: self._portions(self._order.restart()))
        self.one_pass = hasattr(loader, "__next__")
        self.workers = getattr(loader, "num_workers", 0)
        self.examples = None
        self.plain_order = False

    def _fetched(self, planner: Planner) -> Iterator[Fetched]:
        """Reads as many batches as each plan asks for."""
        if not self._resumed:
            self._passes.begin()
        self._resumed = False
        for plan, portion, size in plan_epoch(
            self._passes, planner, None if self.one_pass else steps_of(self._loader), self._nominal
        ):
            yield Fetched(plan, portion, portion.data, size)

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

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the present pass were read."""
        return {
            "order": self._order.state_dict(),
            "passes": self._passes.state_dict(),
            "arrived": self._arrived,
            "underway": self.underway,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Reads as many batches of the pass again, and leaves them out."""
        _check_kind(state, "arrived", self)
        rest, last = self._order.load_state_dict(state["order"])
        self._passes.load_state_dict(state["passes"], self._portions(rest), last)
        self._arrived = state["arrived"]
        self._epoch, self._resumed = None, state["underway"]


def _check_kind(state: Mapping[str, Any], sign: str, source: AbstractSource) -> None:
    if sign not in state:
        raise UsageError(
            f"the state of another kind of loader received, expected that of a "
            f"{type(source).__name__}: make the loader as it was when the state was saved"
        )
