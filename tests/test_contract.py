"""The contract that every recipe signs. A new recipe joins by being registered.

Exceptions are listed by name, with the reason.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from enumeration import (
    SCORE_SETS,
    moments,
    multinomial_law,
    poisson_law,
    score_set,
    stratified_law,
    systematic_law,
)
from gradsift import Holdout, Recipe, UsageError, WeightedBatch, draws, recipes
from gradsift.gate import GateState, MeasuredGate
from gradsift.recipes.rivals import RIVALS
from gradsift.sampling.inclusion import capped_inclusion
from gradsift.sampling.select import select

NAMES = sorted(recipes)
EVERY_RECIPE = pytest.mark.parametrize("name", NAMES)

LATER = {recipe.name for recipe in RIVALS} - {"infobatch", "schaul-proportional"}
"""Recipes whose long runs belong to the second tier."""

EVERY_RECIPE_AT_LENGTH = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LATER else n for n in NAMES]
)

NO_IDS = "draws ids from the whole data set, and a stream has none"
BY_RULE = {
    name: "a rule picks ids by laws of its own: tests/test_rules.py, tests/test_rules_draws.py"
    for name in NAMES
    if recipes[name].source == "history"
}

NEEDS_IDS = dict.fromkeys(
    (
        *("uniform-iid", "table", "table-exact", "table-forecast", "issgd", "issgd2015"),
        *("katharopoulos2017", "katharopoulos2017-unbiased", "rho-loss", *BY_RULE),
    ),
    NO_IDS,
)

NEEDS_CLASSES = dict.fromkeys(
    ("kakurenbo", "p-sgd", "c-sgd"), "its score is a predicted probability"
)

SCORES_BESIDE = {
    "online-batch-selection": "all losses are computed anew every second pass",
    "kakurenbo": "hidden examples are looked at after each round",
    "static-importance": "the norms of all inputs are taken once",
}

WEIGHED = "its powers of weights are biased, its draw is not: tests/test_resampling.py"
SLOWER = {
    "katharopoulos2017-exact": "its normaliser is that of earlier losses: small steps as they fall"
}

FILTERED = {
    "issgd2015": "its filter is biased, its draw is not: tests/test_filtered.py",
    "katharopoulos2017": WEIGHED,
    "katharopoulos2017-exact": WEIGHED,
}

N, BATCH = 40, 10
CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none")


def open_at_once(recipe: Recipe) -> Recipe:
    """The same recipe with a gate that opens after the first batch, and quick hold-out models."""
    if recipe.prediction is not None:
        short = replace(recipe.prediction, warm_up=1, candidates=30, refresh=8, every=4)
        return replace(recipe, prediction=short)
    if recipe.holdout is not None:
        return replace(recipe, ratio=3.0, holdout=Holdout(epochs=20, lr=0.3))
    if recipe.gate is None or isinstance(recipe.gate, MeasuredGate):
        return recipe
    gate: Any = recipe.gate
    return replace(recipe, gate=replace(gate, momentum=0.0))


def blobs() -> TensorDataset:
    """Two classes, with a few points much nearer to the border than the rest."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 2
    distance = torch.where(torch.arange(N) < 8, 0.3, 4.0)
    x = torch.stack([(2 * y - 1) * distance, torch.arange(N).float()], 1)
    x[:, 0] += 0.1 * torch.randn(N, generator=generator)
    return TensorDataset(x / torch.tensor([1.0, N]), y)


def loader(data: TensorDataset, workers: int = 0) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(
        data, batch_size=BATCH, shuffle=True, num_workers=workers, generator=generator
    )


