"""Recipes whose rule picks ids, at work in the loop: counts, seconds, resuming, processes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from gradsift import Recipe, UsageError, recipes, rules, scores
from gradsift.clock import VirtualClock
from gradsift.sifting.picked import Picked
from gradsift.sifting.ranks import Alone
from test_resume import Run, check_every_step, own_generator

N, BATCH = 24, 4
LOSS = nn.CrossEntropyLoss(reduction="none")
BY_HISTORY = sorted(name for name in recipes if recipes[name].source == "history")


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 3
    return TensorDataset(2.0 * torch.eye(3)[y] + torch.randn(N, 3, generator=generator), y)


def loader(workers: int = 0, **options: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    options = {"shuffle": True, "num_workers": workers, **options}
    return DataLoader(data(), batch_size=BATCH, generator=generator, **options)


def model(scale: float = 1.0) -> nn.Linear:
    """Predicts most examples correctly."""
    found = nn.Linear(3, 3, bias=False)
    nn.init.eye_(found.weight)
    found.weight.data *= scale
    return found


def picked(train: gradsift.SiftedLoader) -> Picked:
    assert isinstance(train.policy, Picked)
    return train.policy


def epochs(train: gradsift.SiftedLoader, network: nn.Module, count: int) -> list[Any]:
    """Batches of a loop that trains nothing."""
    seen = []
    for _ in range(count):
        for batch in train:
            batch.loss(network(batch.inputs))
            seen.append(batch)
    return seen


@pytest.mark.parametrize("name", BY_HISTORY)
def test_an_epoch_has_as_many_steps_of_the_same_size_whatever_is_left_out(name: str) -> None:
    network = model(3.0)
    train = gradsift.sift(loader(), network, LOSS, recipe=name)
    seen: list[Any] = []
    for epoch in range(4):
        seen = epochs(train, network, 1)
        assert [len(batch) for batch in seen] == [BATCH] * len(train) == [BATCH] * (N // BATCH)
        assert all(batch.size == BATCH for batch in seen)
        assert train.steps == (epoch + 1) * len(train)
    inputs, targets = data().tensors
    assert all(torch.equal(batch.inputs, inputs[batch.indices]) for batch in seen)
    assert all(torch.equal(batch.targets, targets[batch.indices]) for batch in seen)


@pytest.mark.parametrize("name", ["schaul-proportional", "online-batch-selection", "aw-sgd"])
def test_the_first_pass_is_the_loaders_own(name: str) -> None:
    network = model()
    own = [y for _, y in loader()]
    train = gradsift.sift(loader(), network, LOSS, recipe=name)
    assert str(train) == "off: until the rule can pick, steps take your own order"
    first, second = epochs(train, network, 1), epochs(train, network, 1)
    assert all(torch.equal(batch.targets, y) for batch, y in zip(first, own, strict=True))
    assert not any(batch.drawn for batch in first)
    assert all(batch.drawn for batch in second)
    gate = train.gate
    assert gate is not None
    assert (gate["state"], gate["opened_at_step"]) == ("on", N // BATCH + 1)


def test_scores_reach_the_rule_before_the_next_pick() -> None:
    """The latest losses of all examples are those of their last visit, one by one."""
    network = model()
    train = gradsift.sift(loader(), network, LOSS, recipe="infobatch")
    latest: dict[int, float] = {}
    for _ in range(3):
        for batch in train:
            known: Any = picked(train).picker
            told = {k: v for k, v in enumerate(known.history.scores.tolist()) if v == v}
            assert told == pytest.approx(latest, rel=1e-6)
            losses = LOSS(network(batch.inputs), batch.targets)
            batch.loss(network(batch.inputs))
            latest |= dict(zip(batch.indices.tolist(), losses.tolist(), strict=True))
            with torch.no_grad():
                network.weight *= 0.9


def slow_losses(network: nn.Module) -> list[float]:
    x, y = data().tensors
    return [LOSS(network(x[k : k + 1]), y[k : k + 1]).item() for k in range(N)]


def test_all_losses_are_computed_anew_when_it_is_time() -> None:
    network = model()
    recipe = replace(recipes["online-batch-selection"], rule=rules.RankedByLoss(recompute=1.0))
    clock = VirtualClock(train=0.0, score=1.0)
    train = gradsift.sift(loader(), network, LOSS, recipe=recipe, clock=clock)
    epochs(train, network, 1)
    for batch in train:
        assert train.examples_scored == 0
        batch.loss(network(batch.inputs))
        with torch.no_grad():
            network.weight *= 0.9
    assert train.examples_scored == N
    assert train.seconds["scoring"] == N == clock.now()
    known: Any = picked(train).picker
    assert known._history.scores.tolist() == pytest.approx(slow_losses(network), rel=1e-6)


def test_hidden_examples_are_scored_and_the_step_grows() -> None:
    network = model(4.0)
    train = gradsift.sift(loader(), network, LOSS, recipe="kakurenbo")
    epochs(train, network, 1)
    assert train.lr_factor == 1.0
    assert train.examples_scored == 0
    steps: Any = iter(train)
    next(steps)
    doubts = scores.Doubt().of_outputs(LOSS, network(data().tensors[0]), data().tensors[1])
    lowest = doubts.argsort()[: int(0.3 * N)]
    count = int((doubts[lowest] <= 0.3).sum())
    assert count > 0
    assert train.lr_factor == pytest.approx(N / (N - count))
    steps.close()
    epochs(train, network, 1)
    assert train.examples_scored == count


def test_the_reason_says_how_large_steps_were() -> None:
    network = model()
    train = gradsift.sift(loader(), network, LOSS, recipe="infobatch")
    seen = epochs(train, network, 5)
    mean = float(torch.cat([batch.weights for batch in seen]).mean())
    assert mean > 1.1
    assert str(train) == (
        f"on: picks by its rule, with steps of {mean:.2f} times the loader's own in the mean"
    )


@pytest.mark.parametrize(("name", "said"), [("infobatch", True), ("rs2", False), ("p-sgd", False)])
@pytest.mark.parametrize("told", [True, False])
def test_a_rule_that_anneals_asks_where_the_run_is(name: str, said: bool, told: bool) -> None:
    network = model()
    train = gradsift.sift(loader(), network, LOSS, recipe=name)
    if told:
        train.policy.progress = 0.0
    epochs(train, network, 2)
    asked = [notice for notice in train.notices if "train.policy.progress" in notice]
    assert len(asked) == int(said and not told)


def test_the_share_of_the_run_reaches_the_rule() -> None:
    network = model()
    train = gradsift.sift(loader(), network, LOSS, recipe="infobatch")
    epochs(train, network, 2)
    train.policy.progress = 0.9
    epochs(train, network, 1)
    last = epochs(train, network, 2)
    assert all(torch.equal(batch.weights, torch.ones(BATCH)) for batch in last)
    again = gradsift.sift(loader(), network, LOSS, recipe="infobatch")
    again.load_state_dict(train.state_dict())
    assert again.policy.progress == 0.9


@pytest.mark.parametrize(
    "name",
    ["infobatch", "kakurenbo"],
)
def test_every_later_step_is_the_same_from_every_step(name: str) -> None:
    check_every_step(lambda: Run(own_generator, name, workers=0), 12, stride=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "workers"),
    [
        *((name, 0) for name in (*BY_HISTORY, "selective-backprop", "rho-loss")),
        ("infobatch", 2),
    ],
)
def test_every_rival_goes_on_from_every_step(name: str, workers: int) -> None:
    check_every_step(lambda: Run(own_generator, name, workers), 6 if workers else 15, stride=3)


class Pair(Alone):
    """One of two processes, as far as picks go."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.size = 2

    def gather_scores(self, scores: Tensor) -> Tensor:
        raise AssertionError("nothing was wanted")


