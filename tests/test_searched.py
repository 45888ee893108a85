"""Drawing by the scores of an engine: exact against a plain twin, stale, and when engines fail."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gradsift
from engines import BLOCK, CROSS_ENTROPY, N, examples, model
from gradsift import UsageError, engines, recipes
from gradsift.clock import VirtualClock
from gradsift.engine.inline import InlineEngine
from gradsift.engine.interface import AbstractEngine, Block, EngineState, Options, Scored
from gradsift.engine.task import Task
from gradsift.loader import _check_engine
from gradsift.recipes import Search
from gradsift.scores.gradient_loop import gradient_norms
from gradsift.sifting.proposals import NeutralProposal
from gradsift.sifting.searched import Searched

BATCH = 8
STEPS = N // BATCH
INPUTS, TARGETS = examples().tensors


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(examples(), batch_size=BATCH, shuffle=True, generator=generator)


def recipe(name: str = "issgd", **search: Any) -> gradsift.Recipe:
    found = recipes[name]
    assert found.search is not None
    return replace(found, search=replace(found.search, **search))


def train(engine: AbstractEngine | None, epochs: int = 4, **options: Any) -> tuple[Any, Any, list]:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    clock = VirtualClock(train=1.0, score=0.25)
    given = {"recipe": "issgd", "clock": clock, **options}
    sifted = gradsift.sift(loader(), network, CROSS_ENTROPY, engine=engine, **given)
    batches = []
    for _ in range(epochs):
        for batch in sifted:
            optimizer.zero_grad()
            batch.loss(network(batch.inputs)).backward()
            optimizer.step()
            clock.charge(trained=len(batch))
            batches.append(batch)
    sifted.close()
    return sifted, network, batches


def policy(sifted: gradsift.SiftedLoader) -> Searched:
    assert isinstance(sifted.policy, Searched)
    return sifted.policy


@pytest.mark.parametrize(("exact", "kept"), [(False, 0.5), (True, 0.0)])
def test_half_of_the_old_score_is_kept_unless_the_engine_is_exact(exact: bool, kept: float) -> None:
    """The same scores in another order: their level stays, and relative scores are a mean."""
    proposal = NeutralProposal(recipes["issgd"], N, blocks=1, seed=0, exact=exact)
    table, everyone = proposal.memory.table, torch.arange(N)
    first = torch.linspace(1.0, 2.0, N, dtype=torch.float64)
    table.update(everyone, first, version=0)
    before = table.relative(everyone)
    table.update(everyone, first.flip(0), version=1)
    expected = kept * before + (1 - kept) * before.flip(0)
    torch.testing.assert_close(table.relative(everyone), expected, rtol=1e-5, atol=1e-6)


def test_exact_probabilities_are_those_of_the_norms_at_this_very_step() -> None:
    """Twin: a loop over examples at every step, and the mixture by hand."""
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    engine = engines.inline(block=BLOCK, every=1, mode="exact")
    sifted = gradsift.sift(loader(), network, CROSS_ENTROPY, engine=engine)
    for _ in range(2):
        for batch in sifted:
            assert batch.drawn
            norms = gradient_norms(network, CROSS_ENTROPY, INPUTS, TARGETS).double()
            assert sifted.table is not None
            law = sifted.table.distribution
            share = law.uniform
            power = getattr(law.inner, "exponent", 1.0)
            raised = norms**power
            p = (1 - share) * raised / raised.sum() + share / N
            torch.testing.assert_close(
                sifted.table.probabilities(torch.arange(N)), p, rtol=1e-4, atol=1e-9
            )
            expected = 1 / (N * p[batch.indices])
            torch.testing.assert_close(batch.weights.double(), expected, rtol=1e-4, atol=1e-6)
            optimizer.zero_grad()
            batch.loss(network(batch.inputs)).backward()
            optimizer.step()


def test_an_engine_makes_issgd_the_default_and_the_log_says_how_it_goes(tmp_path: Path) -> None:
    sifted, _, batches = train(engines.inline(block=BLOCK), recipe="auto", log=tmp_path)
    assert sifted.recipe.name == "issgd"
    assert not batches[0].drawn
    assert batches[-1].drawn
    assert all(bool((batch.weights <= 5.0001).all()) for batch in batches)
    assert sifted.engine == {"kind": "inline", "workers_lost": 0, "restarts": 0}
    status = sifted.engine_status
    assert status["usable"] == 1
    assert status["delivered"] == sifted.examples_scored == 4 * STEPS * BLOCK
    assert 0 <= status["behind"] <= status["age"] <= status["oldest"] <= 32
    assert sifted.gate["opened_at_step"] == 4  # three blocks of five are more than half
    assert str(sifted).startswith("on: draws by the scores of the inline engine, all of them seen")
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert {line["kind"] for line in lines} >= {"train"}


def test_the_trainer_pays_for_the_inline_engine() -> None:
    sifted, _, _ = train(engines.inline(block=BLOCK, rate=2), epochs=2)
    assert sifted.examples_scored == 2 * STEPS * 2 * BLOCK
    assert sifted.seconds["scoring"] == pytest.approx(0.25 * sifted.examples_scored)


@pytest.mark.parametrize("rate", [1, 3])
@pytest.mark.parametrize("delay", [0, 4])
def test_the_age_of_scores_is_set_exactly(rate: int, delay: int) -> None:
    """The hook for staleness studies: versions are those of the parameters that were in force."""
    sifted, _, _ = train(engines.inline(block=BLOCK, rate=rate, delay=delay, every=1), epochs=6)
    versions = policy(sifted).sweep.versions
    last = sifted.steps
    since_asked = [place // rate for place in range(N // BLOCK)]
    assert sorted(versions, reverse=True) == [last - delay - calls for calls in since_asked]


def test_the_simulated_age_repeats_to_the_bit() -> None:
    runs = [train(engines.inline(block=BLOCK, rate=2, delay=3), epochs=3)[1] for _ in range(2)]
    first, second = (run.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_neither_random_state_nor_the_model_notice() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    network = model()
    torch.set_rng_state(before)
    sifted = gradsift.sift(
        loader(), network, CROSS_ENTROPY, engine=engines.inline(block=BLOCK, rate=5)
    )
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(2):
        for batch in sifted:
            batch.loss(network(batch.inputs))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(kept[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training


class Scripted(AbstractEngine):
    """Says what a test wants: faults as values."""

    kind = "local"

    def __init__(self, per_call: int = 5, until: int = 10**9, value: float = 1.0) -> None:
        self.options = Options(block=BLOCK, every=1)
        self.waiting: list[Block] = []
        self.version = -1
        self.calls = 0
        self.closed = 0
        self._per_call = per_call
        self._until = until
        self._value = value
        self.told = ["worker 0 ended (exit code -9): started again now"]

    def start(self, task: Task) -> None:
        assert task.expected.length == N

    def publish(self, parameters: Any, version: int) -> None:
        assert version >= self.version
        self.version = version

    def request(self, blocks: Sequence[Block]) -> None:
        self.waiting += blocks

    def collect(self, wait: float = 0.0) -> list[Scored]:
        self.calls += 1
        if self.calls > self._until:
            return []
        found, self.waiting = self.waiting[: self._per_call], self.waiting[self._per_call :]
        return [
            Scored(block, self._value * torch.ones(len(block)), self.version, 0.1)
            for block in found
        ]

    def close(self) -> None:
        self.closed += 1

    @property
    def room(self) -> int:
        return 5 - len(self.waiting)

    @property
    def state(self) -> EngineState:
        alive = int(self.calls <= self._until)
        return EngineState("local", alive, 1 - alive, 2, self.calls, ())

    def news(self) -> list[str]:
        told, self.told = self.told, []
        return told


def test_what_goes_wrong_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="gradsift"):
        sifted, _, _ = train(Scripted())
    assert sifted.notices == ("worker 0 ended (exit code -9): started again now",)
    assert [record.getMessage() for record in caplog.records] == list(sifted.notices)


def test_with_all_workers_dead_training_goes_on_and_ends_uniform() -> None:
    engine = Scripted(until=8)
    sifted, _, batches = train(engine, epochs=8, recipe=recipe(epochs=2.0))
    assert len(batches) == 8 * STEPS
    drawn = [batch.drawn for batch in batches]
    assert any(drawn)
    assert not any(drawn[8 + 2 * STEPS + 2 :])
    assert sifted.engine == {"kind": "local", "workers_lost": 1, "restarts": 2}
    assert str(sifted).startswith("off: the local engine has usable scores of 0 % of the examples")
    assert engine.closed == 1


def test_no_score_ever_means_the_users_own_order() -> None:
    sifted, network, batches = train(Scripted(until=0))
    _, plain, own = train(None, recipe="uniform")
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(batches, own, strict=True))
    assert all(
        torch.equal(value, plain.state_dict()[name]) for name, value in network.state_dict().items()
    )
    assert sifted.gate["opened_at_step"] is None


def test_scores_that_are_not_finite_are_counted_and_left_out() -> None:
    sifted, _, batches = train(Scripted(value=float("nan")), epochs=2)
    assert sifted.quarantined == sifted.examples_scored > 0
    assert not any(batch.drawn for batch in batches)
    assert any("are not finite: they are left out" in text for text in sifted.notices)


def test_a_constant_in_the_unit_of_the_scores_is_a_share_of_uniform_draws() -> None:
    """``w = s + c`` by hand, against the table's mixture."""
    engine = engines.inline(block=BLOCK, every=1, mode="exact")
    network = model()
    sifted = gradsift.sift(
        loader(), network, CROSS_ENTROPY, recipe=recipe(constant=0.7), engine=engine
    )
    batch = next(iter(sifted))
    norms = gradient_norms(network, CROSS_ENTROPY, INPUTS, TARGETS).double()
    p = (norms + 0.7) / (norms + 0.7).sum()
    assert sifted.table is not None
    found = sifted.table.probabilities(torch.arange(N))
    torch.testing.assert_close(found, p, rtol=1e-4, atol=1e-9)
    assert batch.drawn


