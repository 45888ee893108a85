"""What a run costs the machine, and what others take of it meanwhile."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsift.report.compared import Machine
from gradsift.report.summary import write_whole

FILE = "machine.json"
STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Reading:
    """The meters at one moment, in seconds.

    Attributes:
        wall: of a monotonic clock.
        children: CPU, of all children of this process that have ended.
        own: CPU, of this process.
        busy: CPU, of all processes of the machine; None where the system does not tell.
        cores: of the machine.
    """

    wall: float
    children: float
    own: float
    busy: float | None
    cores: int


def read_meters(stat: Path = STAT) -> Reading:
    """Reads all meters.

    Example:
        >>> read_meters().wall <= read_meters().wall
        True
    """
    times = os.times()
    busy, cores = parse_stat(stat)
    return Reading(
        wall=time.monotonic(),
        children=times.children_user + times.children_system,
        own=times.user + times.system,
        busy=busy,
        cores=cores,
    )


def between(before: Reading, after: Reading) -> Machine:
    """What happened between two readings: the children that ended in it, and the foreign share.

    ``foreign = max(0, busy − children − own)/(wall · cores)``: the share of all cores that
    neither the run nor this process used. A child must start and end between the readings.

    Example:
        >>> start, end = Reading(0, 0, 0, 100, 2), Reading(10, 9, 1, 112, 2)
        >>> between(start, end)
        Machine(cpu_seconds=9, wall_seconds=10, foreign_cpu=0.1)
    """
    wall = after.wall - before.wall
    children = after.children - before.children
    foreign = None
    if before.busy is not None and after.busy is not None and wall > 0:
        used = after.busy - before.busy - children - (after.own - before.own)
        foreign = min(max(used / (wall * after.cores), 0.0), 1.0)
    return Machine(cpu_seconds=children, wall_seconds=wall, foreign_cpu=foreign)


def parse_stat(path: Path) -> tuple[float | None, int]:
    """Busy CPU seconds of all cores since the start of the machine, and how many cores it has.

    Without idle time and waiting for input; None where the file is missing or says nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        ticks = [int(field) for field in lines[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None, os.cpu_count() or 1
    if len(ticks) < 5 or not any(ticks):
        return None, os.cpu_count() or 1
    used = sum(ticks) - ticks[3] - ticks[4]
    cores = sum(line.startswith("cpu") for line in lines) - 1
    return used / os.sysconf("SC_CLK_TCK"), max(cores, 1)


def write_machine(folder: Path, machine: Machine, *, command: str, error: str | None) -> None:
    """Writes ``FOLDER/machine.json``, which also says that a run was tried and how it ended."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "command": command,
        "status": "complete" if error is None else "failed",
        "error": error,
        "cpu_seconds": round(machine.cpu_seconds, 3),
        "wall_seconds": round(machine.wall_seconds, 3),
        "foreign_cpu": None if machine.foreign_cpu is None else round(machine.foreign_cpu, 4),
        "contended": machine.contended,
    }
    write_whole(folder / FILE, json.dumps(content, indent=2))


def read_machine(folder: Path) -> dict[str, Any] | None:
    """What `write_machine` wrote, or None where it is missing or broken."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = {"command", "status", "error", "cpu_seconds", "wall_seconds", "foreign_cpu"}
    return content if isinstance(content, dict) and keys <= content.keys() else None


def as_machine(content: dict[str, Any] | None) -> Machine | None:
    """The numbers of a ``machine.json``."""
    if content is None:
        return None
    return Machine(content["cpu_seconds"], content["wall_seconds"], content["foreign_cpu"])
