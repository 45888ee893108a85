"""Three recipes on real digits at equal seconds: ``make demo``.

A small recurrent network reads handwritten digits row by row: once in the loader's own order, once
from a scored pool drawn without replacement, and once as Katharopoulos & Fleuret published in
2018. The three start from the same parameters. A table and a report show what that gave.

    python examples/demo.py --out runs/demo
    python examples/demo.py --out runs/demo --picture docs/images/demo.svg
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

import torch

from gradsift.budget import Budget, parse_budget
from gradsift.cli.table import table
from gradsift.cli.watch import Lines
from gradsift.data.digits import digits
from gradsift.errors import TrainingError, UsageError
from gradsift.report import figures
from gradsift.report.page import write_page
from gradsift.report.runs import Run, read_run
from gradsift.trainer import Settings, run

RECIPES = ("uniform", "pool", "katharopoulos2018")
MARK = "this-folder-is-a-demo.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description="Three recipes on real digits, equally long.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for results")
    parser.add_argument("--budget", default="15s", help="of each recipe")
    parser.add_argument("--picture", type=Path, help="also draw the curves into this SVG file")
    given = parser.parse_args()
    try:
        runs = compare(given.out, parse_budget(given.budget))
    except UsageError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    if runs is None:
        return 130
    page = write_page(given.out / "report.html", runs)
    print(f"\n{table(runs)}\n\nreport: {page}")
    if given.picture is not None:
        given.picture.parent.mkdir(parents=True, exist_ok=True)
        given.picture.write_text(figures.svg(figures.curves, runs) + "\n", encoding="utf-8")
        print(f"picture: {given.picture}")
    return 0


def compare(out: Path, budget: Budget) -> list[Run] | None:
    """One run after the other, each in its folder; None when Ctrl-C ended one."""
    make_room(out)
    torch.set_num_threads(1)  # layers this small only wait for each other on several
    problem = digits(seed=0)
    for recipe in RECIPES:
        print(f"\n{recipe}, {budget}", flush=True)
        settings = Settings(
            recipe=recipe, model="lstm", batch_size=32, lr=0.05, schedule="cosine", budget=budget
        )
        command = shlex.join(["python", *sys.argv])
        done = run(problem, settings, out=out / recipe, progress=Lines(), command=command)
        if done.interrupted:
            return None
    return [read_run(out / recipe) for recipe in RECIPES]


def make_room(out: Path) -> None:
    """An empty folder for the results; only an earlier demo's is replaced."""
    if (out / MARK).is_file():
        shutil.rmtree(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{str(out)!r} exists and is no earlier demo: name another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("Made by examples/demo.py, which replaces this folder.\n")


if __name__ == "__main__":
    sys.exit(main())