@pytest.mark.parametrize("name", ["rs2", "infobatch", "c-sgd"])
def test_processes_share_the_picks_of_one(name: str) -> None:
    """Together they take what one process with twice the batch would, with the same weights."""
    network = model()

    def policy(rank: int | None) -> Picked:
        found = picked(gradsift.sift(loader(), network, LOSS, recipe=name, seed=5))
        if rank is not None:
            found.join(Pair(rank))
        return found

    first, second, alone = policy(0), policy(1), policy(None)
    alone._chooser.generator.manual_seed(5)
    for _ in range(9):
        draws = [found.plan(BATCH).draw for found in (first, second)]
        whole = alone.plan(2 * BATCH).draw
        assert whole is not None
        for rank, draw in enumerate(draws):
            assert draw is not None
            assert draw.size == BATCH
            assert torch.equal(draw.positions, whole.positions[rank::2])
            assert torch.equal(draw.weights, whole.weights[rank::2])


def test_a_rule_needs_ids_and_scores_that_steps_give_away() -> None:
    batches = [(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(UsageError, match="no ids"):
        gradsift.sift(batches, model(), LOSS, recipe="rs2")
    ordered = loader(shuffle=False)
    with pytest.raises(UsageError, match="an order of its own"):
        gradsift.sift(ordered, model(), LOSS, recipe="rs2")
    with pytest.raises(UsageError, match="a rule belongs to the source 'history'"):
        Recipe(source="history")
    with pytest.raises(UsageError, match="a rule belongs to the source 'history'"):
        Recipe(source="pool", rule=rules.InfoBatch())
    with pytest.raises(UsageError, match="expected one that the outputs of a training step"):
        Recipe(source="history", score=scores.InputNorm(), rule=rules.InfoBatch())


@pytest.mark.parametrize("name", ["kakurenbo", "p-sgd", "c-sgd"])
def test_rules_that_need_classes_say_so_at_the_first_batch(name: str) -> None:
    numbers = TensorDataset(torch.randn(8, 3), torch.randn(8, 1))
    train = gradsift.sift(
        DataLoader(numbers, 4, shuffle=True),
        nn.Linear(3, 1),
        lambda outputs, targets: (outputs - targets).square().mean(1),
        recipe=name,
    )
    with pytest.raises(UsageError, match="one class per example"):
        next(iter(train))