def test_the_share_follows_the_measured_second_moment() -> None:
    """Scores that never change and differ widely ask for few uniform draws; noise for many."""

    class Planted(Scripted):
        def collect(self, wait: float = 0.0) -> list[Scored]:
            return [replace(one, scores=self.of(one)) for one in super().collect(wait)]

        def of(self, one: Scored) -> Tensor:
            return torch.where(one.block.ids % 8 == 0, 50.0, 1.0)

    class Noise(Planted):
        def of(self, one: Scored) -> Tensor:
            generator = torch.Generator().manual_seed(self.calls * 100 + one.block.number)
            kind = torch.rand(len(one.block), generator=generator)
            return torch.where(kind < 0.1, 50.0, 1.0)

    shares = []
    for engine in (Planted(), Noise()):
        sifted, _, _ = train(engine, epochs=14)
        assert sifted.table is not None
        shares.append(sifted.table.distribution.uniform)
    assert shares[0] == 0.2
    assert shares[1] >= 0.5


def test_the_published_recipe_draws_from_fresh_scores_alone() -> None:
    """20 seconds of a virtual clock are 2.5 steps: older blocks are never drawn."""
    engine = InlineEngine(Options(block=BLOCK, every=1))
    sifted, _, batches = train(engine, epochs=6, recipe=recipe("issgd2015", seconds=20.0))
    drawn = [batch for batch in batches if batch.drawn]
    assert len(drawn) > 10
    last = {int(i) // BLOCK for i in drawn[-1].indices}
    assert len(last) <= 2
    assert sifted.table is None
    assert 0 < policy(sifted).proposal.usable <= 0.4
    assert any("is biased on purpose" in text for text in sifted.notices)


def test_the_published_constants() -> None:
    search = recipes["issgd2015"].search
    assert search == Search(
        every=32, stale="filter", epochs=None, seconds=20.0, opens=0.1, constant=10.0
    )
    assert recipes["issgd"].search == Search()


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="takes no scores from an engine: use recipe='issgd'"):
        gradsift.sift(loader(), model(), CROSS_ENTROPY, recipe="pool", engine=engines.inline())
    with pytest.raises(UsageError, match=r"expected one of gradsift\.engines"):
        _check_engine("local", recipes["issgd"])


