"""Forecasts of a table's scores: judged before they learn, drawn by while they win, unbiased."""

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from gradsift import Recipe, UsageError, draws, recipes
from gradsift.predictor import Forecasting
from gradsift.predictor.duel import ENOUGH
from gradsift.predictor.fit import Rows, fit
from gradsift.predictor.forecast import RIDGE, Forecast
from gradsift.records import ScoreUpdate
from gradsift.sampling.distributions import Mixed, Proportional
from gradsift.sampling.table import ScoreTable
from gradsift.sifting.memory import Memory

N, BATCH = 256, 64

STEPS = 640
"""As if of a pass: prices are averaged over 40 updates then."""
FORECAST = recipes["table-forecast"]


def noisy(index: Tensor, step: int) -> Tensor:
    """Scores whose level is the example's own, one of two by class, and whose last one says little.

    Exponential noise on top: the mean of the class is a better guess than what was seen last.
    """
    generator = torch.Generator().manual_seed(step)
    noise = -torch.rand(len(index), generator=generator).clamp(min=1e-9).log()
    return torch.where(index % 4 == 0, 4.0, 0.5).double() * noise.double()


def steady(index: Tensor, step: int) -> Tensor:
    """Scores that stay what they were: nobody can do better than the last one."""
    del step
    return 0.3 + (index % 16).double()


def lived(truth: Any, steps: int, recipe: Recipe = FORECAST, first: Memory | None = None) -> Memory:
    """A memory that has seen so many updates, drawn by itself after the first pass."""
    memory = first or Memory(recipe, N, seed=0, adapts=False, steps=STEPS)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        if step < N // BATCH:
            ids = torch.arange(step * BATCH, (step + 1) * BATCH)
            weights = torch.ones(BATCH, dtype=torch.float64)
        else:
            draw = memory.draw(BATCH, generator)
            ids, weights = draw.positions, draw.weights
        memory.learn(ScoreUpdate(ids, truth(ids, step), step, ids % 4), weights)
        memory.passed(BATCH)
    return memory


def forecast_of(memory: Memory) -> Forecast:
    assert memory.forecast is not None
    return memory.forecast


def test_forecasts_win_where_the_last_score_says_little() -> None:
    memory = lived(noisy, 120)
    forecast = forecast_of(memory)
    assert forecast.in_use
    assert forecast.duel.difference.upper < 0
    assert forecast.duel.challenger.value > 1.1 * forecast.duel.holder.value
    assert forecast.duel.calibration_error < 0.6
    (first, *_) = [said for said in memory.news() if "drawn by" in said]
    assert "times that of the last scores" in first
    assert memory.price == forecast.duel.challenger
    drawn = memory.draw(BATCH, torch.Generator().manual_seed(2))
    masses = forecast.table.masses(drawn.positions.numpy())
    assert drawn.weights.numpy() * masses == pytest.approx(np.ones(BATCH), rel=1e-12)


def test_forecasts_stay_off_where_the_last_score_says_all() -> None:
    memory = lived(steady, 60)
    forecast = forecast_of(memory)
    assert not forecast.in_use
    assert forecast.duel.batches > ENOUGH
    assert all("left aside" in said for said in memory.news())
    one = memory.draw(BATCH, torch.Generator().manual_seed(2))
    probabilities = memory.table.probabilities(one.positions)
    assert (one.weights * probabilities * N).tolist() == pytest.approx([1.0] * BATCH)


def test_the_judgement_is_right() -> None:
    """The true second moments, over all examples and noise: the winner's is the smaller one."""
    memory = lived(noisy, 120)
    squares = torch.where(torch.arange(N) % 4 == 0, 16.0, 0.25).double() * 2  # E of exp. squares
    everyone = torch.arange(N)
    last = float((squares / (N * memory.table.probabilities(everyone))).mean())
    masses = torch.from_numpy(forecast_of(memory).table.masses(everyone.numpy()))
    best = float((squares / masses).mean())
    assert best < 0.95 * last
    ideal = float(squares.sqrt().mean()) ** 2
    assert ideal <= best < 1.3 * ideal


def test_an_update_is_priced_before_anyone_learns_from_it() -> None:
    """Against a twin that is told nothing: the same masses as before the update."""
    memory = lived(noisy, 20)
    twin: Any = lived(noisy, 20)
    ids = torch.arange(0, N, 3)
    update = ScoreUpdate(ids, noisy(ids, 99), 99, ids % 4)
    weights = torch.ones(len(ids), dtype=torch.float64)
    twin._until_refresh = memory._until_refresh = 10**6  # neither fits anew now
    memory.learn(update, weights)
    level = twin.table.level
    fresh = update.score.numpy() / level
    holder = N * twin.table.probabilities(ids).numpy()
    twin.forecast.duel.add(fresh, weights.numpy(), holder, twin.forecast.table.masses(ids.numpy()))
    twin.forecast.duel.calibrate(fresh, weights.numpy(), twin.forecast.table.values(ids.numpy()))
    assert forecast_of(memory).duel.listed() == twin.forecast.duel.listed()
    assert memory.table.level != level


