"""``gradsift compare``: recipes and settings against each other, at equal budgets, over seeds."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gradsift.budget import parse_budget
from gradsift.cli.follow import ComparisonBar, ComparisonLines
from gradsift.cli.train import train
from gradsift.comparison.arms import again, parse_arm, recipe_arms
from gradsift.comparison.execute import Outcome, compare
from gradsift.comparison.file import Asked, read_file
from gradsift.comparison.folder import check_folder
from gradsift.comparison.plan import Plan, parse_grid
from gradsift.errors import UsageError
from gradsift.report.compare_page import FILE, write_compare_page
from gradsift.report.compare_table import as_text
from gradsift.trainer import Settings

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
    plan = plan_of(asked)
    if asked.out is None:
        raise UsageError("no folder for the results: give --out FOLDER")
    check_folder(asked.out, plan)
    _check_flags(plan)
    outcome = _watched(plan, asked.out)
    page = write_compare_page(asked.out / FILE, outcome.compared)
    typer.echo(f"\n{as_text(outcome.compared)}\n\nreport: {page}")
    return 130 if outcome.interrupted else int(outcome.failed)


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
            settings = _settings(plan.flags(arm, words))
            try:
                Settings(**{**settings, "budget": parse_budget(settings["budget"])})
            except UsageError as error:
                raise UsageError(f"arm {arm.name!r}: {error}") from error


def _settings(flags: Sequence[str]) -> dict[str, Any]:
    with typer.main.get_command(_alone).make_context("train", list(flags)) as found:
        names = {field.name for field in fields(Settings)}
        return {name: value for name, value in found.params.items() if name in names}
