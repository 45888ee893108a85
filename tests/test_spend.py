"""What a gain is spent on: the batch that gets on fastest, a larger step, or neither."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
import gradsift.trainer
from gradsift import UsageError, WeightedBatch, recipes
from gradsift.clock import VirtualClock
from gradsift.gate import Decision, Offer
from gradsift.monitors.spending import lr_factor
from gradsift.sifting.spending import Spending, choose_spend

LOSS = nn.CrossEntropyLoss(reduction="none")
N, BATCH = 512, 16


def decided(ratio: float, scale: float = math.inf, source: Any = "table") -> Decision:
    return Decision(Offer(source, 1.0, ratio + 0.5, lower=ratio), 1.5, "", noise_scale=scale)


def timed(spending: Spending, fixed: float, steps: int = 128, machine: float = 1.0) -> None:
    """Steps of the size in force, of which whole ones take a second on a machine of speed one."""
    size = spending.size(64)
    for _ in range(steps):
        spending.timed(size, machine * (fixed + (1 - fixed) * size / 64))


def tried(ratio: float, scale: float, fixed: float) -> tuple[Spending, list[int]]:
    """A trial, and the sizes that it took."""
    spending, sizes = Spending("batch"), []
    for _ in range(5):
        spending.decide(decided(ratio, scale), 64)
        sizes.append(spending.size(64))
        timed(spending, fixed)
    return spending, sizes


@pytest.mark.parametrize("scale", [8.0, 64.0, 1e6, math.inf])
@pytest.mark.parametrize("ratio", [2.5, 5.0, 40.0])
@pytest.mark.parametrize("fixed", [0.0, 0.35, 0.7, 1.0])
def test_the_eighth_that_gets_on_fastest(ratio: float, scale: float, fixed: float) -> None:
    """With trΣ = scale and ‖μ‖² = 1 by definition; noise of size s is (D − 1)/s."""
    if ratio > scale + 1:
        pytest.skip("no second moment is below the squared mean")
    trace = 1e12 if math.isinf(scale) else scale
    drawn, plain = (trace + 1) / ratio - 1, trace / 64
    speeds = {}
    for size in range(8, 65, 8):
        progress = 1 - (1 + drawn / size) / (1 + plain) / 2
        quiet = drawn / size <= plain * (1 + 1e-6)
        speeds[size] = quiet * progress / (fixed + (1 - fixed) * size / 64)
    _, sizes = tried(ratio, scale, fixed)
    if min(size for size in speeds if speeds[size]) > 32:
        assert sizes == [64] * 5
        return
    assert sizes[:4] == [64, 32, 64, 32]
    assert speeds[sizes[4]] == pytest.approx(max(speeds.values()), rel=1e-9)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.9])
def test_before_half_is_quiet_enough_nothing_is_tried(ratio: float) -> None:
    assert tried(ratio, math.inf, 0.2)[1] == [64] * 5


def test_a_smaller_ratio_takes_a_larger_batch_without_another_trial() -> None:
    spending, sizes = tried(4.0, math.inf, 0.1)
    assert sizes[-1] == 16
    spending.decide(decided(1.6), 64)
    assert spending.size(64) == 40
    spending.decide(decided(1.0), 64)
    assert spending.size(64) == 64


def test_sizes_are_tried_again_when_the_steps_have_doubled() -> None:
    spending, _ = tried(4.0, math.inf, 1.0)
    assert spending.size(64) == 64
    timed(spending, 1.0, steps=4 * 128 - 128)
    for expected in (64, 32, 64, 32, 16):
        spending.decide(decided(4.0), 64)
        assert spending.size(64) == expected
        timed(spending, 0.0)


@pytest.mark.parametrize("machine", [0.5, 2.0])
def test_a_machine_that_changes_speed_changes_nothing(machine: float) -> None:
    """Its seconds of before are those of other sizes; only shares within a trial count."""
    spending, sizes = tried(4.0, math.inf, 0.3)
    timed(spending, 0.3, steps=200, machine=machine)
    spending.decide(decided(4.0), 64)
    assert spending.size(64) == sizes[-1] == 24


def test_a_machine_that_changes_speed_within_a_trial_changes_little() -> None:
    """It slows down by a fifth: the sizes take turns, so both have met the slow machine."""
    spending = Spending("batch")
    for machine in (1.0, 1.05, 1.15, 1.2):
        spending.decide(decided(4.0), 64)
        timed(spending, 0.3, machine=machine)
    spending.decide(decided(4.0), 64)
    assert spending.size(64) in {24, 32}


def test_a_trial_that_is_interrupted_begins_again() -> None:
    spending = Spending("batch")
    for ratio, expected in ((4.0, 64), (4.0, 32), (1.0, 64), (4.0, 64), (4.0, 32), (4.0, 64)):
        spending.decide(decided(ratio), 64)
        assert spending.size(64) == expected
        timed(spending, 0.3)


def test_a_trial_goes_on_in_a_resumed_run() -> None:
    spending, other = Spending("batch"), Spending("batch")
    for _ in range(3):
        spending.decide(decided(4.0), 64)
        timed(spending, 0.3)
    other.load_state_dict(spending.state_dict())
    for expected in (32, 24, 24):
        for each in (spending, other):
            each.decide(decided(4.0), 64)
            assert each.size(64) == expected
            timed(each, 0.3)


@pytest.mark.parametrize("source", ["off", "pool"])
def test_only_the_table_has_something_to_spend(source: str) -> None:
    for spend in ("batch", "lr"):
        spending = Spending(spend)  # pyright: ignore[reportArgumentType]
        spending.decide(decided(4.0), 64)
        spending.decide(decided(4.0, source=source), 64)
        assert (spending.size(64), spending.lr_factor) == (64, 1.0)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 9.0])
def test_the_learning_rate_follows_the_noise_scale_rule(ratio: float) -> None:
    spending = Spending("lr")
    spending.decide(decided(ratio, 64.0), 64)
    assert spending.lr_factor == lr_factor(64, ratio, 64.0)
    assert spending.size(64) == 64


def test_noise_spends_nothing() -> None:
    spending = Spending("noise")
    spending.decide(decided(9.0), 64)
    assert (spending.size(64), spending.lr_factor) == (64, 1.0)


def fit(spend: Any) -> tuple[gradsift.SiftedLoader, list[WeightedBatch], list[float]]:
    """Nine of ten examples are easy for ever."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 2
    x = torch.randn(N, 8, generator=generator)
    x[:, 0] = torch.where(torch.arange(N) < N // 10, 0.0, (2 * y - 1) * 6.0)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, generator=generator)
    clock = VirtualClock()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(8, 2)
        train = gradsift.sift(loader, model, LOSS, spend=spend, clock=clock)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        seen, factors = [], []
        for _ in range(14):
            for batch in train:
                optimizer.zero_grad()
                batch.loss(model(batch.inputs)).backward()
                optimizer.step()
                clock.charge(trained=len(batch))
                seen.append(batch)
                factors.append(train.lr_factor)
    return train, seen, factors


@pytest.mark.parametrize("spend", ["noise", "batch", "lr"])
def test_a_run_spends_what_it_was_told_to(spend: str) -> None:
    train, seen, factors = fit(spend)
    assert train.gate is not None
    assert train.gate["state"] == "on"
    sizes = {len(batch) for batch in seen}
    assert (min(sizes) < BATCH) == (spend == "batch")
    assert max(sizes) == BATCH
    assert (max(factors) > 1) == (spend == "lr")
    assert min(factors) == 1.0
    assert all(batch.size == len(batch) for batch in seen)


def test_a_smaller_batch_divides_by_its_own_size() -> None:
    _, seen, _ = fit("batch")
    small = [batch for batch in seen if len(batch) < BATCH]
    means = torch.stack([batch.mean(torch.ones(len(batch))) for batch in small])
    assert float(means.mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("spend", "recipe", "said"),
    [("time", "auto", "noise, batch, lr"), ("lr", "pool", "'auto'"), ("batch", "table", "'auto'")],
)
def test_spending_that_cannot_be(spend: Any, recipe: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        gradsift.trainer.Settings(recipe=recipe, spend=spend)
    if spend != "time":
        loader = DataLoader(TensorDataset(torch.zeros(8, 1), torch.zeros(8)), batch_size=4)
        with pytest.raises(UsageError, match=said):
            gradsift.sift(loader, nn.Linear(1, 1), LOSS, recipe=recipes[recipe], spend=spend)


def test_by_default_batches_shrink_where_that_changes_nothing_but_the_noise() -> None:
    normalised = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))
    assert choose_spend(None, recipes["auto"], nn.Linear(1, 2)) == "batch"
    assert choose_spend(None, recipes["auto"], normalised) == "noise"
    assert choose_spend(None, recipes["auto"], normalised.eval()) == "noise"
    assert {choose_spend(None, recipe) for name, recipe in recipes.items() if name != "auto"} == {
        "noise"
    }
    _, seen, _ = fit(None)
    assert min(len(batch) for batch in seen) < BATCH


