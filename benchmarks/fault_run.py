"""Training runs whose workers, scores or trainer go wrong on purpose.

A small network learns the bundled digits by the scores of one worker process, while steps are held
back a little, so that faults, and what is done about them, happen within a run.
"""

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gradsift import engines, recipes, sift
from gradsift.checkpoint import checkpoints, read_latest, write_checkpoint
from gradsift.data.named import ReadOptions, load_problem
from gradsift.engine.local import LocalEngine
from gradsift.models import build_model
from gradsift.scores import GradientNorm

DATA = "digits"
BATCH, BLOCK, EVERY, LR, MOMENTUM = 32, 64, 8, 0.02, 0.9
PATIENCE = 6.0
"""Seconds that a worker may be silent over one block."""

SLOW = 0.2
"""Seconds by which a slow worker is late with every block."""

SPELL = 40
"""Steps after which an order to go wrong is withdrawn."""

AGAIN = 10
"""Steps between two kills of whoever has come back."""

ORDER, ACTED, RESULT, KEPT = "order", "acted", "outcome.json", "checkpoints"
_NORMS = GradientNorm(check=False)


@dataclass(frozen=True)
class Schedule:
    """When things happen.

    Attributes:
        steps: of a run.
        at: the step after which the fault begins.
        pace: seconds that every step is held back.
        hold: likewise, of steps that wait: before the fault until every example has a score, and
            after it until the run shows that it took place and scores come back again.
        keep: steps between checkpoints, where the trainer is killed.
    """

    steps: int = 400
    at: int = 120
    pace: float = 0.01
    hold: float = 0.1
    keep: int = 20


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        loss: mean over the training set, at the end.
        lost: workers that ended or were given up.
        restarts: workers that were started again.
        scored: examples whose scores came back.
        quarantined: scores that were not finite.
        set_aside: blocks that are not scored any more.
        usable: share of the examples with a score.
        acted: whether a worker did what an order asked for, or a checkpoint was resumed.
        said: what the run said about it.
    """

    loss: float
    lost: int
    restarts: int
    scored: int
    quarantined: int
    set_aside: tuple[int, ...]
    usable: float
    acted: bool
    said: tuple[str, ...]


@dataclass(frozen=True)
class Disturbed:
    """Exact gradient norms, unless a file in a folder says what should go wrong.

    ``hang`` is for the one worker that takes the file away; ``slow`` and ``nan`` are for every
    block while the file is there; ``raise`` for the poisoned one, which stays so.

    Attributes:
        folder: where the file may be.
        poisoned: the `mark` of a block.
    """

    folder: str
    poisoned: str

    def __call__(self, model: Any, loss_fn: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        """The norms, or what goes wrong."""
        file = Path(self.folder) / ORDER
        word = _read(file)
        meant = bool(word) and (word != "raise" or mark(inputs) == self.poisoned)
        if meant:
            (file.parent / ACTED).touch()
        if meant and word == "hang":
            file.unlink(missing_ok=True)
            time.sleep(1000)
        if meant and word == "raise":
            raise ValueError("this block cannot be read")
        if meant and word == "slow":
            time.sleep(SLOW)
        norms = _NORMS(model, loss_fn, inputs, targets)
        return torch.full_like(norms, torch.nan) if word == "nan" else norms


def _read(file: Path) -> str:
    """What is in a file that somebody else may take away."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def mark(inputs: Tensor) -> str:
    """What a block is known by: its first input."""
    return float(inputs[0].double().sum()).hex()


Act = Callable[[int, Schedule, LocalEngine, Path], None]
"""Called after every step from the fault's on: the step, when things happen, whom, and where."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        act: makes it go wrong; None where nothing does within the run.
        happened: whether a run shows that it did.
        lasting: whether no score comes back after it.
        trainer: whether it is the trainer that is killed, and resumed.
    """

    act: Act | None
    happened: Callable[[Outcome], bool]
    lasting: bool = False
    trainer: bool = False


def _sent(number: signal.Signals, every: int | None = None) -> Act:
    """A signal to all workers, once or again and again."""

    def act(step: int, schedule: Schedule, engine: LocalEngine, folder: Path) -> None:
        del folder
        since = step - schedule.at
        if since == 0 or (every is not None and since % every == 0):
            for seat in engine.seats:
                if seat.pid is not None:
                    os.kill(seat.pid, number)

    return act


def _ordered(word: str) -> Act:
    """An order to the score for a spell, whole or not there for whoever reads it meanwhile."""

    def act(step: int, schedule: Schedule, engine: LocalEngine, folder: Path) -> None:
        del engine
        if step == schedule.at:
            temporary = folder / "order.tmp"
            temporary.write_text(word)
            temporary.replace(folder / ORDER)
        elif step == schedule.at + SPELL and word != "raise":
            (folder / ORDER).unlink(missing_ok=True)

    return act


FAULTS = {
    "none": Fault(None, lambda run: not (run.lost or run.set_aside or run.acted)),
    "worker killed": Fault(_sent(signal.SIGKILL), lambda run: run.lost >= 1),
    "worker stopped": Fault(_sent(signal.SIGSTOP), lambda run: run.lost >= 1),
    "worker hangs": Fault(_ordered("hang"), lambda run: run.lost >= 1 and run.acted),
    "worker slow": Fault(_ordered("slow"), lambda run: run.acted),
    "scores NaN": Fault(_ordered("nan"), lambda run: run.quarantined > 0),
    "block fails": Fault(_ordered("raise"), lambda run: run.set_aside == (0,)),
    "workers killed for good": Fault(_sent(signal.SIGKILL, AGAIN), lambda run: run.lost >= 2, True),
    "trainer killed, resumed": Fault(None, lambda run: run.acted, trainer=True),
}


