"""How a run survives its process: what is saved of it, when, and how it goes on.

A run saves itself before its first step, whenever that is due, and on Ctrl-C, so that it can go on
from the first moment on. Once it has ended nothing is kept but its results.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from gradsift.budget import Budget
from gradsift.checkpoint import checkpoints, read_latest, remove_checkpoints, write_checkpoint
from gradsift.clock import AbstractClock, PausableClock
from gradsift.data.problem import Problem
from gradsift.errors import UsageError
from gradsift.monitors.log import JsonLines
from gradsift.report.summary import FILE as SUMMARY
from gradsift.trainer.evaluation import count_examples
from gradsift.trainer.interruption import Interruption
from gradsift.trainer.settings import Settings

FOLDER = "checkpoints"
"""In the folder of a run."""

EVERY = Budget("seconds", 300)
"""Between two checkpoints: what a crash costs at most. Writing one costs no budget."""


@runtime_checkable
class Keepable(Protocol):
    """What can be kept: a loop, or a run of parallel SGD."""

    interruption: Interruption
    clock: PausableClock
    inner: AbstractClock

    @property
    def steps(self) -> int:
        """How far it is, for the names of checkpoints."""
        ...

    @property
    def epochs(self) -> float:
        """The same in epochs."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that it needs to go on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        ...


@dataclass(frozen=True)
class Keeping:
    """How a run is kept.

    Attributes:
        every: what passes between two checkpoints: steps, epochs or seconds of the run's clock,
            evaluations included.
        resume: whether the run that is in the folder goes on, rather than a new one begins.
        flags: whatever else made the run what it is, as plain values; kept for `saved_run`.
    """

    every: Budget = EVERY
    resume: bool = False
    flags: Mapping[str, Any] = field(default_factory=dict)


def saved_run(out: Path) -> dict[str, Any] | None:
    """What the latest checkpoint of a run holds; None for a run that was not saved yet.

    Raises:
        UsageError: where there is no run, or one that is finished.
        DataError: for a checkpoint that cannot be read, naming the one before it.
    """
    if not checkpoints(out / FOLDER):
        if (out / SUMMARY).exists():
            raise UsageError(
                f"the run in {str(out)!r} is finished, there is nothing to resume: name another "
                "folder for a new run"
            )
        if not _is_unsaved_run(out):
            raise UsageError(
                f"folder {str(out)!r} holds no run to resume: leave --resume out to begin one"
            )
    return read_latest(out / FOLDER)


def require_free(out: Path) -> None:
    """Raises a `UsageError` unless a folder is empty or does not exist yet."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{str(out)!r} is a file: name a folder for the results")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"folder {str(out)!r} is not empty: name another one for the results")


def _is_unsaved_run(out: Path) -> bool:
    """Whether a run was killed before its first checkpoint was there."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    return "metrics.jsonl" in names and names <= {"metrics.jsonl", FOLDER}


class Keeper:
    """Saves a run in its folder, and lets it go on from there.

    Args:
        out: folder of the run.
        keeping: how often.
        settings: of the run.
        problem: that it learns.
        command: that began it.
        more: whatever else makes the run what it is, as plain values.
    """

    def __init__(
        self,
        out: Path,
        keeping: Keeping,
        settings: Settings,
        problem: Problem,
        command: str,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.command = command
        self._out = out
        self._keeping = keeping
        self._made_for = {
            **settings.listed(),
            **(more or {}),
            "data": problem.name,
            "training examples": count_examples(problem.train),
            "test examples": count_examples(problem.test),
        }
        self._last: dict[str, float] | None = None
        self._saved = saved_run(out) if keeping.resume else None
        self._metrics: JsonLines | None = None
        if self._saved is not None:
            _check_same(self._saved["made_for"], self._made_for, out)
            self.command = self._saved["command"]

    def open_log(self) -> JsonLines:
        """The measurements of the run, without those after its last checkpoint.

        Raises:
            UsageError: for a new run in a folder that is not free, before it is made.
        """
        if not self._keeping.resume:
            require_free(self._out)
        self._metrics = JsonLines(self._out)
        if self._keeping.resume:
            # A summary beside measurements that were cut would look like a finished run.
            (self._out / SUMMARY).unlink(missing_ok=True)
            self._metrics.cut(0 if self._saved is None else self._saved["metrics"])
        return self._metrics

    def restore(self, loop: Keepable) -> None:
        """Brings a fresh loop, and the global random state, to the last checkpoint, if any."""
        if self._saved is None:
            return
        loop.load_state_dict(self._saved["loop"])
        _set_random_states(self._saved["random"])
        self._last = _passed(loop)
        self._saved = None

    def keep(self, loop: Keepable) -> None:
        """Saves the run where that is due."""
        now = _passed(loop)
        if self._last is not None and not loop.interruption.requested:
            since = {kind: now[kind] - self._last[kind] for kind in now}
            if since[self._keeping.every.kind] < self._keeping.every.amount:
                return
        if self._last != now:
            with loop.clock.paused():
                self._save(loop)
            self._last = now

    def end(self) -> None:
        """The results are written: checkpoints have done their work."""
        remove_checkpoints(self._out / FOLDER)

    def _save(self, loop: Keepable) -> None:
        state = {
            "made_for": self._made_for,
            "flags": dict(self._keeping.flags),
            "command": self.command,
            "loop": loop.state_dict(),
            "random": _random_states(),
            "metrics": 0 if self._metrics is None else self._metrics.keep(),
        }
        write_checkpoint(self._out / FOLDER, loop.steps, state)


def _passed(loop: Keepable) -> dict[str, float]:
    return {"steps": loop.steps, "epochs": loop.epochs, "seconds": loop.inner.now()}


def _check_same(saved: Mapping[str, Any], given: Mapping[str, Any], out: Path) -> None:
    for name, value in given.items():
        if saved.get(name) != value:
            raise UsageError(
                f"the run in {str(out)!r} has {name} {saved.get(name)}, received {value}: resume "
                "it with its own settings, or begin another one in another folder"
            )


def _random_states() -> dict[str, Any]:
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), place, has_gauss, gauss],
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
