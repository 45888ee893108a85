"""Three recipes on real images at equal seconds: ``make demo``.

Where the folder that ``GRADSIFT_DATA`` names holds Fashion-MNIST, a small convolutional network
sorts its clothes; elsewhere a small recurrent network reads the bundled digits row by row. Each
trains once in the loader's own order, once from a scored pool drawn without replacement, and once
as Katharopoulos & Fleuret published in 2018. The three start from the same parameters. A table and
a report show what that gave.

    python examples/demo.py --out runs/demo
    python examples/demo.py --out runs/demo --picture docs/images/demo.svg
"""

import argparse
import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch

from gradsift.budget import Budget, parse_budget
from gradsift.cli.table import table
from gradsift.cli.watch import Lines
from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.problem import Problem
from gradsift.data.readers.files import FOLDER
from gradsift.errors import DataError, TrainingError, UsageError
from gradsift.report import figures
from gradsift.report.page import write_page
from gradsift.report.runs import Run, read_run
from gradsift.trainer import Settings, run
from gradsift.trainer.evaluation import subsample

RECIPES = ("uniform", "pool", "katharopoulos2018")
CLOTHES = "fashion-mnist"
TESTED = 2_000
"""Clothes that the test error is taken on: all of them would take longer than the training."""

MARK = "this-folder-is-a-demo.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description="Three recipes on real images, equally long.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for results")
    parser.add_argument("--budget", default="12s", help="of each recipe, such as 15s")
    parser.add_argument("--picture", type=Path, help="also draw the curves into this SVG file")
    given = parser.parse_args()
    try:
        runs = compare(given.out, parse_budget(given.budget))
    except (UsageError, DataError) as error:
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
    problem, common = task(budget)
    make_room(out)
    torch.set_num_threads(1)  # layers this small only wait for each other on several
    command = shlex.join(["python", *sys.argv])
    for recipe in RECIPES:
        print(f"\n{recipe}, {problem.name}, {budget}", flush=True)
        settings = replace(common, recipe=recipe)
        done = run(problem, settings, out=out / recipe, progress=Lines(), command=command)
        if done.interrupted:
            return None
    return [read_run(out / recipe) for recipe in RECIPES]


def task(budget: Budget) -> tuple[Problem, Settings]:
    """Clothes where the data folder has them, digits elsewhere, and the settings that suit."""
    folder = os.environ.get(FOLDER)
    if folder is not None and (Path(folder) / CLOTHES).is_dir():
        settings = Settings(model="cnn", batch_size=64, lr=0.03, budget=budget)
        problem = load_problem(CLOTHES, ReadOptions())
        return replace(problem, test=subsample(problem.test, TESTED, seed=0)), settings
    settings = Settings(model="lstm", batch_size=32, lr=0.05, budget=budget)
    return load_problem("digits", ReadOptions()), settings


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