def inject(name: str, seed: int, schedule: Schedule, folder: Path) -> Outcome:
    """One run with one fault; what a run fails by is raised here."""
    if not FAULTS[name].trainer:
        return train(name, seed, schedule, folder)
    context = multiprocessing.get_context("spawn")
    first = context.Process(target=train_alone, args=(name, seed, schedule, folder))
    first.start()
    try:
        _wait_for_checkpoint(folder / KEPT, schedule.at, first)
    finally:
        first.kill()
        first.join()
    second = context.Process(target=train_alone, args=(name, seed, schedule, folder, True))
    second.start()
    second.join()
    if second.exitcode != 0:
        raise RuntimeError(f"the resumed run ended with exit code {second.exitcode}")
    content: dict[str, Any] = json.loads((folder / RESULT).read_text())
    content |= {name: tuple(content[name]) for name in ("set_aside", "said")}
    return Outcome(**content)


def _wait_for_checkpoint(folder: Path, step: int, process: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not any(int(path.stem.partition("-")[2]) >= step for path in checkpoints(folder)):
        if process.exitcode is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no checkpoint of step {step} came: {process.exitcode}")
        time.sleep(0.01)


def train_alone(
    name: str, seed: int, schedule: Schedule, folder: Path, resume: bool = False
) -> None:
    """In a process of its own, which keeps checkpoints and writes how it ended."""
    torch.set_num_threads(1)
    found = train(name, seed, schedule, folder, keep=True, resume=resume)
    (folder / RESULT).write_text(json.dumps(asdict(found)))


class Training:
    """A run by the scores of one worker process.

    Args:
        seed: of parameters, orders and draws.
        folder: where orders to the score are.

    Attributes:
        step: how many were taken.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        problem = load_problem(DATA, ReadOptions())
        generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
        self.step = 0
        self.data: Any = problem.train
        self.loss_fn = problem.loss_fn
        self.model = build_model(
            "mlp", problem.input_shape, problem.outputs, generator=generators[0]
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), LR, momentum=MOMENTUM)
        made = engines.local(DATA, 1, block=BLOCK, every=EVERY, patience=PATIENCE)
        assert isinstance(made, LocalEngine)
        self.engine = made
        score = Disturbed(str(folder), mark(self.data[0][0].unsqueeze(0)))
        self.batches = sift(
            DataLoader(self.data, BATCH, shuffle=True, generator=generators[1]),
            self.model,
            self.loss_fn,
            recipe=replace(recipes["issgd"], score=score),
            engine=self.engine,
            seed=seed,
        )

    def save(self, folder: Path) -> None:
        """All of it, whole or not at all."""
        parts = {"model": self.model, "optimizer": self.optimizer, "loop": self.batches}
        states = {name: part.state_dict() for name, part in parts.items()}
        write_checkpoint(folder, self.step, {"step": self.step, **states})

    def load(self, folder: Path) -> bool:
        """Goes on from the latest checkpoint, if there is one."""
        state = read_latest(folder)
        if state is None:
            return False
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["loop"])
        return True

    def outcome(self, *, acted: bool) -> Outcome:
        """How the run is by now, but for its loss."""
        self.batches.settle()
        status: Any = self.batches.engine_status
        return Outcome(
            loss=math.nan,
            lost=status["workers_lost"],
            restarts=status["restarts"],
            scored=status["delivered"],
            quarantined=self.batches.quarantined,
            set_aside=tuple(status["set_aside"]),
            usable=status["usable"],
            acted=acted,
            said=self.batches.notices,
        )

    def loss(self) -> float:
        """Mean over the training set."""
        inputs, targets = next(iter(DataLoader(self.data, len(self.data))))
        with torch.no_grad():
            return float(self.loss_fn(self.model(inputs), targets).mean())


def train(
    name: str,
    seed: int,
    schedule: Schedule,
    folder: Path,
    *,
    keep: bool = False,
    resume: bool = False,
) -> Outcome:
    """One run in this process."""
    run, fault = Training(seed, folder), FAULTS[name]
    act, came = fault.act, None
    resumed = resume and run.load(folder / KEPT)
    with closing(run.batches):
        for batch in chain.from_iterable(repeat(run.batches)):
            run.optimizer.zero_grad()
            batch.loss(run.model(batch.inputs)).backward()
            run.optimizer.step()
            run.step += 1
            if act is not None and run.step >= schedule.at:
                act(run.step, schedule, run.engine, folder)
            if keep and run.step % schedule.keep == 0:
                run.save(folder / KEPT)
            found = run.outcome(acted=resumed or (folder / ACTED).exists())
            if run.step < schedule.at:
                waits = found.usable < 1
            else:
                if came is None and fault.happened(found):
                    came = found.scored
                waits = came is None or not (fault.lasting or found.scored > came)
            time.sleep(schedule.hold if waits else schedule.pace)
            if run.step >= schedule.steps:
                break
        found = run.outcome(acted=resumed or (folder / ACTED).exists())
    return replace(found, loss=run.loss())
