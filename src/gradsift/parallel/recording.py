"""The order of arrivals that a real run had, kept as a file, so that the simulator can play it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor

from gradsift.errors import DataError, UsageError
from gradsift.parallel.arrivals import Arrival
from gradsift.parallel.tickets import Ticket

HEAD = "worker,read,batch"


@final
class Batches:
    """A stream of batches, by their place in it: each is there until it is dropped.

    Args:
        stream: taken from only as far as places are asked for.

    Example:
        >>> import torch
        >>> batches = Batches(torch.arange(6).split(2))
        >>> batches[2], batches[0]
        (tensor([4, 5]), tensor([0, 1]))
        >>> batches.drop([0, 2])
        >>> len(batches)
        1
    """

    def __init__(self, stream: Iterable[Tensor]) -> None:
        self._stream = iter(stream)
        self._kept: dict[int, Tensor] = {}
        self._taken = 0

    def __getitem__(self, place: int) -> Tensor:
        while self._taken <= place:
            batch = next(self._stream, None)
            if batch is None:
                raise UsageError(
                    f"batch {place + 1} asked for, but there are {self._taken}: lengthen the stream"
                )
            self._kept[self._taken] = batch
            self._taken += 1
        return self._kept[place]

    def __len__(self) -> int:
        return len(self._kept)

    def skip(self, places: Iterable[int]) -> None:
        """Takes batches off the stream that were trained on before."""
        done = set(places)
        for place in range(max(done, default=-1) + 1):
            self[place]
        self.drop(done)

    def drop(self, places: Iterable[int]) -> None:
        """Forgets batches that nobody will ask for again."""
        for place in places:
            self._kept.pop(place, None)


@final
@dataclass(frozen=True)
class Recording:
    """Arrivals as they were measured, and the batch that each of them was computed on.

    Attributes:
        arrivals: in order.
        batches: the place of each one's batch in the stream of batches.

    Raises:
        DataError: for arrivals that read weights of the future, or batches that are not each
            used once.

    Example:
        >>> import torch
        >>> recording = Recording.of([Ticket(1, 1, 0, 1), Ticket(0, 0, 0, 0)])
        >>> recording.arrivals, list(recording.reordered(torch.arange(2).split(1)))
        ((Arrival(worker=1, read=0), Arrival(worker=0, read=0)), [tensor([1]), tensor([0])])
    """

    arrivals: tuple[Arrival, ...]
    batches: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.batches) != list(range(len(self.arrivals))):
            raise DataError(
                f"{len(self.arrivals)} arrivals received whose batches are not the first "
                f"{len(self.arrivals)}, each once: a run was recorded while a worker was lost, or "
                "lines are missing"
            )
        for place, arrival in enumerate(self.arrivals):
            if not (arrival.worker >= 0 and 0 <= arrival.read <= place):
                raise DataError(
                    f"arrival {place + 1} has worker {arrival.worker} and read {arrival.read}, "
                    f"expected a worker of at least 0 and at most {place} gradients read"
                )

    @classmethod
    def of(cls, taken: Sequence[Ticket]) -> "Recording":
        """What a run did, from its tickets."""
        arrivals = tuple(Arrival(ticket.worker, ticket.read) for ticket in taken)
        return cls(arrivals, tuple(ticket.batch for ticket in taken))

    def reordered(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The batches of the same stream in the order of the arrivals."""
        kept = Batches(batches)
        for place in self.batches:
            yield kept[place]
            kept.drop([place])

    def write(self, path: Path) -> None:
        """As text: a line ``worker,read,batch``, then one line of numbers per arrival."""
        rows = zip(self.arrivals, self.batches, strict=True)
        lines = [f"{arrival.worker},{arrival.read},{batch}" for arrival, batch in rows]
        path.write_text("\n".join([HEAD, *lines, ""]), encoding="utf-8")


def read_arrivals(path: Path) -> Recording:
    """What `Recording.write` wrote.

    Raises:
        DataError: when the file cannot be read, or is something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "arrivals.csv"
        >>> Recording.of([Ticket(0, 3, 0, 0)]).write(path)
        >>> read_arrivals(path)
        Recording(arrivals=(Arrival(worker=3, read=0),), batches=(0,))
    """
    try:
        head, *lines = path.read_text(encoding="utf-8").split("\n")
        rows = [[int(word) for word in line.split(",")] for line in lines if line]
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({type(error).__name__})") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r} is no record of arrivals: {error}") from error
    if head != HEAD or not rows or any(len(row) != 3 for row in rows):
        raise DataError(
            f"{str(path)!r} is no record of arrivals: expected a line {HEAD!r}, then three whole "
            "numbers in each line"
        )
    try:
        arrivals = tuple(Arrival(worker, read) for worker, read, _ in rows)
        return Recording(arrivals, tuple(batch for *_, batch in rows))
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from error