def fit(
    recipe: Recipe,
    data: TensorDataset,
    model: nn.Module,
    loss_fn: nn.Module,
    epochs: int,
    lr: float,
) -> tuple[gradsift.SiftedLoader, list[WeightedBatch]]:
    """A plain training loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    train = gradsift.sift(loader(data), model, loss_fn, recipe=recipe)
    seen: list[WeightedBatch] = []
    for _ in range(epochs):
        for batch in train:
            optimizer.zero_grad()
            batch.loss(model(batch.inputs)).backward()
            optimizer.step()
            seen.append(batch)
    return train, seen


@EVERY_RECIPE
@pytest.mark.parametrize("workers", [0, 2])
def test_map_style_data(name: str, workers: int) -> None:
    model = nn.Linear(2, 2)
    data = blobs()
    train = gradsift.sift(
        loader(data, workers), model, CROSS_ENTROPY, recipe=open_at_once(recipes[name])
    )
    for _ in range(2):
        steps = 0
        for batch in train:
            batch.loss(model(batch.inputs))
            inputs, targets = data.tensors
            assert torch.equal(batch.inputs, inputs[batch.indices])
            assert torch.equal(batch.targets, targets[batch.indices])
            assert batch.weights.shape == batch.indices.shape == (len(batch),)
            assert (batch.weights > 0).all()
            steps += 1
        assert steps == len(train) == N // BATCH
    assert train.steps == 2 * N // BATCH
    assert str(train).split(":")[0] in {"on", "off"}


@EVERY_RECIPE
def test_stream_or_refusal(name: str) -> None:
    x, y = blobs().tensors
    batches = [(x[k : k + BATCH], y[k : k + BATCH]) for k in range(0, N, BATCH)]
    model = nn.Linear(2, 2)
    if name in NEEDS_IDS:
        with pytest.raises(UsageError, match="no ids"):
            gradsift.sift(batches, model, CROSS_ENTROPY, recipe=recipes[name])
        return
    train = gradsift.sift(batches, model, CROSS_ENTROPY, recipe=open_at_once(recipes[name]))
    for _ in range(2):
        for batch in train:
            batch.loss(model(batch.inputs))
            assert torch.equal(batch.inputs, x[batch.indices % N])
    assert train.steps == 2 * N // BATCH


def expected_counts(recipe: Recipe, probabilities: Tensor, size: int) -> Tensor:
    """How often each candidate is drawn, by exact integration over the draw's random numbers."""
    ones = torch.ones_like(probabilities)
    if isinstance(recipe.draw, draws.Multinomial):
        return size * multinomial_law(probabilities)
    if isinstance(recipe.draw, draws.Stratified):
        return stratified_law(probabilities, size).sum(0)
    if isinstance(recipe.draw, draws.Systematic):
        return moments(systematic_law(capped_inclusion(probabilities, size)), ones)[0]
    if isinstance(recipe.draw, draws.Poisson):
        return moments(poisson_law(capped_inclusion(probabilities, size)), ones)[0]
    assert isinstance(recipe.draw, draws.TopK)
    positions = recipe.draw.draw(probabilities, size, torch.Generator()).positions
    return torch.bincount(positions, minlength=len(probabilities)).double()


def is_unbiased(recipe: Recipe, scores: Tensor, size: int) -> bool:
    """Whether ``E[Σ_j 1{i_j = i} w_j] = size/n`` for every candidate i, to rounding."""
    n = len(scores)
    counts = expected_counts(recipe, recipe.distribution.probabilities(scores), size)
    if not (counts > 0).all():
        return False
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        drawn = select(scores, recipe.distribution, recipe.draw, size, generator, recipe.correction)
        mass = drawn.weights * counts[drawn.positions]
        if not torch.allclose(mass, torch.full_like(mass, size / n), rtol=1e-11, atol=0):
            return False
    return True


@EVERY_RECIPE
def test_unbiased_or_declared_biased(name: str) -> None:
    recipe = recipes[name]
    cases = [(score_set(key), size) for key in SCORE_SETS for size in (1, 2)]
    if not recipe.scored:
        _, seen = fit(recipe, blobs(), nn.Linear(2, 2), CROSS_ENTROPY, 2, 0.1)
        assert all(torch.equal(batch.weights, torch.ones(len(batch))) for batch in seen)
        assert not recipe.biased
        return
    if name in BY_RULE:
        pytest.skip(BY_RULE[name])
    declared = recipe.biased and name not in FILTERED
    assert all(is_unbiased(recipe, scores, size) for scores, size in cases) != declared


