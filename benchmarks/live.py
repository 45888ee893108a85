"""A scorer on the second core: what it costs the trainer, and what the trainer gains.

    GRADSIFT_DATA=FOLDER python benchmarks/live.py [--parts rate training] [--out FILE.json]
        [--cores 0 1] [--models mlp wide] [--seconds 20] [--seeds 5]

``rate``: the trainer is pinned to the first core with one thread. Four arms take turns, in blocks
of steps, paired by round: "alone" (the plain loop, no scorer), "again" (the same once more: A/A),
"stopped" (the sifted loop, which draws from the table, with the scorer stopped by a signal) and
"live" (the same with the scorer at work on the second core). Printed are step rates over that of
"alone"; the target for "live" is 0.97.

``training``: seconds of the trainer's loop are equal, from its first steps on. Against uniform on
one core: live; and uniform on both cores with two threads, which is the fair use of the second
core, with batches twice as large at the same and at twice the learning rate. Ratios of final
training losses, paired by seed, with t intervals. Every run is a process of its own.

Where the two cores are threads of one (the first line says so), what one computes slows the other,
whatever it computes. A row is "contended" where others took more than 5 % of the machine: the
scorer and the run itself do not count as others.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from gradsift import recipes
from gradsift.comparison.estimates import ratio
from gradsift.comparison.machine import between, read_meters
from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.problem import Problem
from gradsift.engine.local import LocalEngine
from gradsift.report.compared import CONTENDED
from live_run import ARMS, BATCH, REFERENCE, SETTLING, Scorer, build, engine_of, train
from paired import Loop, Times, loop

PARTS = ("rate", "training")
TURNS = ("alone", "again", "stopped", "live")


def siblings(core: int) -> str:
    """The threads that share a core, as the system lists them; "" where it does not tell."""
    place = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        return place.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def take_turns(loops: Mapping[str, Loop], scorer: Scorer, blocks: int, steps: int) -> Times:
    """Rounds of all turns; every place in a round falls to every turn equally often."""
    times: dict[str, list[float]] = {turn: [] for turn in TURNS}
    before, used = read_meters(), scorer.seconds()
    for number in range(blocks):
        place = number % len(TURNS)
        for turn in [*TURNS, *TURNS][place : place + len(TURNS)]:
            scorer.allow(work=turn == "live")
            loops[turn].go(SETTLING)
            start = time.perf_counter()
            loops[turn].go(steps)
            times[turn].append((time.perf_counter() - start) / steps)
    after = read_meters()
    ours = replace(after, own=after.own + scorer.seconds() - used)
    scorer.allow(work=True)
    return Times(times, between(before, ours).foreign_cpu)


def measure_rate(name: str, problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """The step rates of all turns over that of the trainer alone."""
    os.sched_setaffinity(0, {options.cores[0]})
    torch.set_num_threads(1)

    def made(recipe: Any, engine: LocalEngine | None) -> Loop:
        data = DataLoader(problem.train, BATCH, shuffle=True, drop_last=True)
        model = build(name, problem, seed=0)
        return loop(recipe, model, data, problem.loss_fn, options.lr, engine)

    engine = engine_of(options.data)
    sifted = made(recipes["issgd"], engine)
    assert sifted.train is not None
    plain = {"alone": made(None, None), "again": made(None, None)}
    loops = {**plain, "stopped": sifted, "live": sifted}
    sifted.go(1)
    scorer = Scorer(engine, options.cores[1])
    for each in (*plain.values(), sifted):
        each.go(options.warm)
    times = take_turns(loops, scorer, options.blocks, options.steps)
    row = {
        "model": name,
        "milliseconds": times.milliseconds("alone"),
        "rates": {turn: times.ratio("alone", turn) for turn in TURNS[1:]},
        "foreign": times.foreign,
        "lost": scorer.lost,
        "status": sifted.train.engine_status,
    }
    sifted.train.close()
    print(rates_in_words(row, times.load), flush=True)
    return row


def rates_in_words(row: Mapping[str, Any], load: str) -> str:
    rates = [
        f"{turn} {middle:.3f} [{low:.3f}, {high:.3f}]"
        for turn, (low, middle, high) in row["rates"].items()
    ]
    lost = "; the scorer was replaced meanwhile: this counts for nothing" * row["lost"]
    return (
        f"{row['model']:6} alone {row['milliseconds']:.3f} ms; rates: {', '.join(rates)}; "
        f"{load}{lost}"
    )


def measure_training(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All arms with all seeds, each in a process of its own, seeds in the outer loop."""
    flags = [
        *("--data", options.data, "--models", options.models[0]),
        *("--cores", *map(str, options.cores), "--lr", str(options.lr)),
        *("--seconds", str(options.seconds)),
    ]
    rows = []
    for seed in range(options.seeds):
        for arm in ARMS:
            before = read_meters()
            command = [sys.executable, __file__, *flags, "--child", arm, "--seed", str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{arm}, seed {seed}, failed:\n{done.stderr}")
            found = json.loads(done.stdout.splitlines()[-1])
            foreign = between(before, read_meters()).foreign_cpu
            rows.append({"arm": arm, "seed": seed, "foreign": foreign, **found})
            print(run_in_words(rows[-1]), flush=True)
    return rows


def run_in_words(row: Mapping[str, Any]) -> str:
    foreign = row["foreign"]
    load = "load unknown" if foreign is None else f"{foreign:.1%} foreign"
    marks = ", contended" * (foreign is not None and foreign > CONTENDED)
    return (
        f"seed {row['seed']} {row['arm']:26} {row['steps']:7,} steps, loss {row['loss']:.4f}, "
        f"error {100 * row['error']:.2f} %, {load}{marks}" + ", scorer lost" * row["lost"]
    )


def against(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Paired ratios of final training losses and test errors to those of the reference."""
    lines = []
    for arm in [arm for arm in ARMS if arm != REFERENCE]:
        shown = []
        for measure in ("loss", "error"):
            own, base = (
                [row[measure] for row in rows if row["arm"] == name] for name in (arm, REFERENCE)
            )
            found = ratio(own, base)
            ends = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
            shown.append(f"{measure} {found.kind} {found.value:.3f}{ends}")
        lines.append(f"{arm}: {', '.join(shown)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="A scorer on the second core.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", default="fashion-mnist", help="as for gradsift train")
    parser.add_argument("--models", nargs="+", default=["mlp", "wide"], help="the first is trained")
    parser.add_argument("--cores", nargs=2, type=int, default=[0, 1], help="trainer's, scorer's")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--blocks", type=int, default=40, help="rounds of all turns")
    parser.add_argument("--steps", type=int, default=25, help="steps in a turn")
    parser.add_argument("--warm", type=int, default=100, help="steps of every loop before")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a training run")
    parser.add_argument("--seeds", type=int, default=5, help="training runs of every arm")
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--child", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.blocks - 1, options.steps, options.seeds) < 1:
        parser.error("--blocks must be at least 2; --steps and --seeds at least 1")
    problem = load_problem(options.data, ReadOptions())
    if options.child is not None:
        print(json.dumps(train(ARMS[options.child], problem, options)))
        return
    shared = [siblings(core) for core in options.cores]
    one = shared[0] != "" and shared[0] == shared[1]
    print(f"cores {options.cores}: {'two threads of one core' if one else 'two cores'}", flush=True)
    content: dict[str, Any] = {"torch": torch.__version__, "one core": one}
    if "training" in options.parts:
        content["training"] = measure_training(options)
        print("\n".join(against(content["training"])), flush=True)
    if "rate" in options.parts:
        content["rate"] = [measure_rate(name, problem, options) for name in options.models]
    if options.out is not None:
        content["arms"] = {name: asdict(arm) for name, arm in ARMS.items()}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
