"""Wrong labels in Fashion-MNIST: who finds them, and what they do to the test error.

    GRADSIFT_DATA=FOLDER python benchmarks/label_noise.py --out FOLDER [--shares 10 20]
        [--seeds 5] [--budget 60s] [--cap QUANTILE] [-- FLAGS OF gradsift train]

A share of the training labels is replaced by another class, chosen evenly (`problems.flipped`); the
test labels are right. For every share, ``gradsift compare`` trains `uniform`, `auto`, and `auto`
with scores capped at a quantile (1 − 2·share unless given), in turn, at equal budgets, paired by
seed; complete runs in the folder are kept. ``-- --clock virtual`` counts cost instead of seconds.

Printed for each arm, as means over seeds: the test error, and its ratio to uniform's with a 95 % t
interval; the precision of the list of suspects at as many places as there are wrong labels, where
precision and recall are the same number; that of the list by the mean probability of the label; and
precision and recall of the label issues of cleanlab, where it is installed. ``found.json`` has the
rows, ``found.svg`` precision and recall over the length of the list.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64
from matplotlib.figure import Figure

from gradsift.comparison.estimates import ratio
from gradsift.monitors import History, read_history
from gradsift.report.confident import judge
from gradsift.report.figures import SEVERAL
from gradsift.report.summary import plain_json, read_summary, write_whole
from problems import flipped

HERE = Path(__file__).parent

DEFAULTS = ("--model", "cnn", "--lr", "0.04")
"""Flags of `gradsift train` that come before those given."""

LENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Of the list, over the number of wrong labels."""


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        share: of wrong labels, in percent.
        arm: "uniform", "auto" or "capped".
        seed: of the run.
        test_error: on right labels.
        steps: of the run.
        precision: of the list by mean relative loss, at each of `LENGTHS`.
        recall: likewise.
        by_confidence: precision of the list by the mean probability of the label, where it is as
            long as there are wrong labels.
        issues: how many label issues cleanlab finds; None where it is not installed.
        issues_precision: share of these that are wrong labels.
        issues_recall: share of the wrong labels that are among them.
    """

    share: int
    arm: str
    seed: int
    test_error: float
    steps: int
    precision: list[float]
    recall: list[float]
    by_confidence: float
    issues: int | None
    issues_precision: float | None
    issues_recall: float | None


def precision_recall(
    order: Int64[np.ndarray, " listed"], wrong: Bool[np.ndarray, " examples"]
) -> tuple[Float64[np.ndarray, " listed"], Float64[np.ndarray, " listed"]]:
    """Of the first one, two, … places of a list: how many are wrong, and how many of the wrong."""
    hits = wrong[order].cumsum()
    return hits / np.arange(1, len(order) + 1), hits / wrong.sum()


def by_confidence(history: History) -> Int64[np.ndarray, " visited"]:
    """Ids by rising mean probability of the given label."""
    visited = np.flatnonzero(history.visits)
    mean = history.probabilities[visited, history.labels[visited]]
    return visited[mean.argsort(kind="stable")]


def measure(folder: Path, share: int, arm: str, seed: int, wrong: np.ndarray) -> Row:
    """What one run has found."""
    summary, history = read_summary(folder), read_history(folder)
    count = int(wrong.sum())
    precision, recall = precision_recall(history.suspects(), wrong)
    places = [min(max(round(length * count), 1), len(precision)) - 1 for length in LENGTHS]
    other, _ = precision_recall(by_confidence(history), wrong)
    judged = judge(history)
    issues = None if judged is None else int(judged.issue.sum())
    hits = 0 if judged is None else int((judged.issue & wrong).sum())
    return Row(
        share=share,
        arm=arm,
        seed=seed,
        test_error=summary.test_error,
        steps=summary.steps,
        precision=[float(precision[place]) for place in places],
        recall=[float(recall[place]) for place in places],
        by_confidence=float(other[min(count, len(other)) - 1]),
        issues=issues,
        issues_precision=hits / issues if issues else None,
        issues_recall=None if issues is None else hits / count,
    )


def compare(share: int, cap: float, options: argparse.Namespace) -> dict[str, Path]:
    """Trains what is missing; returns the folder of each arm."""
    out = options.out.resolve() / str(share)
    arms = {
        "uniform": "--recipe uniform",
        "auto": "--recipe auto",
        "capped": f"--recipe auto --cap {cap:g}",
    }
    named = [word for arm, flags in arms.items() for word in ("--arm", f"{arm}: {flags}")]
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [
            *(sys.executable, "-m", "gradsift.cli", "compare", *named),
            *("--seeds", str(options.seeds), "--budget", options.budget, "--out", str(out)),
            *("--data", f"problems:flipped_clothes_{share}", *DEFAULTS, *options.flags),
        ],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        check=True,
    )
    return {arm: out / arm for arm in arms}


def line(rows: Sequence[Row], base: Sequence[Row]) -> str:
    """One arm at one share of wrong labels."""
    error = statistics.fmean(row.test_error for row in rows)
    against = ratio([row.test_error for row in rows], [row.test_error for row in base])
    interval = "" if against.low is None else f" [{against.low:.3f}, {against.high:.3f}]"
    at = LENGTHS.index(1.0)
    listed = statistics.fmean(row.precision[at] for row in rows)
    confidence = statistics.fmean(row.by_confidence for row in rows)
    issues = ""
    if all(row.issues_precision is not None for row in rows):
        found = [(row.issues_precision or 0.0, row.issues_recall or 0.0) for row in rows]
        precise, whole = (statistics.fmean(part) for part in zip(*found, strict=True))
        issues = f"  cleanlab {precise:.3f} of its issues, {whole:.3f} of the wrong"
    return (
        f"{rows[0].share:3} %  {rows[0].arm:8} test error {error:.4f} "
        f"({against.kind} {against.value:.3f}{interval})  suspects {listed:.3f}  "
        f"by confidence {confidence:.3f}{issues}"
    )


def drawn(rows: Sequence[Row]) -> Figure:
    """Precision and recall over the length of the list: a panel for each share of wrong labels."""
    shares = sorted({row.share for row in rows})
    figure = Figure(figsize=(5.2 * len(shares), 3.6), layout="constrained")
    for panel, share in zip(figure.subplots(1, len(shares), squeeze=False)[0], shares, strict=True):
        for colour, arm in zip(SEVERAL, dict.fromkeys(row.arm for row in rows), strict=False):
            own = [row for row in rows if (row.share, row.arm) == (share, arm)]
            for style, name in (("-", "precision"), ("--", "recall")):
                means = np.mean([getattr(row, name) for row in own], axis=0)
                panel.plot(LENGTHS, means, style, color=colour, label=f"{arm}, {name}")
        panel.set(title=f"{share} % wrong labels", xlabel="length of the list / wrong labels")
        panel.set_ylim(0, 1.02)
        panel.legend(fontsize=7.5)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Wrong labels: who finds them, what they do.")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--shares", type=int, nargs="+", default=[10, 20], choices=[10, 20])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--cap", type=float, help="quantile; 1 - 2 share otherwise")
    parser.add_argument("flags", nargs="*", help="of gradsift train, after --")
    options = parser.parse_args()
    rows: list[Row] = []
    lines: list[str] = []
    for share in options.shares:
        cap = 1 - 2 * share / 100 if options.cap is None else options.cap
        folders = compare(share, cap, options)
        wrong = flipped(share / 100)[1].numpy()
        arms = {
            arm: [
                measure(folder / f"seed-{seed}", share, arm, seed, wrong)
                for seed in range(options.seeds)
            ]
            for arm, folder in folders.items()
        }
        rows += [row for own in arms.values() for row in own]
        lines += [line(own, arms["uniform"]) for own in arms.values()]
        write_whole(options.out / "found.json", plain_json([asdict(row) for row in rows]))
        drawn(rows).savefig(options.out / "found.svg")
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