@pytest.mark.parametrize(
    ("recipe", "biased"),
    [
        (Recipe(draw=draws.TopK()), True),
        (Recipe(correction=gradsift.corrections.Clip(1.5)), True),
        (Recipe(draw=draws.Poisson()), False),
        (Recipe(draw=draws.Stratified()), False),
    ],
)
def test_the_test_of_bias_can_tell(recipe: Recipe, biased: bool) -> None:
    assert is_unbiased(recipe, score_set("uneven"), 2) != biased
    assert recipe.biased == biased


@EVERY_RECIPE
def test_mixed_precision(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    train = gradsift.sift(loader(blobs()), model, CROSS_ENTROPY, recipe=open_at_once(recipes[name]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            for batch in train:
                optimizer.zero_grad()
                outputs = model(batch.inputs)
                assert outputs.dtype == torch.bfloat16
                batch.loss(outputs).backward()
                assert all(
                    p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()
                )
                optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert train.quarantined == 0


@EVERY_RECIPE_AT_LENGTH
def test_converges_on_a_classification_problem(name: str) -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(2, 2), blobs()
    fit(open_at_once(recipes[name]), data, model, CROSS_ENTROPY, epochs=30, lr=1.0)
    x, y = data.tensors
    assert float((model(x).argmax(1) != y).float().mean()) <= 0.05
    assert CROSS_ENTROPY(model(x), y).mean().item() < 0.12


class SquaredError(nn.Module):
    """One loss per example."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.squeeze(1) - targets).square()


@EVERY_RECIPE_AT_LENGTH
def test_converges_on_a_regression_problem(name: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, 3, generator=generator)
    x[:5] *= 2
    data = TensorDataset(x, x @ torch.tensor([1.0, -2.0, 0.5]) + 3)
    model = nn.Linear(3, 1)
    if name in NEEDS_CLASSES:
        with pytest.raises(UsageError, match="one class per example"):
            fit(recipes[name], data, model, SquaredError(), epochs=1, lr=0.02)
        return
    epochs = 60 if name in SLOWER else 40
    fit(open_at_once(recipes[name]), data, model, SquaredError(), epochs, lr=0.02)
    assert SquaredError()(model(x), data.tensors[1]).mean().item() < 1e-3


@EVERY_RECIPE
def test_the_same_seed_gives_the_same_run(name: str) -> None:
    def run() -> Iterator[Tensor]:
        torch.manual_seed(5)
        model = nn.Linear(2, 2)
        _, seen = fit(open_at_once(recipes[name]), blobs(), model, CROSS_ENTROPY, 3, 0.1)
        yield from model.state_dict().values()
        yield from (batch.indices for batch in seen)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@EVERY_RECIPE_AT_LENGTH
def test_every_recipe_that_has_a_pool_uses_it_here(name: str) -> None:
    """The tests above would say nothing about a gate that never opened."""
    recipe = recipes[name]
    if recipe.source == "auto":
        pytest.skip("opens by measurement: tests/test_auto.py")
    torch.manual_seed(0)
    train, seen = fit(open_at_once(recipe), blobs(), nn.Linear(2, 2), CROSS_ENTROPY, 30, 1.0)
    assert any(batch.drawn for batch in seen) == (recipe.source != "loader")
    scores = recipe.source in ("pool", "engine") or name in SCORES_BESIDE
    assert (train.examples_scored > 0) == scores
    if recipe.gate is not None and not isinstance(recipe.gate, MeasuredGate):
        assert recipe.gate.needed(recipe.ratio) > GateState().tau
