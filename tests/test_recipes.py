"""The registry and the records in it."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from gradsift.errors import UsageError
from gradsift.gate import ConstantTime, ConstantVariance, TauThreshold
from gradsift.recipes import Recipe, recipes
from gradsift.sampling import Clip, Mixed, Multinomial, Poisson, Power, Stratified, Systematic, TopK
from gradsift.scores import Loss, OutputGradient

NAMES = [
    "auto",
    "aw-sgd",
    "c-sgd",
    "infobatch",
    "issgd",
    "issgd2015",
    "kakurenbo",
    "katharopoulos2017",
    "katharopoulos2017-exact",
    "katharopoulos2017-unbiased",
    "katharopoulos2018",
    "katharopoulos2018-constant-time",
    "katharopoulos2018-constant-variance",
    "loss",
    "online-batch-selection",
    "p-sgd",
    "per-class-gaussian",
    "pool",
    "rho-loss",
    "rs2",
    "schaul-proportional",
    "selective-backprop",
    "static-importance",
    "table",
    "table-exact",
    "table-forecast",
    "uniform",
    "uniform-iid",
]


BIASED = {
    "c-sgd",
    "infobatch",
    "issgd2015",
    "kakurenbo",
    "katharopoulos2017",
    "katharopoulos2017-exact",
    "online-batch-selection",
    "p-sgd",
    "rho-loss",
    "schaul-proportional",
    "selective-backprop",
}
"""On purpose, as published."""


def test_the_names() -> None:
    assert sorted(recipes) == NAMES
    assert len(recipes) == len(NAMES)
    assert all(recipes[name].name == name for name in recipes)
    assert all(name in recipes for name in NAMES)
    assert "best" not in recipes


@pytest.mark.parametrize("name", ["katharopoulos", "", "POOL"])
def test_an_unknown_name_lists_the_names(name: str) -> None:
    with pytest.raises(UsageError, match=f"recipe {name!r} is unknown, expected one of") as error:
        recipes[name]
    assert all(known in str(error.value) for known in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_reference_and_says_whether_it_is_biased(name: str) -> None:
    assert len(recipes[name].reference) > 10
    assert recipes[name].biased == (name in BIASED)


def test_the_published_method_is_its_parts() -> None:
    published = recipes["katharopoulos2018"]
    assert published.source == "pool"
    assert published.ratio == 3
    assert published.score == OutputGradient(mode="eval")
    assert published.draw == Multinomial()
    assert published.gate == TauThreshold(threshold=None, momentum=0.9)
    assert published.correction is None
    assert isinstance(recipes["katharopoulos2018-constant-variance"].gate, ConstantVariance)
    assert isinstance(recipes["katharopoulos2018-constant-time"].gate, ConstantTime)


def test_the_pool_and_its_control_arms_differ_in_one_part() -> None:
    pool = recipes["pool"]
    assert pool.draw == Systematic()
    assert pool.gate is None
    same = replace(recipes["loss"], score=pool.score, name=pool.name, reference=pool.reference)
    assert same == pool
    assert recipes["loss"].score == Loss()
    assert recipes["uniform"].source == "loader"
    assert recipes["uniform-iid"].source == "iid"


def test_a_part_is_replaced() -> None:
    changed = replace(recipes["pool"], ratio=5)
    assert (changed.ratio, changed.draw) == (5, recipes["pool"].draw)
    assert recipes["pool"].ratio == 3.0
    with pytest.raises(UsageError, match=r"pool ratio 0\.5 received"):
        replace(recipes["pool"], ratio=0.5)
    with pytest.raises(FrozenInstanceError):
        recipes["pool"].ratio = 4  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("ratio", [0.99, 0, -3, float("nan"), float("inf")])
def test_bad_ratios(ratio: float) -> None:
    with pytest.raises(UsageError, match="expected a finite number of at least 1"):
        Recipe(ratio=ratio)


@pytest.mark.parametrize(
    ("parts", "biased"),
    [
        ({}, False),
        ({"draw": Multinomial()}, False),
        ({"draw": Stratified()}, False),
        ({"draw": Poisson()}, False),
        ({"draw": TopK()}, True),
        ({"correction": Clip(3.0)}, True),
        ({"draw": TopK(), "correction": Clip(3.0)}, True),
        ({"distribution": Mixed(Power(0.5), uniform=0.1)}, False),
    ],
)
def test_bias_is_declared_by_the_parts(parts: dict[str, Any], biased: bool) -> None:
    assert Recipe(**parts).biased is biased
