"""What a comparison consists of: arms, their order, the grid, the file."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift.comparison.arms import (
    AGAIN_SEEDS,
    Arm,
    again,
    parse_arm,
    recipe_arms,
    sets,
    value_after,
)
from gradsift.comparison.file import Asked, flags_of, read_file
from gradsift.comparison.plan import TUNING_SEED, Grid, Plan, parse_grid
from gradsift.errors import UsageError

ARMS = (Arm("a", ("--lr", "1")), Arm("b", ("--lr", "2")), Arm("c", ("--lr", "3")))


def test_runs_are_interleaved_by_seed_and_the_first_arm_rotates():
    order = [(job.seed, job.arm) for job in Plan(ARMS, seeds=4).jobs()]
    assert order == [
        *[(0, "a"), (0, "b"), (0, "c")],
        *[(1, "b"), (1, "c"), (1, "a")],
        *[(2, "c"), (2, "a"), (2, "b")],
        *[(3, "a"), (3, "b"), (3, "c")],
    ]


@given(arms=st.integers(1, 7), seeds=st.integers(1, 20))
def test_every_arm_meets_every_seed_once_and_every_place_about_as_often(arms, seeds):
    names = [f"arm{number}" for number in range(arms)]
    jobs = Plan(tuple(Arm(name, ()) for name in names), seeds=seeds).jobs()
    assert Counter((job.arm, job.seed) for job in jobs) == Counter(
        (name, seed) for name in names for seed in range(seeds)
    )
    assert len({job.folder for job in jobs}) == len(jobs)
    places = Counter((job.arm, number % arms) for number, job in enumerate(jobs))
    counts = [places[name, place] for name in names for place in range(arms)]
    assert max(counts) - min(counts) <= 1


def test_a_job_has_the_common_flags_then_the_tuned_ones_then_its_own():
    plan = Plan(ARMS[:1], seeds=2, common=("--budget", "5s"))
    last = plan.jobs(("--batch-size", "8"))[-1]
    flags = ("--budget", "5s", "--batch-size", "8", "--lr", "1")
    assert last.arguments == ("train", *flags, "--seed", "1")
    assert last.folder == Path("a/seed-1")


def test_the_arm_that_repeats_the_reference_has_seeds_of_its_own():
    other = again(ARMS[0])
    assert (other.name, other.flags, other.shift) == ("a-again", ARMS[0].flags, AGAIN_SEEDS)
    plan = Plan((ARMS[0], other), seeds=3, grid=Grid("--batch-size", ("8", "16")))
    used = [job.arguments[-1] for job in (*plan.tuning(), *plan.jobs())]
    assert used[:2] == [str(TUNING_SEED)] * 2
    assert len(set(used)) == 1 + 2 * 3


def test_the_grid_runs_the_reference_alone():
    grid = Grid("--batch-size", ("8", "16"))
    jobs = Plan(ARMS, seeds=5, reference="b", grid=grid).tuning()
    assert [job.arguments for job in jobs] == [
        ("train", "--batch-size", size, "--lr", "2", "--seed", str(TUNING_SEED))
        for size in ("8", "16")
    ]
    assert [job.folder.as_posix() for job in jobs] == ["tuning/value-8", "tuning/value-16"]


def test_the_reference_is_the_first_arm_unless_named():
    assert Plan(ARMS, seeds=1).base is ARMS[0]
    assert Plan(ARMS, seeds=1, reference="c").base is ARMS[2]


BAD = [
    (lambda: Plan((), seeds=1), "nothing to compare"),
    (lambda: Plan((*ARMS, Arm("A", ())), seeds=1), "'a' is there twice"),
    (lambda: Plan(ARMS, seeds=0), "seeds 0"),
    (lambda: Plan(ARMS, seeds=10**6), "seeds 1000000"),
    (lambda: Plan(ARMS, seeds=1, reference="d"), "choose one of a, b, c"),
    (lambda: Plan(ARMS, seeds=1, common=("--seed", "3")), "--seed received in the flags of all"),
    (lambda: Plan(ARMS, seeds=1, common=("--out=x",)), "--out received"),
    (lambda: Plan(ARMS, seeds=1, common=("--recipe", "pool")), "name recipes in --recipes"),
    (lambda: Plan(ARMS, seeds=1, grid=Grid("--lr", ("1", "2"))), "set for the reference already"),
    (
        lambda: Plan(ARMS, seeds=1, common=("--norm", "x"), grid=Grid("--norm", ("1", "2"))),
        "set for all arms already",
    ),
    (lambda: Arm("", ()), "arm name ''"),
    (lambda: Arm("a/b", ()), "arm name 'a/b'"),
    (lambda: Arm("..", ()), "arm name '..'"),
    (lambda: Arm("a" * 61, ()), "at most 60"),
    (lambda: Arm("Tuning", ()), "kept for the runs of --grid"),
    (lambda: Arm("x", ("--seed", "1")), "--seed received in arm 'x'"),
    (lambda: Arm("x", ("--clock=virtual",)), "the same for all arms"),
    (lambda: Arm("x", ("--data", "digits")), "the same for all arms"),
    (lambda: parse_arm("slow --lr 1"), "a colon"),
    (lambda: parse_arm("slow:"), "flags of gradsift train"),
    (lambda: parse_arm("slow: lr 1"), "flags of gradsift train"),
    (lambda: parse_arm("slow: --lr '1"), "cannot be split"),
    (lambda: recipe_arms("uniform,"), "recipe '' is unknown"),
    (lambda: recipe_arms("uniform,best"), "recipe 'best' is unknown"),
    (lambda: parse_grid("lr"), "at least two values"),
    (lambda: parse_grid("lr=1"), "at least two values"),
    (lambda: parse_grid("lr=1,,2"), "at least two values"),
    (lambda: parse_grid("=1,2"), "expected a flag"),
    (lambda: parse_grid("lr=1,1"), "twice"),
    (lambda: parse_grid("lr=../1,2"), "slash"),
    (lambda: parse_grid("seed=1,2"), "seed cannot be tuned"),
    (lambda: parse_grid("--budget=1s,2s"), "budget cannot be tuned"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_what_makes_no_comparison_is_refused_in_one_line(make, message):
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_are_found_in_both_spellings_and_the_last_counts():
    assert sets(["--lr=1"], "--lr")
    assert not sets(["--lrs", "1"], "--lr")
    assert value_after(["--lr=1", "--lr", "2"], "--lr") == "2"
    assert value_after(["--lr"], "--lr") is None
    assert value_after([], "--lr") is None


FILE = """
recipes = ["uniform", "pool"]
seeds = 5
reference = "pool"
grid = "lr=0.1,0.2"
aa = true
out = "here"
[train]
budget = "60s"
batch_size = 32
drop = ["id", "name"]
[arms.slow]
recipe = "uniform"
lr = 0.01
"""


def test_a_file_says_all_of_it(tmp_path):
    (tmp_path / "c.toml").write_text(FILE)
    assert read_file(tmp_path / "c.toml") == Asked(
        recipes="uniform,pool",
        seeds=5,
        reference="pool",
        grid="lr=0.1,0.2",
        aa=True,
        out=Path("here"),
        arms=(Arm("slow", ("--recipe", "uniform", "--lr", "0.01")),),
        train=("--budget", "60s", "--batch-size", "32", "--drop", "id", "--drop", "name"),
    )


def test_what_is_typed_counts_over_the_file():
    file = Asked(recipes="a", seeds=5, arms=ARMS[:1], train=("--lr", "1"))
    typed = Asked(seeds=2, arms=ARMS[1:2], train=("--lr", "2"))
    assert typed.over(file) == Asked(
        recipes="a", seeds=2, arms=ARMS[:2], train=("--lr", "1", "--lr", "2")
    )


BAD_FILES = [
    ("recipes = [", "TOMLDecodeError"),
    ("recipe = 1", "has 'recipe', expected only recipes, seeds"),
    ("seeds = 2.5", "'seeds' of"),
    ("seeds = true", "is a bool, expected a int"),
    ("recipes = 'a'", "is a str, expected a list"),
    ("[train]\nlr = true", "'lr' in 'train'"),
    ("[train]\nlr = {a = 1}", "is a dict"),
    ("[arms]\nslow = '--lr 1'", "expected a table of flags"),
    ("[arms.slow]\nseed = 1", "--seed received in arm 'slow'"),
    ("[arms.'a/b']\nlr = 1", "arm name 'a/b'"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[text for text, _ in BAD_FILES])
def test_a_file_with_anything_else_is_refused(tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_file(tmp_path / "c.toml")
    assert message in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "c.toml", tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_file(path)


def test_a_flag_without_underscores_is_kept():
    assert flags_of({"norm": "batch"}, "here") == ("--norm", "batch")
