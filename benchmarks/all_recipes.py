"""Recipes at equal seconds on Fashion-MNIST, against a uniform arm that is tuned first.

    python benchmarks/all_recipes.py --out FOLDER [--budget 20s] [--seeds 5] [--tune-only]

First uniform runs once with every learning rate, batch size and weight decay of the grid, on a seed
that the comparison does not use. The setting with the lowest *test* error is everybody's: that
favours uniform twice, since nobody else is tuned, and the test set is the one that is compared on.
Then the recipes run with it, each seed through all arms in turn. ``uniform-larger`` is uniform at
1.4 times the learning rate, the control of rules that take larger steps; ``uniform-again`` is the
A/A arm. Complete runs in FOLDER are kept, so a second call goes on. Left out are `issgd2015` and
the two variants of `katharopoulos2018` that shrink the batch.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DATA = "problems:fifth_of_clothes"
SEED = 1_000_000
LARGER = 1.4

RATES = (0.02, 0.04, 0.08)
BATCHES = (32, 64)
DECAYS = (0.0, 1e-3)

RECIPES = (
    *("uniform", "uniform-iid", "auto", "table", "table-forecast", "table-exact", "issgd"),
    *("pool", "loss", "katharopoulos2018"),
    *("katharopoulos2017", "katharopoulos2017-unbiased", "katharopoulos2017-exact"),
    *("online-batch-selection", "schaul-proportional", "selective-backprop", "infobatch", "rs2"),
    *("rho-loss", "kakurenbo", "p-sgd", "c-sgd", "aw-sgd", "per-class-gaussian"),
    "static-importance",
)


@dataclass(frozen=True)
class Setting:
    """What is tuned.

    Attributes:
        lr: learning rate.
        batch_size: b.
        weight_decay: of SGD.
    """

    lr: float
    batch_size: int
    weight_decay: float

    @property
    def flags(self) -> list[str]:
        """Of ``gradsift train``."""
        decay = f"{self.weight_decay:g}"
        rest = ["--batch-size", str(self.batch_size), "--weight-decay", decay]
        return ["--lr", f"{self.lr:g}", *rest]

    @property
    def folder(self) -> str:
        """Its name."""
        return f"lr-{self.lr:g}-batch-{self.batch_size}-decay-{self.weight_decay:g}"


def gradsift(*words: str) -> int:
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "gradsift.cli", *words]
    return subprocess.run(command, cwd=HERE, env=environment).returncode


def tuned(out: Path, budget: str) -> Setting:
    """The setting of uniform with the lowest test error; what has run already is kept."""
    errors: dict[Setting, float] = {}
    for lr, batch_size, decay in itertools.product(RATES, BATCHES, DECAYS):
        setting = Setting(lr, batch_size, decay)
        folder = out / "tuning" / setting.folder
        if not (folder / "summary.json").exists():
            fixed = ["--data", DATA, "--model", "cnn", "--recipe", "uniform", "--seed", str(SEED)]
            words = [*fixed, "--budget", budget, *setting.flags]
            if gradsift("train", *words, "--out", str(folder)):
                raise SystemExit(f"{folder}: no complete run; delete it and call again")
        found = json.loads((folder / "summary.json").read_text())
        errors[setting] = found["test_error"]
    for setting, error in sorted(errors.items(), key=lambda item: item[1]):
        print(f"{setting.folder:40} test error {error:.4f}")
    return min(errors, key=lambda setting: errors[setting])


def compare(out: Path, budget: str, seeds: int, setting: Setting) -> int:
    """The recipes with one setting; the exit status of the comparison."""
    larger = f"uniform-larger: --recipe uniform --lr {LARGER * setting.lr:g}"
    arms = ["--recipes", ",".join(RECIPES), "--arm", larger, "--aa", "--seeds", str(seeds)]
    fixed = ["--data", DATA, "--model", "cnn", "--budget", budget, *setting.flags]
    return gradsift("compare", *arms, *fixed, "--out", str(out / "compare"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Recipes at equal seconds.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="20s")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tune-only", action="store_true")
    options = parser.parse_args()
    out = options.out.resolve()
    setting = tuned(out, options.budget)
    if not options.tune_only:
        raise SystemExit(compare(out, options.budget, options.seeds, setting))


if __name__ == "__main__":
    main()
