"""The last part of a run in the user's own order: when it begins, and that it stays."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from gradsift import UsageError, WeightedBatch, recipes
from gradsift.clock import VirtualClock
from gradsift.sifting.deciding import DWELL, EVERY
from gradsift.trainer import Settings

LOSS = nn.CrossEntropyLoss(reduction="none")
N, BATCH, EPOCHS = 512, 16, 14
STEPS = EPOCHS * N // BATCH


class Fit:
    """A run on data of which nine in ten examples are easy for ever, so that the table opens.

    Args:
        told: whether the loop says how far it is.
        options: of `gradsift.sift`.
    """

    def __init__(self, *, told: bool = True, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(N) % 2
        x = torch.randn(N, 8, generator=generator)
        x[:, 0] = torch.where(torch.arange(N) < N // 10, 0.0, (2 * y - 1) * 6.0)
        data = TensorDataset(x, y)
        loader = DataLoader(data, batch_size=BATCH, shuffle=True, generator=generator)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Linear(8, 2)
        self.clock = VirtualClock()
        self.train = gradsift.sift(loader, self.model, LOSS, clock=self.clock, **options)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.told = told

    def steps(self, until: int) -> list[WeightedBatch]:
        seen: list[WeightedBatch] = []
        while self.train.steps < until:
            for batch in self.train:
                if self.told:
                    self.train.policy.progress = self.train.steps / STEPS
                self.optimizer.zero_grad()
                batch.loss(self.model(batch.inputs)).backward()
                self.optimizer.step()
                self.clock.charge(trained=len(batch))
                seen.append(batch)
                if self.train.steps == until:
                    break
        return seen


def weighted(batches: list[WeightedBatch]) -> list[bool]:
    return [bool((batch.weights != 1).any()) for batch in batches]


@pytest.mark.parametrize(
    "spend", ["noise", *(pytest.param(name, marks=pytest.mark.slow) for name in ("batch", "lr"))]
)
def test_the_last_part_is_in_the_users_own_order(spend: str) -> None:
    fit = Fit(finish=0.25, spend=spend)
    seen = fit.steps(STEPS)
    begins = next(step for step in range(STEPS) if step % EVERY == 0 and step >= 0.75 * STEPS)
    drawn = weighted(seen)
    assert any(drawn[begins - DWELL : begins])
    assert not any(drawn[begins + 1 :])
    assert all(len(batch) == BATCH for batch in seen[begins + 1 :])
    assert fit.train.lr_factor == 1.0
    assert fit.train.gate is not None
    assert fit.train.gate["state"] == "off"
    assert fit.train.gate["opened_at_step"] is not None
    said = "off: the last 25% of the run are in your own order; before that on: table: a variance"
    assert str(fit.train).startswith(said)


def test_within_it_examples_take_turns() -> None:
    fit = Fit(finish=0.25)
    fit.steps(STEPS - 2 * N // BATCH)
    ids = torch.cat([batch.indices for batch in fit.steps(STEPS)])
    times = ids.bincount(minlength=N)
    assert 1 <= int(times.min()) <= int(times.max()) <= 3


@pytest.mark.parametrize("options", [{"told": False, "finish": 0.25}, {"finish": 0.0}])
def test_it_never_begins_unasked_or_where_nobody_says_how_far_the_run_is(
    options: dict[str, Any],
) -> None:
    fit = Fit(**options)
    assert any(weighted(fit.steps(STEPS)[-EVERY:]))
    assert str(fit.train).startswith("on: table")


def test_a_run_that_is_resumed_within_it_stays_in_it() -> None:
    fit, again = Fit(finish=0.25), Fit(finish=0.25, told=False)
    fit.steps(round(0.9 * STEPS))
    again.train.load_state_dict(fit.train.state_dict())
    again.model.load_state_dict(fit.model.state_dict())
    rest, repeated = fit.steps(STEPS), again.steps(STEPS)
    assert [batch.indices.tolist() for batch in repeated] == [b.indices.tolist() for b in rest]
    assert not any(weighted(repeated))


@pytest.mark.parametrize("finish", [-0.1, 1.5, float("nan")])
def test_a_finish_is_a_share(finish: float) -> None:
    with pytest.raises(UsageError, match=r"finish .* expected a share of the run, from 0 to 1"):
        replace(recipes["auto"], finish=finish)


def test_only_auto_goes_back() -> None:
    with pytest.raises(UsageError, match="use recipe 'auto'"):
        Fit(recipe="table", finish=0.5)
    with pytest.raises(UsageError, match="use recipe 'auto'"):
        Settings(recipe="uniform", finish=0.5)


def test_settings_list_the_finish_in_use() -> None:
    assert Settings(recipe="uniform").listed()["finish"] == 0.0
    assert Settings(recipe="auto").listed()["finish"] == recipes["auto"].finish
    assert Settings(recipe="auto", finish=0.3).listed()["finish"] == 0.3
