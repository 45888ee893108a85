"""The delay table: seven small tables, every arm, delays 0, 9 and 31, two learning rates.

The tuned learning rate is the best of a grid for sequential SGD on other splits; the scaled one is
ten times that, the usual rule for ten workers. Every arm makes the same number of updates, replays
included, on 30 paired splits; the last weights tell.

Named before the first run. *Primary family*: the recommended default of then
(`guided_arms.FIRST_DEFAULT`) against none, gSGD and replay at random, at delay 9 and the scaled
rate, on the seven tables: 21 paired two-sided t-tests of the log ratio of final test losses,
Holm-corrected at 5 %. *Margin*: the default's final test accuracy is at least as good as gSGD's if
the one-sided 95 % bound of the paired difference is above −0.5 points. *Gap*: the ratio of sums
over tables whose gap is surely above zero (one-sided 95 %) of (none − default) to
(none − sequential), test losses at the same rate, with a bootstrap interval over splits.
Everything else is descriptive. What was asked again after looking is in ``guided_default.py``.

    python benchmarks/guided_table.py --data DATA/uci [--delays 9 0 31] [--out FILE.json]
"""

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch

from guided_arms import ALL, ARMS, DEFAULT, FIRST_DEFAULT, Result, simulate
from guided_problem import TABLES, Runs, merge, prepare, read_table
from guided_statistics import holm, lower, paired, share_of_gap

RUNS, SIZE, SHARE, UPDATES = 30, 4, 0.6, 2000
GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SCALE = 10.0
MARGIN = 0.5
DELAY, RATES = 9, ("scaled", "tuned")
GSGD = "gSGD (consistent)"
AGAINST = ("none", GSGD, "replay 5 of 10")
SHOWN = tuple(dict.fromkeys((*ARMS, "none, averaged", DEFAULT)))

Key = tuple[str, str, int, str]
"""Table, arm, delay, rate."""

Pair = tuple[str, str]
"""Table and rate."""