@pytest.mark.parametrize(
    ("changes", "spend"),
    [
        ({}, "lr"),
        ({"spend": "batch"}, "batch"),
        ({"optimizer": "adam"}, "batch"),
        ({"optimizer": "adamw", "spend": "lr"}, "lr"),
        ({"recipe": "pool"}, "noise"),
        ({"recipe": "pool", "optimizer": "adam"}, "noise"),
    ],
)
def test_settings_list_what_is_spent(changes: dict[str, str], spend: str) -> None:
    assert gradsift.trainer.Settings(**changes).listed()["spend"] == spend  # pyright: ignore[reportArgumentType]
    network = {"model": "wrn-10-1", "norm": "batch", "optimizer": "adam"}
    assert gradsift.trainer.Settings(**network).listed()["spend"] == "noise"  # pyright: ignore[reportArgumentType]


def mean_step(kind: type[torch.optim.Optimizer], noise: float) -> float:
    """How far an optimiser moves per step, in the mean, along gradients of 0.01 ± noise."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.zeros(4000, dtype=torch.float64))
    optimizer = kind([parameter], lr=1e-3)  # pyright: ignore[reportCallIssue]
    for _ in range(600):
        draws = torch.randn(4000, generator=generator, dtype=torch.float64)
        parameter.grad = 0.01 + noise * draws
        optimizer.step()
    return -float(parameter.detach().mean())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_adaptive_optimisers_spend_lower_noise_by_themselves(
    kind: type[torch.optim.Optimizer],
) -> None:
    """At R = 4 noise is halved, and so is their denominator: nearly twice the step, unasked."""
    assert mean_step(kind, 0.5) / mean_step(kind, 1.0) == pytest.approx(1.97, abs=0.06)
    assert mean_step(torch.optim.SGD, 0.5) == pytest.approx(
        mean_step(torch.optim.SGD, 1.0), rel=0.1
    )
