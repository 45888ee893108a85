"""Who the workers of parallel SGD are, in the words of the command line, and when they deliver."""

from collections.abc import Sequence
from pathlib import Path

from gradsift.budget import Budget
from gradsift.errors import UsageError
from gradsift.parallel.arrivals import Arrival
from gradsift.parallel.recording import Recording, read_arrivals
from gradsift.parallel.tickets import AbstractTickets, MeasuredTickets, PlannedTickets

BACKENDS = ("simulate", "ray")

MEASURED = "measured"
"""The delay of real workers, as it comes."""

LONGEST = 8
"""Times the number of workers: how many gradients late that of a real worker may be."""

_RECORDED = "arrivals:"


def check_backend(
    backend: str, recipe: str, delay: str, address: str | None, *, synchronous: bool
) -> None:
    """Refuses what a backend cannot do.

    Raises:
        UsageError: for an unknown one, or a flag that means nothing to it.

    Example:
        >>> check_backend("ray", "ssgd", "none", None, synchronous=True)
        Traceback (most recent call last):
        gradsift.errors.UsageError: backend 'ray' received, but 'ssgd' is synchronous: use ...
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is unknown: choose {' or '.join(BACKENDS)}")
    if backend == "ray" and synchronous:
        raise UsageError(
            f"backend 'ray' received, but {recipe!r} is synchronous: use simulate, or "
            "gradsift.parallel.ssgd_on_ranks in a loop of your own under torchrun"
        )
    if backend != "ray" and delay == MEASURED:
        raise UsageError(
            f"delay {MEASURED!r} received, but simulated workers have none to measure: use "
            "--backend ray, or --delay arrivals:FILE of such a run"
        )
    if backend != "ray" and address is not None:
        raise UsageError(
            f"Ray address {address!r} received, but the backend is {backend}: use --backend ray, "
            "or leave the address out"
        )


def check_budget(budget: Budget, backend: str) -> None:
    """Refuses seconds, which are known only when they have passed.

    Raises:
        UsageError: for them.

    Example:
        >>> from gradsift.budget import parse_budget
        >>> check_budget(parse_budget("5s"), "simulate")
        Traceback (most recent call last):
        gradsift.errors.UsageError: budget 5s received, but simulated workers have no seconds: ...
    """
    if budget.kind == "seconds":
        real = "a run on Ray is planned in batches"
        raise UsageError(
            f"budget {budget} received, but "
            f"{real if backend == 'ray' else 'simulated workers have no seconds'}: give epochs or "
            "steps, such as 10ep or 2000steps"
        )


def is_schedule(delay: str) -> bool:
    """Whether a delay is in the words of `gradsift.parallel.parse_delay`.

    Example:
        >>> is_schedule("constant:9"), is_schedule("arrivals:a.csv"), is_schedule("measured")
        (True, False, False)
    """
    return delay != MEASURED and not (delay.startswith(_RECORDED) and delay != _RECORDED)


def recorded(delay: str, count: int) -> Recording | None:
    """The arrivals of a real run, if the delay names the file of one.

    Raises:
        DataError: when the file is broken.
        UsageError: when it has another number of gradients than this run.

    Example:
        >>> recorded("constant:9", 40) is None
        True
    """
    if delay == MEASURED or is_schedule(delay):
        return None
    path = delay.removeprefix(_RECORDED)
    found = read_arrivals(Path(path))
    if len(found.arrivals) != count:
        raise UsageError(
            f"{path!r} has {len(found.arrivals)} arrivals, but the run has {count} gradients: give "
            "the budget and the batch size that it was recorded with"
        )
    return found


def tickets_for(
    delay: str, arrivals: Sequence[Arrival], count: int, workers: int, bound: int | None
) -> AbstractTickets:
    """What real workers are asked for: as it comes, or in an order that was made before.

    Example:
        >>> type(tickets_for("measured", [], 40, 4, None)).__name__
        'MeasuredTickets'
    """
    if delay == MEASURED:
        return MeasuredTickets(count, LONGEST * workers, bound)
    return PlannedTickets(arrivals)
