"""Which default: a trial on splits of its own, then margin and family again on 300 new splits.

``guided_table.py`` showed the margin of 0.5 points against gSGD for its default on one table of
seven, with 30 splits. After that, and before anything here ran, this was written down. *Trial*: 30
splits (seeds 5000 to 5029), delay 9, both rates; the new default is the candidate with the smallest
mean over the 14 cases of the log ratio of final test loss to that of sequential SGD at the tuned
rate. *Confirmation*: 300 splits that nothing was looked at on before (seeds 20000 to 20299), delay
9, scaled rate: the primary family, the margin and the gap of ``guided_table.py`` for the new
default; and for the first one the margin alone, which tells a real deficit from too few splits.

    python benchmarks/guided_default.py trial --data DATA/uci
    python benchmarks/guided_default.py confirm --data DATA/uci [--out FILE.json]
"""

import json

import torch

from guided_arms import DEFAULT, FIRST_DEFAULT
from guided_statistics import pooled
from guided_table import DELAY, GSGD, RATES, TABLES, Study, begin, flags, gaps, margins, primary

TRIAL, TRIAL_SPLITS = 5000, 30
NEW, NEW_SPLITS = 20_000, 300
CANDIDATES = (
    *(FIRST_DEFAULT, "rate/age", "none, averaged", "replay 5 of 10, averaged"),
    *("gap-aware, averaged", "rate/age, averaged", "rate/age, replay, averaged"),
)
CONTROL = f"{GSGD}, averaged"
"""What averaging does by itself to the published rule."""


def trial(study: Study) -> None:
    """Every candidate's final test loss over that of sequential SGD at the tuned rate."""
    study.simulate(0, ["none"], ["tuned"])
    study.simulate(DELAY, (GSGD, *CANDIDATES))
    best = study.losses("none", 0, "tuned")
    print("\n| arm, delay 9 | scaled rate | tuned rate | both |\n|---|---|---|---|")
    for arm in (GSGD, *CANDIDATES):
        ours = {rate: study.losses(arm, DELAY, rate) for rate in RATES}
        found = [pooled(ours[rate], best) for rate in RATES]
        both = pooled([*ours["scaled"], *ours["tuned"]], [*best, *best])
        print(f"| {arm} | {found[0]} | {found[1]} | {both.mean:.4f} |", flush=True)


def confirm(study: Study) -> dict[str, object]:
    """The family, the margin and the gap on new splits."""
    ours = (DEFAULT, FIRST_DEFAULT)
    study.simulate(DELAY, (GSGD, *ours), ["scaled"])
    rows = {arm: margins(study, arm) for arm in ours}
    arms = (*ours, "none", GSGD, "replay 5 of 10", "rate/age", CONTROL)
    study.simulate(DELAY, arms, ["scaled"])
    study.simulate(0, ["none"])
    primary(study, DEFAULT)
    margins(study, DEFAULT, CONTROL)
    gaps(study, arms)
    print("\n| arm | " + " | ".join(TABLES) + " |\n|---|" + "---|" * len(TABLES))
    for arm in arms:
        losses = [f"{values.mean():.3f}" for values in study.losses(arm, DELAY, "scaled")]
        print(f"| {arm} | " + " | ".join(losses) + " |")
    return {"splits": NEW_SPLITS, "margins": rows}


def main() -> None:
    """Runs one part and prints it."""
    parser = flags("The recommended default against delay: a trial, and its confirmation.")
    parser.add_argument("part", choices=("trial", "confirm"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "trial":
        trial(begin(given, TRIAL, TRIAL_SPLITS))
        return
    found = confirm(begin(given, NEW, NEW_SPLITS))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
