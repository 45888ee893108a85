"""The delay table: seven small tables, every arm, delays 0, 9 and 31, two learning rates.

The tuned learning rate is the best of a grid for sequential SGD on other splits; the scaled one is
ten times that, the usual rule for ten workers. Every arm makes the same number of updates, replays
included, on 30 paired splits; the last ones tell.

Named before the run. *Primary family*: the recommended default (`guided_arms.DEFAULT`) against
none, gSGD and replay at random, at delay 9 and the scaled rate, on the seven tables: 21 paired
two-sided t-tests of the log ratio of final test losses, Holm-corrected at 5 %. *Margin*: the
default's final test accuracy is at least as good as gSGD's if the one-sided 95 % bound of the
paired difference is above −0.5 points. *Gap*: the ratio of sums over tables whose gap is surely
above zero (one-sided 95 %) of (none − default) to (none − sequential), test losses at the same
rate, with a bootstrap interval over splits. Everything else is descriptive.

    python benchmarks/guided_table.py --data DATA/uci
"""

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from guided_arms import ARMS, DEFAULT, Result, simulate
from guided_problem import TABLES, Runs, prepare, read_table

RUNS, SIZE, SHARE, UPDATES = 30, 4, 0.6, 2000
GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SCALE = 10.0
MARGIN, LEVEL = 0.5, 0.05
AGAINST = ("none", "gSGD (consistent)", "replay 5 of 10")

Key = tuple[str, str, int, str]
"""Table, arm, delay, rate."""


