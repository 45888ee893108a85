"""Does ``gradsift probe`` say rightly whether a source of examples pays?

    python benchmarks/probe_cases.py --out FOLDER [--cases NAME ...]

For every case of ``probe_cases.toml``: a probe, then a comparison of the plain order with the
recipe of the source, at equal seconds. The measured net gain is one number for both signs: where
the source reaches the plain order's final training loss after t of T seconds it is ``T/t − 1``;
where it does not, the plain order reaches the source's after t', and it is ``t'/T − 1``. Seeds are
averaged in the logarithm. The probe's net gain is its progress per second, less one.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradsift.comparison.targets import first_reached
from gradsift.report.runs import Run, pairs, read_run

HERE = Path(__file__).parent
RATIO = 3.0
"""Candidates per trained example, of the recipe "pool"."""


@dataclass(frozen=True)
class Case:
    """A source of examples on a model and data.

    Attributes:
        name: of the case.
        source: "table" or "pool": the recipe, and the line of the probe.
        expected: "on" or "off", a guess.
        budget: of each run.
        flags: of `gradsift train`.
    """

    name: str
    source: str
    expected: str
    budget: str
    flags: str


@dataclass(frozen=True)
class Verdict:
    """What was predicted for a case, and what was measured.

    Attributes:
        name: of the case.
        predicted: net gain by the probe.
        predicted_lower: the same at the lower end of its interval.
        measured: net gain by the comparison, over all seeds.
        seeds: the measured net gain of each seed.
        right: whether the signs agree.
        contended: runs during which the machine was busy with something else.
    """

    name: str
    predicted: float
    predicted_lower: float
    measured: float
    seeds: list[float]
    right: bool
    contended: int


def net_gain(arm: Run, plain: Run) -> float:
    """Above zero where the arm is ahead, below where the plain order is.

    Both curves are training losses over seconds, of the same examples.
    """
    (times, own), (base, others) = (
        pairs(run.of_kind("eval"), "seconds", "train_loss") for run in (arm, plain)
    )
    if (reached := first_reached(times, own, others[-1])) is not None:
        return base[-1] / reached - 1
    reached = first_reached(base, others, own[-1])
    return -1.0 if reached is None else reached / times[-1] - 1


def gradsift(*words: str) -> None:
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "gradsift.cli", *words]
    subprocess.run(command, cwd=HERE, env=environment, check=True)


def judge(case: Case, out: Path, probe_budget: str, seeds: int) -> Verdict:
    """One probe and one comparison; what is there already is kept."""
    flags = shlex.split(case.flags)
    if not (out / "probe" / "probe.json").exists():
        gradsift("probe", *flags, "--budget", probe_budget, "--out", str(out / "probe"))
    compared = ["--recipes", f"uniform,{case.source}", "--seeds", str(seeds), "--budget"]
    gradsift("compare", *compared, case.budget, *flags, "--out", str(out / "compare"))
    sources = json.loads((out / "probe" / "probe.json").read_text())["sources"]
    found = next((source for source in sources if _is_of(source, case.source)), None)
    if found is None:
        raise SystemExit(f"{case.name}: the probe says nothing about it: give it more seconds")
    gains = []
    for seed in range(seeds):
        arm, plain = (
            read_run(out / "compare" / name / f"seed-{seed}") for name in (case.source, "uniform")
        )
        gains.append(net_gain(arm, plain))
    measured = math.expm1(statistics.fmean(math.log1p(max(gain, -0.99)) for gain in gains))
    predicted = found["gain"] - 1
    runs = json.loads((out / "compare" / "summary.json").read_text())["runs"]
    return Verdict(
        name=case.name,
        predicted=predicted,
        predicted_lower=found["gain_lower"] - 1,
        measured=measured,
        seeds=gains,
        right=(predicted > 0) == (measured > 0),
        contended=sum(bool(run["contended"]) for run in runs),
    )


def _is_of(source: dict[str, Any], name: str) -> bool:
    return source["source"] == name and (name != "pool" or source["candidates"] == RATIO)


def line(verdict: Verdict) -> str:
    seeds = ", ".join(f"{gain:+.0%}" for gain in verdict.seeds)
    mark = "right" if verdict.right else "WRONG"
    busy = f", {verdict.contended} runs contended" if verdict.contended else ""
    return (
        f"{verdict.name:26} predicted {verdict.predicted:+.0%} (at least "
        f"{verdict.predicted_lower:+.0%})  measured {verdict.measured:+.0%} ({seeds})  {mark}{busy}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Probes against comparisons.")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--cases", nargs="+", help="only these")
    options = parser.parse_args()
    asked = tomllib.loads((HERE / "probe_cases.toml").read_text())
    cases = [Case(name, **values) for name, values in asked["case"].items()]
    if unknown := sorted(set(options.cases or ()) - {case.name for case in cases}):
        parser.error(f"cases {', '.join(unknown)} are unknown: see probe_cases.toml")
    out = options.out.resolve()
    verdicts = []
    for case in cases:
        if options.cases is None or case.name in options.cases:
            verdicts.append(judge(case, out / case.name, asked["probe"], asked["seeds"]))
            print(line(verdicts[-1]), flush=True)
    (out / "verdicts.json").write_text(json.dumps([asdict(each) for each in verdicts], indent=2))
    print(f"\n{sum(each.right for each in verdicts)} of {len(verdicts)} signs right\n")
    print("\n".join(map(line, verdicts)))


if __name__ == "__main__":
    main()
