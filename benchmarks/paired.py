"""Training loops that take turns, so that their seconds per step can be compared in pairs."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradsift import Recipe, SiftedLoader, sift
from gradsift.clock import AbstractClock
from gradsift.comparison.machine import between, read_meters
from gradsift.engine.interface import AbstractEngine
from gradsift.records import LossFunction


class TurnClock(AbstractClock):
    """Seconds of a loop's own turns.

    A gate that may spend a share of its time must not count that of the others as its own.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def now(self) -> float:
        """Seconds of all turns so far."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def charge(self, *, trained: int = 0, scored: int = 0) -> None:
        """Real time passes by itself."""
        del trained, scored

    def state_dict(self) -> dict[str, Any]:
        """Seconds of the turns that are over."""
        return {"seconds": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self._before = float(state["seconds"])

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Runs for a block."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._before, self._since = self.now(), None


@dataclass(frozen=True, eq=False)
class Loop:
    """A training loop that goes on step by step.

    Attributes:
        step: takes one.
        train: the sifted loader; None for the plain loop.
        clock: of the sifted loader.
    """

    step: Callable[[], None]
    train: SiftedLoader | None
    clock: TurnClock

    def go(self, steps: int) -> None:
        """Takes some steps."""
        with self.clock.turn():
            for _ in range(steps):
                self.step()


@dataclass(frozen=True)
class Times:
    """Seconds per step of blocks that took turns.

    Attributes:
        blocks: of every loop, in order.
        foreign: share of the cores that other processes took meanwhile; None where unknown.
    """

    blocks: Mapping[str, list[float]]
    foreign: float | None

    def ratio(self, name: str, reference: str) -> tuple[float, float, float]:
        """Quartiles of the ratios within a round: low, median, high."""
        pairs = zip(self.blocks[name], self.blocks[reference], strict=True)
        low, median, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        return low, median, high

    def milliseconds(self, name: str) -> float:
        """Median of a step."""
        return 1e3 * statistics.median(self.blocks[name])

    @property
    def load(self) -> str:
        """In words."""
        if self.foreign is None:
            return "load unknown"
        return f"{self.foreign:.1%} foreign" + (", contended" if self.foreign > 0.05 else "")


def loop(
    recipe: Recipe | None,
    model: nn.Module,
    loader: DataLoader[Any],
    loss_fn: LossFunction,
    lr: float = 0.02,
    engine: AbstractEngine | None = None,
) -> Loop:
    """SGD with momentum, by the plain loop where there is no recipe."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    clock = TurnClock()
    train = None
    if recipe is not None:
        train = sift(loader, model, loss_fn, recipe=recipe, clock=clock, engine=engine)
    losses = _plain(loader, model, loss_fn) if train is None else _sifted(train, model)

    def step() -> None:
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Loop(step, train, clock)


CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds, or CPU seconds of this process: steadier, and nearly the same with one thread."""


def take_turns(loops: Mapping[str, Loop], blocks: int, steps: int, clock: str = "wall") -> Times:
    """Rounds of blocks of steps; every place in a round falls to every loop equally often."""
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in loops}
    before = read_meters()
    for number in range(blocks):
        place = number % len(loops)
        for name in [*loops, *loops][place : place + len(loops)]:
            start = now()
            loops[name].go(steps)
            times[name].append((now() - start) / steps)
    return Times(times, between(before, read_meters()).foreign_cpu)


def _plain(loader: DataLoader[Any], model: nn.Module, loss_fn: LossFunction) -> Iterator[Tensor]:
    for inputs, targets in chain.from_iterable(repeat(loader)):
        yield loss_fn(model(inputs), targets).mean()


def _sifted(train: SiftedLoader, model: nn.Module) -> Iterator[Tensor]:
    for batch in chain.from_iterable(repeat(train)):
        yield batch.loss(model(batch.inputs))
