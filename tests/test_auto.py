"""The recipe to leave on: opens where a planted gain exists, stays off where none does."""

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from gradsift import Recipe, UsageError, recipes
from gradsift.clock import VirtualClock
from gradsift.gate import Decision, MeasuredGate, Offer
from gradsift.records import Plan
from gradsift.sampling.distributions import Mixed, Proportional
from gradsift.scores import Loss
from gradsift.sifting import probes
from gradsift.sifting.auto import LOOKING, Auto
from gradsift.sifting.deciding import DWELL, EVERY, Deciding, Moment
from gradsift.sifting.evidence import PAIRS

LOSS = nn.CrossEntropyLoss(reduction="none")
N, BATCH = 512, 16


def uneven(seed: int = 0) -> TensorDataset:
    """Most examples are easy for ever, a tenth has random labels: scores that persist."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(N) % 2
    x = torch.randn(N, 8, generator=generator)
    x[:, 0] = (2 * y - 1) * 6.0
    hard = torch.arange(N) < N // 10
    x[hard, 0] = 0.0
    return TensorDataset(x, y)


def pure_noise() -> TensorDataset:
    """Regression on noise that is equally large everywhere: no score can help."""
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.ones(N, 1), torch.randint(2, (N,), generator=generator).float() * 2 - 1
    )


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    """The derivative of every example has length one."""
    return (outputs[:, 0] - targets).abs()


def fit(
    data: TensorDataset,
    model: nn.Module,
    loss_fn: Any = LOSS,
    recipe: str | Recipe = "auto",
    epochs: int = 10,
    lr: float = 0.05,
    **options: Any,
) -> gradsift.SiftedLoader:
    generator = torch.Generator().manual_seed(2)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, generator=generator)
    clock = VirtualClock()
    train = gradsift.sift(loader, model, loss_fn, recipe=recipe, clock=clock, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(epochs):
        for batch in train:
            optimizer.zero_grad()
            batch.loss(model(batch.inputs)).backward()
            optimizer.step()
            clock.charge(trained=len(batch))
    return train


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[gradsift.SiftedLoader, list[Any]]:
    """A run that opened, and the lines that it wrote down about its decisions."""
    folder = tmp_path_factory.mktemp("opened")
    with torch.random.fork_rng():
        train = fit(uneven(), network(), epochs=20, log=folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return train, [line for line in lines if line["kind"] == "gate"]


def network(inputs: int = 8, outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


def test_it_opens_where_scores_persist(opened: tuple[gradsift.SiftedLoader, list[Any]]) -> None:
    train, decisions = opened
    assert train.gate is not None
    assert train.gate["state"] == "on"
    assert train.gate["opened_at_step"] >= N // BATCH
    assert str(train).startswith("on: table: a variance ratio of ")
    assert decisions[-1]["gain"] > 1
    assert {offer["source"] for offer in decisions[-1]["offers"]} >= {"off", "table"}
    assert decisions[-1]["noise_scale"] > 0


def test_a_source_stays_in_use_for_a_while(opened: tuple[gradsift.SiftedLoader, list[Any]]) -> None:
    lines = opened[1]
    states = ["off", *(line["state"] for line in lines)]
    changes = [
        line["step"]
        for line, (before, now) in zip(lines, pairwise(states), strict=True)
        if before != now
    ]
    steps = [line["step"] for line in lines]
    assert changes
    assert all(b - a >= DWELL for a, b in pairwise(changes))
    assert len(lines) > len(changes) + 2
    assert all(step % EVERY == 0 for step in steps)


def test_the_first_pass_is_in_the_users_own_order() -> None:
    with torch.random.fork_rng():
        plain = fit(uneven(), network(), recipe="uniform", epochs=1)
        train = fit(uneven(), network(), epochs=1)
    assert plain.examples_trained == train.examples_trained == N
    assert train.gate is not None
    assert train.gate["state"] == "off"


def test_it_stays_off_where_every_gradient_is_as_long() -> None:
    with torch.random.fork_rng():
        train = fit(pure_noise(), network(1, 1), absolute)
    assert train.gate is not None
    assert (train.gate["state"], train.gate["opened_at_step"]) == ("off", None)
    assert "variance ratio of 1.00" in train.gate["reason"]


@pytest.mark.slow
def test_noise_and_norms_stay_known_while_the_table_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Now and then a step is one of the loader's own, and looked at."""
    made: list[tuple[str, str, int, int]] = []
    plan = Auto.plan

    def noted(self: Auto, batch_size: int) -> Plan:
        planned, evidence = plan(self, batch_size), self.evidence
        known = evidence.noise.pairs, evidence.calibration.probes
        made.append((self.deciding.in_use, planned.source, *known))
        return planned

    monkeypatch.setattr(Auto, "plan", noted)
    with torch.random.fork_rng():
        fit(uneven(), network(), epochs=100)
    opened = next(at for at, step in enumerate(made) if step[0] == "table")
    plain = [at for at, (used, taken, *_) in enumerate(made) if (used, taken) == ("table", "off")]
    assert len(plain) > 2
    assert all(after - before >= LOOKING for before, after in pairwise(plain))
    assert made[-1][2] > made[opened][2]
    assert made[-1][3] > made[opened][3]


