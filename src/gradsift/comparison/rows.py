"""From runs to the table: medians, pairs with the reference, and what has to be said under it."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradsift.comparison.arms import Arm, value_after
from gradsift.comparison.estimates import against, value_of
from gradsift.comparison.plan import Plan
from gradsift.comparison.targets import with_targets
from gradsift.recipes import recipes
from gradsift.report.compared import CONTENDED, MEASURES, Compared, Measured, Row
from gradsift.report.picks import Picks, read_picks

LEVELS = ("steps", "examples_trained", "examples_scored", "train_loss", "test_error")
SHARES = ("loading", "scoring", "training")
TARGETS = ("seconds_to_train_loss", "seconds_to_test_error")


def compared(
    plan: Plan, found: Sequence[Measured], out: Path, tuned: Sequence[str], tuning: Sequence[str]
) -> Compared:
    """Everything that the table and the page show, from the runs that have ended.

    Args:
        plan: of the comparison.
        found: the runs that ended, complete or failed.
        out: folder of the comparison, for the picks.
        tuned: flag and value that the grid chose.
        tuning: what has to be said about it.
    """
    reference = plan.base.name
    runs = with_targets(found, reference)
    rows = [_row(arm.name, runs, reference) for arm in plan.arms]
    virtual = value_after(plan.common, "--clock") == "virtual"
    return Compared(
        reference=reference,
        again=next((arm.name for arm in plan.arms if arm.shift), None),
        flags={arm.name: " ".join(plan.flags(arm, tuned)) for arm in plan.arms},
        runs=runs,
        rows=rows,
        virtual=virtual,
        notes=[*tuning, *([] if virtual else _loads(runs)), *_notes(runs, rows)],
        picks=_picks(plan, runs, out),
        biased=[arm.name for arm in plan.arms if _is_biased(plan, arm)],
    )


def as_json(found: Compared) -> dict[str, Any]:
    """The content of ``OUT/summary.json``: plain values, missing ones as null."""
    return {"runs": [_run(measured) for measured in found.runs], "table": [*map(_line, found.rows)]}


def _row(arm: str, runs: Sequence[Measured], reference: str) -> Row:
    own = [run for run in runs if run.arm == arm]
    complete = [run for run in own if run.run is not None]
    levels = {name: _median([value_of(run, name) for run in complete]) for name in LEVELS}
    levels |= {name: _median([value_of(run, name) for run in complete]) for name in TARGETS}
    levels |= {f"share_{name}": _median([_share(run, name) for run in complete]) for name in SHARES}
    base = [run for run in runs if run.arm == reference]
    return Row(
        arm=arm,
        complete=len(complete),
        failed=len(own) - len(complete),
        contended=sum(run.contended for run in complete),
        levels=levels,
        reached={name: _count([value_of(run, name) for run in complete]) for name in TARGETS},
        estimates=dict.fromkeys(MEASURES) if arm == reference else against(own, base),
    )


def _share(measured: Measured, name: str) -> float | None:
    """Of the seconds of the budget; None where they are zero."""
    total = value_of(measured, "seconds_total")
    part = value_of(measured, f"seconds_{name}")
    return part / total if total and part is not None else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _count(values: Sequence[float | None]) -> int:
    return sum(value is not None for value in values)


def _loads(runs: Sequence[Measured]) -> list[str]:
    """Which measured seconds count for no claim, or are of unknown worth."""
    notes = []
    contended = [f"{run.arm} seed {run.seed}" for run in runs if run.contended]
    if contended:
        which = ", ".join(contended) if len(contended) < len(runs) else f"all {len(runs)} runs"
        notes.append(
            f"contended: other processes used more than {100 * CONTENDED:.0f} % of the machine "
            f"during {which}; their seconds count for no claim."
        )
    unknown = sum(run.machine is None or run.machine.foreign_cpu is None for run in runs)
    if unknown:
        notes.append(f"load unknown: it was not measured in {unknown} of {len(runs)} runs.")
    return notes


def _notes(runs: Sequence[Measured], rows: Sequence[Row]) -> list[str]:
    notes = []
    failed = [f"{run.arm} seed {run.seed} ({run.error})" for run in runs if run.error is not None]
    if failed:
        notes.append(f"failed: {'; '.join(failed)}.")
    if max((row.complete for row in rows), default=0) == 1:
        notes.append("One seed: no intervals, and a difference can be chance.")
    return notes


def _picks(plan: Plan, runs: Sequence[Measured], out: Path) -> dict[str, Picks]:
    """Of each arm's first complete run."""
    found = {}
    for arm in plan.arms:
        own = [run for run in runs if run.arm == arm.name and run.run is not None]
        first = min(own, key=lambda run: run.seed, default=None)
        picks = None if first is None else read_picks(out / first.folder)
        if picks is not None:
            found[arm.name] = picks
    return found


def _run(measured: Measured) -> dict[str, Any]:
    machine = measured.machine
    return {
        "arm": measured.arm,
        "seed": measured.seed,
        "folder": measured.folder,
        "status": "complete" if measured.run is not None else "failed",
        "error": measured.error,
        "cpu_seconds": None if machine is None else machine.cpu_seconds,
        "wall_seconds": None if machine is None else machine.wall_seconds,
        "foreign_cpu": None if machine is None else machine.foreign_cpu,
        "contended": measured.contended,
        "seconds_to_train_loss": measured.seconds_to_train_loss,
        "seconds_to_test_error": measured.seconds_to_test_error,
        "summary": None if measured.run is None else asdict(measured.run.summary),
    }


def _line(row: Row) -> dict[str, Any]:
    against_reference = {
        measure: None if estimate is None else asdict(estimate)
        for measure, estimate in row.estimates.items()
    }
    return {
        "arm": row.arm,
        "complete": row.complete,
        "failed": row.failed,
        "contended": row.contended,
        **row.levels,
        "reached": row.reached,
        "against_reference": against_reference,
    }


def _is_biased(plan: Plan, arm: Arm) -> bool:
    """Whether an arm's recipe gives another gradient than the mean over the data, on purpose."""
    name = value_after(plan.flags(arm), "--recipe")
    return name is not None and name in recipes and recipes[name].biased