def runs_of(folder: Path, name: str, seed: int, count: int) -> Runs:
    """So many splits of a table, with orders for all updates."""
    x, y = read_table(folder, TABLES[name])
    per_epoch = -(-int(len(x) * SHARE) // SIZE)
    return prepare(x, y, count, -(-UPDATES // per_epoch), SIZE, SHARE, seed)


def tuned_rates(folder: Path) -> dict[str, float]:
    """The grid's best for sequential SGD on ten other splits of every table."""
    runs = [runs_of(folder, name, 10_000, 10) for name in TABLES]
    losses = []
    for lr in GRID:
        together = merge(runs)
        rates = torch.full((len(together.start),), lr, dtype=torch.float64)
        found = simulate(together, ARMS["none"], 0, rates, UPDATES, 0)
        losses.append(torch.stack([part.mean() for part in found.loss.split(10)]))
    best = torch.stack(losses).argmin(0).tolist()
    return {name: GRID[place] for name, place in zip(TABLES, best, strict=True)}


@dataclass(frozen=True)
class Study:
    """The splits and learning rates of every table, and the results so far.

    Attributes:
        runs: splits by table.
        rates: learning rates by table and word.
        kept: file for the results, to go on with after an interruption; None keeps none.
        results: by table, arm, delay and rate.
    """

    runs: dict[str, Runs]
    rates: dict[str, dict[str, float]]
    kept: Path | None = None
    results: dict[Key, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kept is not None and self.kept.exists():
            found = torch.load(self.kept, weights_only=True)
            self.results.update((key, Result(*values)) for key, values in found.items())

    def simulate(self, delay: int, arms: Iterable[str], rates: Iterable[str] = RATES) -> None:
        """Every table at some rates, for some arms; what is there already stays."""
        pairs = list(product(TABLES, rates))
        for arm, group in product(arms, self.groups(pairs)):
            keys = [(name, arm, delay, rate) for name, rate in group]
            if set(keys) <= self.results.keys():
                continue
            together = merge([self.runs[name] for name, _ in group])
            splits = len(together.start) // len(group)
            each = [self.rates[name][rate] for name, rate in group]
            lr = torch.tensor(each, dtype=torch.float64).repeat_interleave(splits)
            found = simulate(together, ALL[arm], delay, lr, UPDATES, 1000)
            for place, key in enumerate(keys):
                self.results[key] = found.part(slice(place * splits, (place + 1) * splits))
            self.keep()

    def groups(self, pairs: Iterable[Pair]) -> list[list[Pair]]:
        """Tables of about the same width, which are simulated side by side."""
        found: dict[int, list[Pair]] = defaultdict(list)
        for name, rate in pairs:
            found[self.runs[name].start.shape[1].bit_length() // 5].append((name, rate))
        return list(found.values())

    def keep(self) -> None:
        """Writes all results."""
        if self.kept is not None:
            values = {
                key: (found.loss, found.accuracy, found.gains, found.age)
                for key, found in self.results.items()
            }
            torch.save(values, self.kept)

    def losses(self, arm: str, delay: int, rate: str) -> list:
        """Final test losses by table, each an array over splits."""
        return [self.results[name, arm, delay, rate].loss.numpy() for name in TABLES]

    def show(self, delay: int) -> None:
        """Final test losses of every arm."""
        for rate in RATES:
            print(f"\nfinal test loss, delay {delay}, {rate} rate")
            print("| arm |", " | ".join(TABLES), "|")
            print("|---|" + "---|" * len(TABLES))
            for arm in SHOWN:
                losses = [self.results[name, arm, delay, rate].loss for name in TABLES]
                print(f"| {arm} |", " | ".join(map(loss_in_words, losses)), "|", flush=True)

    def written(self) -> list[dict[str, object]]:
        """Means over splits, for a file."""
        return [
            {
                **dict(zip(("table", "arm", "delay", "rate"), key, strict=True)),
                "loss": float(f"{float(found.loss.mean()):.6g}"),
                "accuracy": float(f"{float(found.accuracy.mean()):.6g}"),
            }
            for key, found in self.results.items()
        ]


def begin(given: argparse.Namespace, seed: int = 0, count: int = RUNS) -> Study:
    """Tunes the rates, unless an earlier program has, and prepares the splits."""
    if given.tuned is not None and given.tuned.exists():
        tuned = json.loads(given.tuned.read_text(encoding="utf-8"))
    else:
        tuned = tuned_rates(given.data)
    if given.tuned is not None:
        given.tuned.write_text(json.dumps(tuned) + "\n", encoding="utf-8")
    words = ", ".join(f"{name} {lr:g}" for name, lr in tuned.items())
    print(f"tuned learning rates: {words}", flush=True)
    rates = {name: {"tuned": lr, "scaled": SCALE * lr} for name, lr in tuned.items()}
    runs = {name: runs_of(given.data, name, seed, count) for name in TABLES}
    return Study(runs, rates, given.keep)


def primary(study: Study, default: str) -> None:
    """The primary family: the default against three arms on every table."""
    found = [
        (
            name,
            other,
            paired(
                *(
                    study.results[name, arm, DELAY, "scaled"].loss.numpy()
                    for arm in (default, other)
                )
            ),
        )
        for name, other in product(TABLES, AGAINST)
    ]
    chances = holm([ratio.chance for _, _, ratio in found])
    print(f"\n{default}\n| table | against | ratio of test losses, 95 % interval | Holm p |")
    print("|---|---|---|---|")
    for (name, other, ratio), chance in zip(found, chances, strict=True):
        words = f"{chance:.1e}" if chance < 0.001 else f"{chance:.3f}"
        print(f"| {name} | {other} | {ratio} | {words} |")


def margins(study: Study, arm: str, against: str = GSGD) -> list[dict[str, object]]:
    """The margin in final test accuracy on every table: printed and returned."""
    print(f"\n| table | {arm} | {against} | difference | one-sided 95 % bound | within |")
    print("|---|---|---|---|---|---|")
    rows = []
    for name in TABLES:
        ours = study.results[name, arm, DELAY, "scaled"].accuracy.numpy()
        theirs = study.results[name, against, DELAY, "scaled"].accuracy.numpy()
        difference, bound = float((ours - theirs).mean()), lower(ours - theirs)
        within = "yes" if bound > -MARGIN else "**no**"
        print(
            f"| {name} | {ours.mean():.2f} | {theirs.mean():.2f} | {difference:+.2f} | "
            f"{bound:+.2f} | {within} |",
            flush=True,
        )
        rows.append({"table": name, "arm": arm, "difference": difference, "bound": bound})
    return rows


def gaps(study: Study, arms: Iterable[str]) -> None:
    """The share of the gap that arms close, to sequential SGD at both rates."""
    print(f"\n| arm, delay {DELAY}, scaled rate | to the scaled rate | to the tuned rate |")
    print("|---|---|---|")
    late = study.losses("none", DELAY, "scaled")
    for arm in arms:
        ours = study.losses(arm, DELAY, "scaled")
        shares = [share_of_gap(late, ours, study.losses("none", 0, rate)) for rate in RATES]
        words = [str(share) if share else "no gap" for share in shares]
        print(f"| {arm} | {words[0]} | {words[1]} |", flush=True)


def loss_in_words(loss: torch.Tensor) -> str:
    """A mean test loss, or that it diverged."""
    mean = float(loss.mean())
    return f"{mean:.3f}" if mean < 100 else "diverged"


def flags(description: str) -> argparse.ArgumentParser:
    """What the studies on the seven tables have in common."""
    parser = argparse.ArgumentParser(description=description)
    place = Path(os.environ.get("GRADSIFT_DATA", ".")) / "uci"
    parser.add_argument("--data", type=Path, default=place, help="folder with the seven tables")
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
    parser.add_argument("--tuned", type=Path, help="file for the tuned rates, read if it is there")
    parser.add_argument("--keep", type=Path, help="file for results so far, to go on with")
    return parser


def main() -> None:
    """Runs everything and prints it."""
    parser = flags("The delay table of guided SGD.")
    parser.add_argument("--delays", type=int, nargs="+", default=[DELAY, 0, 31])
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = begin(given)
    for delay in given.delays:
        study.simulate(delay, SHOWN)
        if delay == DELAY:
            study.simulate(0, ["none"])
            primary(study, FIRST_DEFAULT)
            margins(study, FIRST_DEFAULT)
            gaps(study, SHOWN)
        study.show(delay)
        if given.out is not None:
            given.out.write_text(json.dumps(study.written(), indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
