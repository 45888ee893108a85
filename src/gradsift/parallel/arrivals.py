"""The order in which gradients reach the server, made before training and kept as data.

An arrival says which worker's gradient comes next and which version of the weights that worker
had read. Training is then a function of the arrivals alone: a simulated order and one that was
recorded on real workers are played by the same code.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gradsift.errors import UsageError
from gradsift.parallel.delays import AbstractDelay


@dataclass(frozen=True)
class Arrival:
    """One gradient at the server.

    Attributes:
        worker: who computed it, from 0.
        read: how many gradients the server had received when that worker read the weights.

    Example:
        >>> Arrival(worker=2, read=5)
        Arrival(worker=2, read=5)
    """

    worker: int
    read: int


def arrivals_by_age(
    delay: AbstractDelay, workers: int, count: int, generator: torch.Generator
) -> list[Arrival]:
    """Arrival t was computed at the weights of ``max(0, t − τ_t)``, τ_t drawn, rounded down.

    This is the delay model of the literature on asynchronous SGD: workers do not wait for their
    own gradients to arrive, so any age may go with any number of workers, who take turns.

    Raises:
        UsageError: when no delay is shorter than the run: nothing but the first weights would
            ever be read.

    Example:
        >>> from gradsift.parallel.delays import ConstantDelay
        >>> [a.read for a in arrivals_by_age(ConstantDelay(2), 3, 5, torch.Generator())]
        [0, 0, 0, 1, 2]
    """
    _check(workers, count)
    ages = delay.draw(count, generator).floor().to(torch.int64).tolist()
    if min(ages) >= count and min(ages) > 0:
        raise UsageError(
            f"the delays are at least {min(ages)} updates, but the run has {count}: no update "
            "would be seen before its end; shorten the delay or lengthen the run"
        )
    return [Arrival(t % workers, max(0, t - age)) for t, age in enumerate(ages)]


def arrivals_by_race(
    seconds: AbstractDelay,
    workers: int,
    count: int,
    generator: torch.Generator,
    bound: int | None = None,
) -> list[Arrival]:
    """Each worker reads, computes for so many seconds, delivers, and reads again.

    With a bound s the workers are *stale synchronous parallel*: one that has delivered c gradients
    starts the next only while ``c − min over workers <= s``, and otherwise waits for the slowest.
    ``bound=0`` is a barrier after each round. Ties go to the lower worker.

    Reference:
        Ho et al. 2013, "More effective distributed ML via a stale synchronous parallel parameter
        server". There reads may return older weights within the bound; here they are current.

    Example:
        >>> from gradsift.parallel.delays import ConstantDelay
        >>> [a.read for a in arrivals_by_race(ConstantDelay(1), 3, 6, torch.Generator())]
        [0, 0, 0, 1, 2, 3]
        >>> race = arrivals_by_race(ConstantDelay(1), 3, 6, torch.Generator(), bound=0)
        >>> [a.read for a in race]
        [0, 0, 0, 3, 3, 3]
    """
    _check(workers, count)
    if bound is not None and bound < 0:
        raise UsageError(f"a staleness bound of {bound} received, expected at least 0")
    clocks = [0] * workers
    waiting: set[int] = set()
    starts = seconds.draw(workers, generator).tolist()
    running = [(finish, worker, 0) for worker, finish in enumerate(starts)]
    heapq.heapify(running)
    found: list[Arrival] = []
    while len(found) < count:
        now, worker, read = heapq.heappop(running)
        found.append(Arrival(worker, read))
        clocks[worker] += 1
        waiting.add(worker)
        limit = max(clocks) if bound is None else min(clocks) + bound
        for ready in sorted(other for other in waiting if clocks[other] <= limit):
            waiting.remove(ready)
            lasting = float(seconds.draw(1, generator))
            heapq.heappush(running, (now + lasting, ready, len(found)))
    return found


def longest_age(arrivals: Sequence[Arrival]) -> int:
    """The most updates by which a gradient is late: how many old weights a server must keep.

    Example:
        >>> longest_age([Arrival(0, 0), Arrival(1, 0), Arrival(0, 1)])
        1
    """
    return max((place - arrival.read for place, arrival in enumerate(arrivals)), default=0)


def _check(workers: int, count: int) -> None:
    if workers < 1 or count < 1:
        raise UsageError(f"{workers} workers and {count} updates received, expected at least 1")