def runs_of(folder: Path, name: str, seed: int, count: int) -> Runs:
    """So many splits of a table, with orders for all updates."""
    x, y = read_table(folder, TABLES[name])
    per_epoch = -(-int(len(x) * SHARE) // SIZE)
    return prepare(x, y, count, -(-UPDATES // per_epoch), SIZE, SHARE, seed)


def tuned_rate(folder: Path, name: str) -> float:
    """The grid's best for sequential SGD on ten other splits."""
    runs = runs_of(folder, name, 10_000, 10)
    losses = [simulate(runs, ARMS["none"], 0, lr, UPDATES, 0).loss.mean() for lr in GRID]
    return GRID[int(torch.stack(losses).argmin())]


@dataclass(frozen=True)
class Study:
    """The splits and learning rates of every table, and the results so far."""

    runs: dict[str, Runs]
    rates: dict[str, dict[str, float]]
    results: dict[Key, Result]

    def simulate(self, delay: int, arms: Iterable[str] = ARMS) -> None:
        """Every table at both rates, for some arms."""
        for name, rate in product(TABLES, ("scaled", "tuned")):
            for arm in arms:
                found = simulate(
                    self.runs[name], ARMS[arm], delay, self.rates[name][rate], UPDATES, 1000
                )
                self.results[name, arm, delay, rate] = found

    def show(self, delay: int) -> None:
        """Final test losses of every arm."""
        for rate in ("scaled", "tuned"):
            print(f"\nfinal test loss, delay {delay}, {rate} rate")
            print("| arm |", " | ".join(TABLES), "|")
            print("|---|" + "---|" * len(TABLES))
            for arm in ARMS:
                losses = [self.results[name, arm, delay, rate].loss for name in TABLES]
                print(f"| {arm} |", " | ".join(map(loss_in_words, losses)), "|", flush=True)


def begin(folder: Path) -> Study:
    """Tunes the rates and prepares the splits."""
    tuned = {name: tuned_rate(folder, name) for name in TABLES}
    rates = {name: {"tuned": lr, "scaled": SCALE * lr} for name, lr in tuned.items()}
    return Study({name: runs_of(folder, name, 0, RUNS) for name in TABLES}, rates, {})


def holm(values: list[float]) -> list[float]:
    """Adjusted p-values, in the order given."""
    order = np.argsort(values)
    adjusted = np.empty(len(values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted.tolist()


def primary(results: dict[Key, Result]) -> None:
    """The primary family and the margin against gSGD."""
    rows, chances = [], []
    for name in TABLES:
        ours = results[name, DEFAULT, 9, "scaled"]
        for other in AGAINST:
            theirs = results[name, other, 9, "scaled"]
            ratio = (ours.loss / theirs.loss).log().numpy()
            mean, error = ratio.mean(), ratio.std(ddof=1) / np.sqrt(len(ratio))
            reach = stats.t.ppf(0.975, len(ratio) - 1) * error
            low, high = np.exp(mean - reach), np.exp(mean + reach)
            rows.append((name, other, np.exp(mean), low, high))
            chances.append(float(2 * stats.t.sf(abs(mean / error), len(ratio) - 1)))
    print("\n| table | against | ratio of test losses | 95 % interval | Holm p |")
    print("|---|---|---|---|---|")
    for (name, other, mean, low, high), chance in zip(rows, holm(chances), strict=True):
        words = f"{chance:.1e}" if chance < 0.001 else f"{chance:.3f}"
        print(f"| {name} | {other} | {mean:.3f} | [{low:.3f}, {high:.3f}] | {words} |")
    print("\n| table | accuracy, default | gSGD | difference | one-sided 95 % bound | within |")
    print("|---|---|---|---|---|---|")
    for name in TABLES:
        ours = results[name, DEFAULT, 9, "scaled"].accuracy.numpy()
        theirs = results[name, "gSGD (consistent)", 9, "scaled"].accuracy.numpy()
        bound = lower(ours - theirs)
        print(
            f"| {name} | {ours.mean():.2f} | {theirs.mean():.2f} | {(ours - theirs).mean():+.2f} | "
            f"{bound:+.2f} | {'yes' if bound > -MARGIN else '**no**'} |"
        )


def lower(differences: np.ndarray) -> float:
    """The one-sided 95 % bound of a mean from below."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() - stats.t.ppf(1 - LEVEL, len(differences) - 1) * error)


def gap(results: dict[Key, Result], arm: str, reference: str) -> str:
    """The share of the gap that an arm closes, with a bootstrap interval."""
    gained, whole = [], []
    for name in TABLES:
        late = results[name, "none", 9, "scaled"].loss.numpy()
        fresh = results[name, "none", 0, reference].loss.numpy()
        if lower(late - fresh) > 0:
            whole.append(late - fresh)
            gained.append(late - results[name, arm, 9, "scaled"].loss.numpy())
    top, bottom = np.stack(gained), np.stack(whole)
    draws = np.random.default_rng(0).integers(RUNS, size=(4000, len(top), RUNS))
    places = np.arange(len(top))[None, :, None]
    shares = top[places, draws].mean(2).sum(1) / bottom[places, draws].mean(2).sum(1)
    low, high = np.quantile(shares, [0.025, 0.975])
    each = ", ".join(f"{a.mean() / b.mean():.2f}" for a, b in zip(top, bottom, strict=True))
    ratio = top.mean(1).sum() / bottom.mean(1).sum()
    if not -100 < ratio < 100:
        return "diverged"
    return f"{ratio:.3f} [{low:.3f}, {high:.3f}] over {len(top)} tables ({each})"


def loss_in_words(loss: torch.Tensor) -> str:
    """A mean test loss, or that it diverged."""
    mean = float(loss.mean())
    return f"{mean:.3f}" if mean < 100 else "diverged"


def main() -> None:
    """Runs everything and prints it."""
    parser = argparse.ArgumentParser(description="The delay table of guided SGD.")
    place = Path(os.environ.get("GRADSIFT_DATA", ".")) / "uci"
    parser.add_argument("--data", type=Path, default=place, help="folder with the seven tables")
    folder = parser.parse_args().data
    torch.set_num_threads(1)
    study = begin(folder)
    tuned = ", ".join(f"{name} {rate['tuned']:g}" for name, rate in study.rates.items())
    print("tuned learning rates:", tuned, flush=True)
    study.simulate(0, ["none"])
    study.simulate(9)
    primary(study.results)
    print("\nshare of the gap closed at delay 9, scaled rate:")
    for arm in dict.fromkeys((DEFAULT, *ARMS)):
        for reference in ("scaled", "tuned"):
            share = gap(study.results, arm, reference)
            print(f"  {arm}, to sequential at the {reference} rate: {share}")
    study.show(9)
    for delay in (0, 31):
        study.simulate(delay)
        study.show(delay)


if __name__ == "__main__":
    main()
