"""A trainer and a scorer that are pinned to cores: what `live.py` measures."""

import argparse
import os
import signal
import time
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from gradsift import engines, recipes, sift
from gradsift.data.problem import Problem
from gradsift.engine.local import LocalEngine
from gradsift.loader import SiftedLoader
from gradsift.models import build_model
from gradsift.models.dense import mlp
from gradsift.models.initialise import initialise

SETTLING = 5
"""Steps of a turn, and of a run, before anything is timed."""

BATCH, MOMENTUM, EVERY = 64, 0.9, 32
FOREVER = 1e6
"""Seconds of patience: a scorer that is stopped on purpose is not lost."""


@dataclass(frozen=True)
class Arm:
    """One way to use the machine.

    Attributes:
        cores: that the trainer computes on, a thread each.
        larger: factor of the batch.
        faster: factor of the learning rate.
        live: whether a scorer has the second core.
    """

    cores: int = 1
    larger: int = 1
    faster: int = 1
    live: bool = False


REFERENCE = "uniform"
ARMS = {
    REFERENCE: Arm(),
    "live": Arm(live=True),
    "both cores": Arm(cores=2, larger=2),
    "both cores, twice the rate": Arm(cores=2, larger=2, faster=2),
}


def build(name: str, problem: Problem, seed: int) -> nn.Module:
    """A model of the command line, or ``wide``: two hidden layers of 2,048."""
    generator = torch.Generator().manual_seed(seed)
    if name != "wide":
        return build_model(name, problem.input_shape, problem.outputs, generator=generator)
    with torch.device("meta"):
        model = mlp(problem.input_shape, problem.outputs, 2048)
    model.to_empty(device="cpu")
    initialise(model, generator)
    return model


def engine_of(data: str) -> LocalEngine:
    """One worker, which opens the data by itself."""
    engine = engines.local(data, 1, every=EVERY, patience=FOREVER)
    assert isinstance(engine, LocalEngine)
    return engine


class Scorer:
    """The one worker of an engine.

    Args:
        engine: that has been started.
        core: that the worker is pinned to.
    """

    def __init__(self, engine: LocalEngine, core: int) -> None:
        pid = engine.seats[0].pid
        assert pid is not None
        self._engine, self._pid = engine, pid
        os.sched_setaffinity(pid, {core})

    @property
    def lost(self) -> bool:
        """Whether it is another process by now, on whatever core."""
        return self._engine.state.workers_lost > 0 or self._engine.seats[0].pid != self._pid

    def allow(self, *, work: bool) -> None:
        """Stops it, or lets it go on."""
        os.kill(self._pid, signal.SIGCONT if work else signal.SIGSTOP)

    def seconds(self) -> float:
        """CPU seconds that it has used."""
        return cpu_seconds(Path(f"/proc/{self._pid}/stat").read_text(encoding="utf-8"))


def cpu_seconds(stat: str) -> float:
    """User and system time of a process; its name, which may hold anything, is in brackets."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train(arm: Arm, problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """One run of one arm, in this process."""
    os.sched_setaffinity(0, set(options.cores[: arm.cores]))
    torch.set_num_threads(arm.cores)
    model = build(options.models[0], problem, options.seed)
    optimizer = torch.optim.SGD(model.parameters(), options.lr * arm.faster, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(options.seed)
    size = BATCH * arm.larger
    loader = DataLoader(problem.train, size, shuffle=True, drop_last=True, generator=generator)
    engine = engine_of(options.data) if arm.live else None
    recipe = recipes["issgd" if arm.live else "uniform"]
    sifted = sift(loader, model, problem.loss_fn, recipe=recipe, engine=engine, seed=options.seed)
    scorer, start, steps = None, 0.0, 0
    for batch in chain.from_iterable(repeat(sifted)):
        if engine is not None and scorer is None:
            scorer = Scorer(engine, options.cores[1])
        optimizer.zero_grad()
        batch.loss(model(batch.inputs)).backward()
        optimizer.step()
        steps += 1
        if steps == SETTLING:
            start = time.perf_counter()
        elif steps > SETTLING and time.perf_counter() - start >= options.seconds:
            break
    seconds = time.perf_counter() - start
    lost = scorer is not None and scorer.lost
    return {"steps": steps, "seconds": seconds, "lost": lost, **ended(model, problem, sifted)}


def ended(model: nn.Module, problem: Problem, sifted: SiftedLoader) -> dict[str, Any]:
    """Where a run is: training loss, test error, the state of its engine."""
    status = sifted.engine_status
    sifted.close()
    means = []
    with torch.no_grad():
        for data, of in ((problem.train, problem.loss_fn), (problem.test, problem.error_fn)):
            parts = [of(model(inputs), targets) for inputs, targets in DataLoader(data, 1000)]
            means.append(float(torch.cat(parts).mean()))
    return {"loss": means[0], "error": means[1], "status": status}