def test_a_search_is_checked() -> None:
    wrong: dict[str, Any]
    for wrong in ({"every": 0}, {"least": 0.6}, {"opens": 2.0}, {"epochs": 0.0}, {"seconds": -1.0}):
        with pytest.raises(UsageError, match="a search received"):
            Search(**wrong)
    with pytest.raises(UsageError, match="stale='old' received"):
        recipe(stale="old")
    with pytest.raises(UsageError, match="the constant -1"):
        Search(constant=-1.0)
    with pytest.raises(UsageError, match="a Search belongs to the source 'engine'"):
        replace(recipes["pool"], search=Search())
    with pytest.raises(UsageError, match="a Search belongs to the source 'engine'"):
        replace(recipes["issgd"], search=None)


def test_a_preconditioned_norm_is_refused() -> None:
    network = model()
    optimizer = torch.optim.Adam(network.parameters())
    score = gradsift.scores.GradientNorm(precondition=optimizer)
    network(INPUTS[:2]).sum().backward()
    optimizer.step()
    asked = replace(recipes["issgd"], score=score)
    sifted = gradsift.sift(loader(), network, CROSS_ENTROPY, recipe=asked)
    with pytest.raises(UsageError, match="needs the optimiser's state"):
        next(iter(sifted))


def test_any_score_can_be_searched_for() -> None:
    def first_feature(network: nn.Module, loss_fn: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        return inputs[:, 0].abs() + 0.5

    for score in (gradsift.scores.Loss(), gradsift.scores.OutputGradient(), first_feature):
        asked = replace(recipes["issgd"], score=score)
        sifted, _, batches = train(engines.inline(block=BLOCK), epochs=2, recipe=asked)
        assert batches[-1].drawn
        assert sifted.table.seen == N