def test_coefficients_are_those_of_the_latest_rows() -> None:
    memory = lived(noisy, 40)
    forecast: Any = forecast_of(memory)
    rows = list(forecast._rows)
    assert 0 < len(rows) <= 8
    start = forecast.beta.copy()
    forecast.refit(memory.table, 40)
    parts = zip(*((one.x, one.costs, one.weights) for one in rows), strict=True)
    joined = Rows(*map(np.concatenate, parts))
    expected = fit(joined, start, forecast._known.start, RIDGE)
    assert forecast.beta.tolist() == expected.tolist()
    everyone = np.arange(N)
    found = forecast._known.rows(everyone, memory.table, 40) @ expected
    assert forecast.table.values(everyone) == pytest.approx(np.exp(found), rel=1e-6)


def test_frozen_features_are_learnt_from() -> None:
    """Scores that only a feature knows: they differ by it, and each is seen once or twice."""
    hidden = torch.randn(N, 1, generator=torch.Generator().manual_seed(4))

    def truth(index: Tensor, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        noise = -torch.rand(len(index), generator=generator).clamp(min=1e-9).log()
        return (1.5 * hidden[index, 0]).exp().double() * noise.double()

    knows = lived(truth, 60, replace(FORECAST, forecast=Forecasting(hidden)))
    ratio = forecast_of(knows).duel.challenger.value / forecast_of(knows).duel.holder.value
    blind = lived(truth, 60)
    without = forecast_of(blind).duel.challenger.value / forecast_of(blind).duel.holder.value
    assert ratio > 1.05
    assert ratio > without
    assert abs(forecast_of(knows).beta[-1]) > 0.3


@pytest.mark.parametrize("cut", [3, 17, 60])
def test_a_memory_with_forecasts_goes_on_to_the_bit(cut: int) -> None:
    features = torch.arange(float(N)).reshape(N, 1)
    recipe = replace(FORECAST, forecast=Forecasting(features))
    first = lived(noisy, cut, recipe)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Memory(recipe, N, seed=0, adapts=False, steps=STEPS)
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in range(cut, cut + 20):
        ids = torch.arange(step, step + 40) % N
        update = ScoreUpdate(ids, noisy(ids, step), step, ids % 4)
        for memory in (first, second):
            memory.learn(update, torch.ones(40, dtype=torch.float64))
            memory.passed(40)
    assert str(second.state_dict()) == str(first.state_dict())
    one, other = (memory.draw(16, torch.Generator().manual_seed(3)) for memory in (first, second))
    assert torch.equal(one.positions, other.positions)
    assert torch.equal(one.weights, other.weights)


def test_scores_that_are_not_finite_are_left_out() -> None:
    memory = lived(noisy, 20)
    ids = torch.tensor([0, 1, 2, 3])
    broken = torch.tensor([math.nan, math.inf, 1.0, 2.0], dtype=torch.float64)
    weights = torch.ones(4, dtype=torch.float64)
    before = forecast_of(memory).duel.batches
    memory.learn(ScoreUpdate(ids, broken, 21), weights)
    memory.learn(ScoreUpdate(ids[:2], broken[:2], 22), weights[:2])
    assert forecast_of(memory).duel.batches == before + 1
    assert np.isfinite(forecast_of(memory).table.values(np.arange(N))).all()


def test_scores_of_zero_say_nothing_and_break_nothing() -> None:
    table = ScoreTable(8)
    law = Mixed(Proportional(), uniform=0.2)
    forecast = Forecast(8, 1, Forecasting(), law, momentum=0.9)
    ids, ones = torch.arange(8), torch.ones(8, dtype=torch.float64)
    for version in range(4):
        update = ScoreUpdate(ids, torch.zeros(8), version)
        forecast.look(update, ones, table)
        table.update(ids, update.score, version, ones)
        forecast.learn(update, ones, table)
        forecast.refit(table, version)
    assert not forecast.in_use
    assert np.isfinite(forecast.table.values(np.arange(8))).all()


def sifted(recipe: str | Recipe, examples: int = 200) -> tuple[gradsift.SiftedLoader, nn.Module]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(examples) % 2
    x = torch.randn(examples, 4, generator=generator)
    x[:, 0] += torch.where(torch.arange(examples) < 20, 0.0, 4.0) * (2 * y - 1)
    loader = DataLoader(
        TensorDataset(x, y), batch_size=8, shuffle=True, generator=generator.manual_seed(1)
    )
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    return gradsift.sift(loader, model, loss_fn, recipe=recipe), model


@pytest.mark.parametrize("recipe", ["table-forecast", "auto"])
def test_a_run_says_which_won_and_by_how_much(recipe: str) -> None:
    assembled = replace(recipes[recipe], forecast=Forecasting())
    train, model = sifted(assembled)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(12):
        for batch in train:
            loss = batch.loss(model(batch.inputs))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    told = [notice for notice in train.notices if notice.startswith("forecasts are ")]
    policy: Any = train.policy
    if recipe == "auto" and policy.memory.forecast.duel.batches < ENOUGH:
        assert not told  # it looks at few steps within its allowance
        return
    assert told
    assert "their variance ratio is" in told[0]
    assert f"; {policy.memory.forecast.duel}" in str(train)


def test_forecasts_belong_to_tables() -> None:
    with pytest.raises(UsageError, match="a forecast, which belongs to the sources"):
        Recipe(forecast=Forecasting())
    with pytest.raises(UsageError, match=r"a forecast received with the draw Systematic\(\)"):
        replace(FORECAST, draw=draws.Systematic())
    with pytest.raises(UsageError, match="features of 3 examples, expected 200"):
        sifted(replace(FORECAST, forecast=Forecasting(torch.ones(3, 1))))
