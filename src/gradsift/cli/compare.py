"""``gradsift compare``: recipes and settings against each other, at equal budgets, over seeds."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gradsift.cli.follow import ComparisonBar, ComparisonLines
from gradsift.cli.train import COMMAND_LINE, settled, train
from gradsift.cli.variance import variance as measure
from gradsift.comparison.arms import again, parse_arm, recipe_arms
from gradsift.comparison.execute import Outcome, compare
from gradsift.comparison.file import Asked, read_file
from gradsift.comparison.folder import check_folder
from gradsift.comparison.plan import Plan, parse_grid
from gradsift.comparison.watched import Asked as AskedVariance
from gradsift.errors import UsageError
from gradsift.report.compare_page import FILE, write_compare_page
from gradsift.report.compare_table import as_text

SEEDS = 3

_alone = typer.Typer(add_completion=False)
_alone.command("train")(train)


def compare_command(
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FLAGS OF TRAIN]...", help="For all arms.", show_default=False),
    ] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Names with commas; each is an arm.", show_default=False)
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="One more arm, 'name: --flag value …', with flags of train.", show_default=False
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs per arm, seeds 0, 1, ….", show_default=str(SEEDS))
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Arm to compare with.", show_default="the first")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="Tune the reference first: 'lr=0.01,0.03,0.1'.", show_default=False),
    ] = None,
    aa: Annotated[
        bool | None,
        typer.Option("--aa", help="Run the reference a second time, with other seeds."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A TOML file with all of it.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; complete runs in it are kept.", show_default=False)
    ] = None,
    variance: Annotated[
        bool | None,
        typer.Option("--variance", help="Measure the noise of every score and draw instead."),
    ] = None,
    checkpoints: Annotated[
        int | None, typer.Option(help="With --variance: moments of its run.", show_default="5")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="With --variance: of each measurement.", show_default="10")
    ] = None,
) -> int:
    """Compare recipes, one process per run, in turn. Takes every flag of train for all arms.

    Runs that are complete in --out are not run again. `--clock virtual` compares by counted cost.
    """
    typed = Asked(
        recipes=recipes,
        seeds=seeds,
        reference=reference,
        grid=grid,
        aa=aa,
        out=out,
        arms=tuple(map(parse_arm, arm or ())),
        train=tuple(flags or ()),
    )
    asked = typed if file is None else typed.over(read_file(file))
    if variance:
        return _variance(asked, checkpoints, repeats)
    if checkpoints is not None or repeats is not None:
        raise UsageError("--checkpoints and --repeats belong to --variance: give it, or neither")
    return _compare(asked)


def plan_of(asked: Asked) -> Plan:
    """The comparison that is asked for, with its A/A arm behind the others.

    Raises:
        UsageError: for what makes no comparison.
    """
    named = () if asked.recipes is None else recipe_arms(asked.recipes)
    plan = Plan(
        arms=(*named, *asked.arms),
        seeds=SEEDS if asked.seeds is None else asked.seeds,
        common=asked.train,
        reference=asked.reference or "",
        grid=None if asked.grid is None else parse_grid(asked.grid),
    )
    return replace(plan, arms=(*plan.arms, again(plan.base))) if asked.aa else plan


def _compare(asked: Asked) -> int:
    plan = plan_of(asked)
    if asked.out is None:
        raise UsageError("no folder for the results: give --out FOLDER")
    check_folder(asked.out, plan)
    _check_flags(plan)
    outcome = _watched(plan, asked.out)
    page = write_compare_page(asked.out / FILE, outcome.compared)
    typer.echo(f"\n{as_text(outcome.compared)}\n\nreport: {page}")
    return 130 if outcome.interrupted else int(outcome.failed)


def _watched(plan: Plan, out: Path) -> Outcome:
    with ExitStack() as stack:
        watcher = (
            stack.enter_context(ComparisonBar(Console()))
            if sys.stdout.isatty()
            else ComparisonLines()
        )
        return compare(plan, out, watcher)


def _check_flags(plan: Plan) -> None:
    """Reads the flags of every arm as ``gradsift train`` will, before anything runs.

    Raises:
        UsageError: for settings that cannot work, with the arm's name; the parser's own errors
            are passed on.
    """
    tuned = [(plan.grid.flag, value) for value in plan.grid.values] if plan.grid else [()]
    for arm in plan.arms:
        for words in tuned:
            flags = _parsed(plan.flags(arm, words))
            try:
                settled(flags)
            except UsageError as error:
                raise UsageError(f"arm {arm.name!r}: {error}") from error


def _parsed(flags: Sequence[str]) -> dict[str, Any]:
    """What ``gradsift train`` would make of its flags."""
    with typer.main.get_command(_alone).make_context("train", list(flags)) as found:
        return found.params


def _variance(asked: Asked, checkpoints: int | None, repeats: int | None) -> int:
    """One uniform run with the flags of the reference, or of all arms where there is no arm."""
    for name in ("seeds", "grid", "aa"):
        if getattr(asked, name) is not None:
            raise UsageError(f"--{name} received with --variance, which trains once: leave it out")
    if asked.out is None:
        raise UsageError("no folder for the results: give --out FOLDER")
    nothing = asked.recipes is None and not asked.arms
    plan = plan_of(replace(asked, recipes="uniform") if nothing else asked)
    flags = plan.flags(plan.base)
    found = _parsed(flags)
    given = {"checkpoints": checkpoints, "repeats": repeats, "pool_ratio": found["pool_ratio"]}
    amount = AskedVariance(**{name: value for name, value in given.items() if value is not None})
    return measure(found, flags, asked.out, amount, COMMAND_LINE.get())
