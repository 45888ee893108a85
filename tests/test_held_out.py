"""Held-out losses against a plain loop, and the recipe that sets pools against them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from gradsift import Holdout, Recipe, TrainingError, UsageError, scores
from gradsift.clock import VirtualClock
from gradsift.fitting.held_out import held_out_losses
from gradsift.gate import TauThreshold
from gradsift.sifting.reduced import ReducedPool
from twins import assert_close

N, BATCH = 20, 4
LOSS = nn.CrossEntropyLoss(reduction="none")


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 3
    return torch.eye(3)[y] + torch.randn(N, 3, generator=generator), y


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))


def fetch(ids: Tensor) -> tuple[Tensor, Tensor]:
    x, y = data()
    return x[ids], y[ids]


def slow_held_out(holdout: Holdout, seed: int) -> Tensor:
    """One half after the other, by the textbook loop; the best pass by its mean loss."""
    x, y = data()
    source = torch.Generator().manual_seed(seed)
    order = torch.randperm(N, generator=source).tolist()
    found = torch.zeros(N, dtype=torch.float64)
    for mine, others in ((order[:10], order[10:]), (order[10:], order[:10])):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=holdout.lr)
        passes = []
        for _ in range(holdout.epochs):
            shuffled = [mine[k] for k in torch.randperm(10, generator=source).tolist()]
            for start in range(0, 10, BATCH):
                part = shuffled[start : start + BATCH]
                optimizer.zero_grad()
                LOSS(model(x[part]), y[part]).mean().backward()
                optimizer.step()
            with torch.no_grad():
                passes.append([LOSS(model(x[k : k + 1]), y[k : k + 1]).item() for k in others])
        best = min(passes, key=math.fsum)
        for k, loss in zip(others, best, strict=True):
            found[k] = loss
    return found


@pytest.mark.parametrize("holdout", [Holdout(epochs=1), Holdout(epochs=6, lr=0.3)])
def test_every_example_is_told_by_the_copy_that_has_not_seen_it(holdout: Holdout) -> None:
    model = network()
    before = [value.clone() for value in model.state_dict().values()]
    source = torch.Generator().manual_seed(7)
    found = held_out_losses(model, LOSS, fetch, N, BATCH, source, holdout=holdout)
    assert_close(found, slow_held_out(holdout, 7), 1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_wrong_label_costs_more_when_it_was_not_trained_on() -> None:
    """What the method is for: the held-out loss knows which labels are noise."""
    x, y = data()
    x, y = 6 * torch.eye(3)[y] + 0.1 * x, y.clone()
    y[:3] = (y[:3] + 1) % 3
    found = held_out_losses(
        network(),
        LOSS,
        lambda ids: (x[ids], y[ids]),
        N,
        BATCH,
        torch.Generator().manual_seed(0),
        holdout=Holdout(epochs=20, lr=0.02),
    )
    assert found[:3].min() > 1.4 * found[3:].max()


def broken(outputs: Tensor, targets: Tensor) -> Tensor:
    return LOSS(outputs, targets) * math.nan


def test_what_cannot_be_fitted_is_refused() -> None:
    source = torch.Generator()
    with pytest.raises(UsageError, match=r"received a function and 20 examples"):
        held_out_losses(fetch, LOSS, fetch, N, BATCH, source, holdout=Holdout())
    with pytest.raises(UsageError, match="at least two examples"):
        held_out_losses(network(), LOSS, fetch, 1, BATCH, source, holdout=Holdout())
    with pytest.raises(TrainingError, match="lower its learning rate"):
        held_out_losses(network(), broken, fetch, N, BATCH, source, holdout=Holdout())
    for parameters in ({"epochs": 0}, {"lr": 0.0}, {"lr": math.inf}):
        with pytest.raises(UsageError, match="Holdout received"):
            Holdout(**parameters)  # pyright: ignore[reportArgumentType]
    for parts in (
        {"source": "table"},
        {"score": scores.OutputGradient()},
        {"gate": TauThreshold()},
    ):
        with pytest.raises(UsageError, match="hold-out losses belong to a pool"):
            Recipe(**{"score": scores.Loss(), "holdout": Holdout(), **parts})  # pyright: ignore[reportArgumentType]


def sifted(clock: VirtualClock | None = None) -> tuple[gradsift.SiftedLoader, nn.Module, Any]:
    model = network()
    source = torch.Generator().manual_seed(1)
    loader = DataLoader(TensorDataset(*data()), BATCH, shuffle=True, generator=source)
    train = gradsift.sift(loader, model, LOSS, recipe="rho-loss", clock=clock)
    assert isinstance(train.policy, ReducedPool)
    return train, model, train.policy


def test_a_step_keeps_the_largest_reducible_losses_of_its_pool() -> None:
    train, model, policy = sifted()
    x, y = data()
    steps = iter(train)
    first = next(steps)
    assert not first.drawn
    assert "after the first step" in str(train)
    pools: list[Tensor] = []
    relate = policy.relate
    policy.relate = lambda losses, ids: pools.append(ids) or relate(losses, ids)
    batch = next(steps)
    assert len(pools[-1]) == 10 * BATCH
    with torch.no_grad():
        losses = LOSS(model(x), y).double()
    reducible = (losses - policy.irreducible)[pools[-1]]
    best = sorted(reducible.tolist(), reverse=True)[:BATCH]
    found = (losses - policy.irreducible)[batch.indices]
    assert found.tolist() == pytest.approx(best, rel=1e-6)
    assert torch.equal(batch.weights, torch.ones(BATCH))


def test_fitting_is_paid_for_once_and_saved() -> None:
    clock = VirtualClock(train=2.0, score=1.0)
    train, _, policy = sifted(clock)
    for _ in train:
        pass
    pools = (len(train) - 1) * 10 * BATCH
    assert train.examples_scored == 5 * N + pools
    assert clock.now() == 5 * N * 3.0 + pools
    assert train.seconds["scoring"] == clock.now()
    again, _, taken_up = sifted()
    again.load_state_dict(train.state_dict())
    assert torch.equal(taken_up.irreducible, policy.irreducible)
    for _ in again:
        pass
    assert torch.equal(taken_up.irreducible, policy.irreducible)


def test_a_stream_has_no_ids_to_know_examples_by() -> None:
    with pytest.raises(UsageError, match="no ids"):
        gradsift.sift([data()], network(), LOSS, recipe="rho-loss")
