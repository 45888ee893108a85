"""Importance sampling inside the workers: does variance reduction offset delay?

Every asynchronous worker draws its batch of 4 from one shared score table, with weights; scores are
exact gradient norms of the workers' own stale steps (free for logistic regression). The control
differs by the scores alone: stratified uniform draws from the same table. Shuffled batches stand
beside both. Seven small tables, delays 0, 9 and 31, the tuned and the ten times scaled rate, plain
and with the rate divided by the age; 2,000 updates, 30 paired splits, last weights.

Named before the run. *Offset*: at delay 9 and the scaled rate, plain, the share of the gap between
uniform draws with and without delay that the table closes, as a ratio of sums with a bootstrap
interval; "offsets" when its lower end is above 0.5, "helps" when it is above 0. *Same gain*: the
ratio table over uniform draws at delay 9 over that at delay 0, with its interval: below 1, drawing
gains more under delay than without. Everything else is descriptive.

    python benchmarks/guided_sampled.py --data DATA/uci [--out FILE.json]
"""

import json
from itertools import product

import torch

from guided_problem import TABLES
from guided_statistics import pooled, share_of_gap
from guided_table import RATES, Study, begin, flags

DELAYS = (0, 9, 31)
TRIPLES = (
    ("plain", "none", "uniform draws", "table"),
    ("rate/age", "rate/age", "rate/age, uniform draws", "rate/age, table"),
)
"""Compensation; shuffled batches, uniform draws and draws by score with it."""


HEAD = """
| rule | rate | delay | table / uniform draws | uniform draws / shuffled | moments | age of scores |
|---|---|---|---|---|---|---|"""


def ratios(study: Study, drawn: str, control: str, delay: int, rate: str) -> dict[str, float]:
    """Table over control, with what was measured of the draws."""
    ratio = pooled(study.losses(drawn, delay, rate), study.losses(control, delay, rate))
    results = [study.results[name, drawn, delay, rate] for name in TABLES]
    gains = [float(found.gains.mean()) for found in results if found.gains is not None]
    ages = [found.age for found in results if found.age is not None]
    return {
        "ratio": ratio.mean,
        "low": ratio.low,
        "high": ratio.high,
        "gain": sum(gains) / len(gains),
        "age": sum(ages) / len(ages),
    }


def offset(study: Study, rate: str, delay: int) -> None:
    """The share of the gap by delay that drawing by score closes, and whether its gain is equal."""
    late, fresh = (study.losses("uniform draws", d, rate) for d in (delay, 0))
    share = share_of_gap(late, study.losses("table", delay, rate), fresh)
    print(f"{rate} rate, delay {delay}: share of the gap closed: {share or 'no table has a gap'}")
    here = [a / b for a, b in zip(study.losses("table", delay, rate), late, strict=True)]
    there = [a / b for a, b in zip(study.losses("table", 0, rate), fresh, strict=True)]
    print(f"  gain under delay over gain without: {pooled(here, there)}", flush=True)


def main() -> None:
    """Runs everything and prints it."""
    given = flags("Importance sampling inside delayed workers.").parse_args()
    torch.set_num_threads(1)
    study = begin(given)
    rows: list[dict[str, object]] = []
    print(HEAD)
    for (rule, *arms), rate, delay in product(TRIPLES, RATES, DELAYS):
        study.simulate(delay, arms, [rate])
        shuffled, control, drawn = arms
        found = ratios(study, drawn, control, delay, rate)
        against = pooled(study.losses(control, delay, rate), study.losses(shuffled, delay, rate))
        print(
            f"| {rule} | {rate} | {delay} | {found['ratio']:.3f} [{found['low']:.3f}, "
            f"{found['high']:.3f}] | {against} | {found['gain']:.2f} | {found['age']:.0f} |",
            flush=True,
        )
        rows.append({"rule": rule, "rate": rate, "delay": delay, **found})
        if given.out is not None:
            given.out.write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
    print()
    for rate, delay in product(RATES, DELAYS[1:]):
        offset(study, rate, delay)


if __name__ == "__main__":
    main()
