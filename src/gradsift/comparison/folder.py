"""The folder of a comparison: which of its runs are there, and which have to be run."""

import shlex
from pathlib import Path
from typing import Literal

from gradsift.comparison.arms import TUNING
from gradsift.comparison.child import command_of
from gradsift.comparison.machine import as_machine, read_machine
from gradsift.comparison.plan import Job, Plan
from gradsift.errors import DataError, UsageError
from gradsift.report.compared import Measured
from gradsift.report.runs import Run, read_run

State = Literal["absent", "unfinished", "complete", "failed"]

SUMMARY = "summary.json"


def check_folder(out: Path, plan: Plan) -> None:
    """Looks at ``OUT`` before anything is written to it.

    Raises:
        UsageError: when it is a file, or holds something that is no comparison.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{str(out)!r} is a file: name a folder for the comparison")
    if not out.is_dir() or ((out / SUMMARY).is_file() and not (out / "metrics.jsonl").exists()):
        return
    expected = {arm.name for arm in plan.arms} | {TUNING}
    for path in sorted(out.iterdir()):
        if path.name not in expected or not path.is_dir():
            raise UsageError(
                f"folder {str(out)!r} holds {path.name!r} and is no comparison: name another one"
            )


def look(out: Path, job: Job) -> tuple[State, Measured | None]:
    """How far a run is, and the run itself if it ended.

    A run is complete when its summary is whole, it is not cut short by Ctrl-C, and its command is
    that of the job; it is failed when its process ended with status 1, which is kept.

    Raises:
        UsageError: when the folder holds a run of another command.
    """
    folder = out / job.folder
    noted = read_machine(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return "absent", None
    run = _finished(folder)
    if run is not None:
        _check_command(folder, job, run.summary.command)
        return "complete", _measured(job, folder, run, None)
    if noted is not None and noted["status"] == "failed":
        _check_command(folder, job, noted["command"])
        return "failed", _measured(job, folder, None, noted["error"])
    return "unfinished", None


def move_aside(folder: Path) -> Path:
    """Renames a half-finished run, so that nothing of it is lost, and returns where it is.

    It becomes ``<name>.unfinished-<n>``, with the first number that is free.
    """
    number = 1
    while (aside := folder.with_name(f"{folder.name}.unfinished-{number}")).exists():
        number += 1
    return folder.rename(aside)


def _finished(folder: Path) -> Run | None:
    try:
        run = read_run(folder)
    except DataError:
        return None
    cut_short = any(line.get("name") == "interrupted" for line in run.of_kind("event"))
    return None if cut_short else run


def _measured(job: Job, folder: Path, run: Run | None, error: str | None) -> Measured:
    machine = as_machine(read_machine(folder))
    return Measured(job.arm, job.seed, job.folder.as_posix(), error, machine, run)


def _check_command(folder: Path, job: Job, found: str) -> None:
    expected = command_of(job.arguments)
    if _without_folder(found) != _without_folder(expected):
        raise UsageError(
            f"{str(folder)!r} holds another run: it came of '{_without_folder(found)}', and this "
            f"comparison runs '{_without_folder(expected)}': name another --out, or repeat the "
            "flags"
        )


def _without_folder(command: str) -> str:
    """The command without ``--out FOLDER``: a comparison may be moved."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    if "--out" in words:
        place = words.index("--out")
        words[place : place + 2] = []
    return shlex.join(words)
