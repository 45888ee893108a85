"""Comparisons without training: runs that are written instead of run."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradsift.comparison.child import Children, Ended
from gradsift.report.compared import Machine
from gradsift.report.picks import Picks, write_picks
from gradsift.report.summary import Summary, write_summary

QUIET = Machine(cpu_seconds=9.0, wall_seconds=10.0, foreign_cpu=0.01)
SUMMARY = Summary(
    recipe="uniform",
    data="digits",
    model="cnn",
    seed=0,
    steps=100,
    examples_trained=3200,
    examples_scored=0,
    seconds_total=10.0,
    seconds_loading=1.0,
    seconds_scoring=2.0,
    seconds_training=6.0,
    seconds_evaluating=0.5,
    train_loss=0.1,
    train_error=0.001,
    test_loss=0.0678,
    test_error=0.02,
    gate=None,
    engine=None,
    versions={"gradsift": "0.1.0", "torch": "2.13.0", "python": "3.11.0"},
    command="gradsift train",
)


def lines(summary, *, interrupted=False, task="classification"):
    """Measurements of a loss and error that fall by a constant factor per second."""
    found: list[dict[str, Any]] = [
        {"kind": "event", "name": "settings", "task": task, "budget": "10s"}
    ]
    for second in range(11):
        step = 10 * second
        values = {
            "train_loss": summary.train_loss ** (second / 10),
            "test_loss": summary.test_loss ** (second / 10),
            "test_error": max(summary.test_error, 0.9 - second * 0.088),
        }
        found.append({"kind": "eval", "step": step, "seconds": float(second), **values})
        found.append({"kind": "train", "step": step + 1, "trained": 32 * (step + 1)})
    if interrupted:
        found.append({"kind": "event", "name": "interrupted", "share": 0.5})
    return [{"step": 0, "seconds": 0.0, **line} for line in found]


def picks(*, images=True, even=False):
    """Of 40 examples, where example k has score k and, unless even, was drawn k times."""
    ids = np.arange(40)
    draws = np.full(40, 3) if even else ids
    inputs = np.arange(40 * 16, dtype=np.float32).reshape(40, 1, 4, 4) if images else None
    texts = tuple(f"<label {index % 3}>" for index in ids)
    kept = np.zeros(0, dtype=np.float32) if inputs is None else inputs
    return Picks(ids, ids.astype(float), draws, ids, kept, texts)


def write_run(folder: Path, summary, **changes):
    """A run's folder, as `gradsift train` leaves it."""
    folder.mkdir(parents=True)
    text = "\n".join(json.dumps(line) for line in lines(summary, **changes))
    (folder / "metrics.jsonl").write_text(text + "\n")
    write_picks(folder, picks())
    write_summary(folder, summary)


class WrittenChildren(Children):
    """Stands for `Children`: writes a run where a process would have trained one.

    `outcome(arguments)` gives the fields that a run's summary differs in, or an `Ended`.
    """

    def __init__(self, outcome=lambda arguments: {}):
        super().__init__()
        self.outcome, self.calls, self.stop_at = outcome, [], None

    def __call__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def run(self, arguments, heard):
        self.calls.append(list(arguments))
        folder = Path(arguments[-1])
        assert not folder.exists()
        found = self.outcome(arguments)
        heard("  50 %     5.0 s  step      50")
        seed = int(arguments[arguments.index("--seed") + 1])
        command = shlex.join(["gradsift", *arguments])
        if len(self.calls) == self.stop_at:
            self.interrupted = True
            write_run(folder, replace(SUMMARY, seed=seed, command=command), interrupted=True)
            return Ended(130, "it ended with status 130", QUIET)
        if isinstance(found, Ended):
            if found.status == 1:
                folder.mkdir(parents=True)
                (folder / "metrics.jsonl").write_text("")
            return found
        write_run(folder, replace(SUMMARY, **{"seed": seed, "command": command, **found}))
        return Ended(0, "", QUIET)