@pytest.mark.slow
def test_decisions_leave_probes_their_time_and_survive_a_hiccup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Costs of three examples for a decision, once of thousands, and of two halves for a probe."""
    steps: list[int] = []
    compare, halves = Deciding._compare, probes.half_gradients

    def costly(self: Deciding, offers: Any, at: Moment, ranks: Any) -> Decision:
        self._clock.charge(trained=5_000 if len(steps) == 2 else 3)
        steps.append(at.steps)
        return compare(self, offers, at, ranks)

    def paid(setup: Any, batch: Any) -> Any:
        setup.clock.charge(trained=BATCH)
        return halves(setup, batch)

    monkeypatch.setattr(Deciding, "_compare", costly)
    monkeypatch.setattr(probes, "half_gradients", paid)
    with torch.random.fork_rng():
        train = fit(pure_noise(), network(1, 1), absolute, epochs=60)
    assert isinstance(train.policy, Auto)
    assert train.policy.evidence.noise.pairs >= PAIRS
    assert len(steps) > 12
    assert max(after - before for before, after in pairwise(steps)) < 10 * EVERY


def test_off_is_bit_identical_to_the_plain_loop_while_it_measures() -> None:
    results = []
    for recipe in ("uniform", "auto"):
        with torch.random.fork_rng():
            model = nn.Sequential(network(1, 4), nn.Dropout(0.3), network(4, 1))
            fit(pure_noise(), model, absolute, recipe=recipe, epochs=5)
            results.append([value.clone() for value in model.state_dict().values()])
            results[-1].append(torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_table_draws_with_bounded_unbiased_weights() -> None:
    recipe = Recipe(
        source="table",
        distribution=Mixed(Proportional(), uniform=0.25),
        name="quarter",
        draw=gradsift.draws.Stratified(),
    )
    data, model = uneven(), network()
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    with torch.random.fork_rng():
        train = gradsift.sift(loader, model, LOSS, recipe=recipe)
        drawn = []
        for _ in range(4):
            for batch in train:
                batch.loss(model(batch.inputs))
                if batch.drawn:
                    drawn.append(batch)
    weights = torch.cat([batch.weights for batch in drawn])
    assert len(drawn) == 3 * N // BATCH
    assert float(weights.max()) <= 4 * (1 + 1e-6)
    assert float(weights.min()) < 0.9
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.1)
    x, y = data.tensors
    assert all(torch.equal(batch.inputs, x[batch.indices]) for batch in drawn)
    assert all(torch.equal(batch.targets, y[batch.indices]) for batch in drawn)


@pytest.mark.parametrize("source", ["pool", "two-stage"])
def test_sources_that_score_candidates_of_their_own(source: Any) -> None:
    """As if the gate had decided so: ids, data and weights stay together through both draws."""
    data, model = uneven(), network()
    x, y = data.tensors
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    clock = VirtualClock()
    train = gradsift.sift(loader, model, LOSS, recipe="auto", clock=clock)
    forced = Decision(Offer(source, 1.0, 2.0, 2.0, candidates=3.0), 1.5, "forced", 64.0)
    drawn = []
    for _ in range(3):
        for batch in train:
            batch.loss(model(batch.inputs))
            clock.charge(trained=len(batch))
            if batch.drawn:
                drawn.append(batch)
        policy: Any = train.policy
        policy.deciding.decision = forced
    scored = train.examples_scored
    assert len(drawn) >= N // BATCH
    assert scored >= 3 * BATCH * len(drawn)
    for batch in drawn:
        assert len(batch) == batch.size == BATCH
        assert torch.equal(batch.inputs, x[batch.indices])
        assert torch.equal(batch.targets, y[batch.indices])
    weights = torch.cat([batch.weights for batch in drawn])
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.1)
    assert float(weights.max()) < 1 / 0.1 / 0.2


def test_scores_must_be_given_away_by_the_step() -> None:
    def slow(model: Any, loss_fn: Any, inputs: Any, targets: Any) -> Tensor:
        return torch.ones(len(targets))

    with pytest.raises(UsageError, match="outputs of a training step"):
        Recipe(source="table", score=slow)
    assert Recipe(source="table", score=Loss()).scored


def test_the_measured_gate_belongs_to_auto() -> None:
    for source, gate in (("auto", None), ("pool", MeasuredGate())):
        with pytest.raises(UsageError, match="MeasuredGate"):
            Recipe(source=source, gate=gate)  # pyright: ignore[reportArgumentType]


def test_a_stream_has_no_table_and_says_so() -> None:
    x, y = uneven().tensors
    batches = [(x[k : k + BATCH], y[k : k + BATCH]) for k in range(0, N, BATCH)]
    model = network()
    train = gradsift.sift(batches, model, LOSS, recipe="auto", clock=VirtualClock())
    for batch in train:
        batch.loss(model(batch.inputs))
    assert any("only pools are considered" in notice for notice in train.notices)
    with pytest.raises(UsageError, match="no ids"):
        gradsift.sift([(x, y)], model, LOSS, recipe="table")


def test_auto_is_what_people_get_by_default() -> None:
    loader = DataLoader(uneven(), batch_size=BATCH, shuffle=True)
    assert gradsift.sift(loader, network(), LOSS).recipe == recipes["auto"]
