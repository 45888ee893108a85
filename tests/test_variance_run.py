"""Variances along a run: the gradients, the draws beside their formulas, seconds, and the pages."""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

import blobs
from gradsift.clock import VirtualClock
from gradsift.comparison.costs import EXACT, SCORES, TRAINING, seconds_per_example
from gradsift.comparison.noises import DRAWS, AbstractWay, FromAll, FromPool, measure, pools
from gradsift.comparison.population import Population, coordinates, population
from gradsift.comparison.variance import measure_variance, recovered
from gradsift.comparison.watched import AbstractSpectator, Asked
from gradsift.errors import TrainingError, UsageError
from gradsift.models import build_model
from gradsift.report.summary import plain_json
from gradsift.report.variance import Checkpoint, Noise, Recovered, VarianceFound
from gradsift.report.variance_page import in_words, variance_page, verdict
from gradsift.sampling.draws import Multinomial, Stratified, Systematic
from gradsift.sampling.table import FLOORED
from gradsift.scores.gradient_loop import gradient_norms
from gradsift.scores.output_gradient import OutputGradient
from test_report import Elements
from test_traces import cloud

SIZE = 8


class Silent(AbstractSpectator):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.seen: list[int] = []

    def moved(self, share: float, text: str) -> None:
        self.shares.append(share)

    def measured(self, checkpoint: Checkpoint, found: VarianceFound) -> None:
        assert found.checkpoints[-1] is checkpoint
        self.seen.append(checkpoint.step)


def people(count: int = 30) -> tuple[Population, nn.Module]:
    problem = blobs.toy()
    model = build_model("mlp", (4,), 3, generator=torch.Generator().manual_seed(0))
    found = population(problem, model, 4, torch.device("cpu"), seed=0)
    inputs, targets = found.inputs[:count], found.targets[:count]
    return Population(inputs, targets, count, problem.loss_fn), model


def test_gradients_are_those_of_each_example_alone() -> None:
    some, model = people(6)
    before = copy.deepcopy(model.state_dict())
    found = some.gradients(model)
    for place in range(6):
        model.zero_grad()
        some.loss_fn(
            model(some.inputs[place : place + 1]), some.targets[place : place + 1]
        ).backward()
        expected = torch.cat([value.grad.flatten() for value in model.parameters()])  # pyright: ignore[reportOptionalMemberAccess]
        torch.testing.assert_close(found[place], expected, rtol=1e-5, atol=1e-7)
    norms = gradient_norms(model, some.loss_fn, some.inputs, some.targets)
    torch.testing.assert_close(found.norm(dim=1), norms, rtol=1e-5, atol=1e-7)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


@pytest.mark.parametrize("shape", [(5, 3), (4, 9), (1, 2)])
def test_coordinates_keep_every_inner_product(shape: tuple[int, int]) -> None:
    gradients = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = coordinates(gradients)
    expected = gradients.double() @ gradients.double().T
    torch.testing.assert_close(found @ found.T, expected, rtol=1e-10, atol=1e-10)
    weights = torch.rand(shape[0], dtype=torch.float64)
    length = float((weights @ gradients.double()).square().sum())
    assert float((weights @ found).square().sum()) == pytest.approx(length, rel=1e-9)


def test_a_population_is_bounded_by_the_data_and_by_memory(monkeypatch) -> None:
    problem = blobs.toy()
    model = build_model("linear", (4,), 3, generator=torch.Generator().manual_seed(0))
    assert population(problem, model, 4, torch.device("cpu"), seed=0).count == 100
    monkeypatch.setattr("gradsift.comparison.population.NUMBERS", 15 * 20)
    assert population(problem, model, 4, torch.device("cpu"), seed=0).count == 20
    with pytest.raises(UsageError, match=r"15 parameters and batches of 16 received"):
        population(problem, model, 16, torch.device("cpu"), seed=0)


def ways() -> list[AbstractWay]:
    gradients = cloud()
    scores = gradients.norm(dim=1).sqrt()
    even = torch.ones_like(scores)
    return [
        FromAll("uniform", "none", even, Multinomial(), 1.0),
        FromAll("fresh", "loss", scores, Multinomial(), None),
        FromAll("table", "output gradient", scores, Multinomial(), 1.0, 7, FLOORED),
        FromAll("table", "output gradient", scores, Stratified(), 1.0, 1, FLOORED),
        FromPool("pool", "loss", scores, Multinomial(), 2.0, ratio=3.0),
        FromPool("pool", "loss", scores, Systematic(), 2.0, ratio=3.0),
    ]


@pytest.mark.parametrize("way", ways(), ids=lambda way: way.name)
def test_measured_variances_are_those_of_the_formulas(way: AbstractWay, monkeypatch) -> None:
    monkeypatch.setattr("gradsift.comparison.noises.DRAWS", 40)
    found = measure(way, cloud(), SIZE, 8, torch.Generator().manual_seed(2))
    assert found.low < found.measured < found.high
    allowed = 0.05 * found.formula if isinstance(way.draw, Systematic) else 0.0
    assert abs(found.measured - found.formula) < 1.6 * found.half_width + allowed
    assert (found.source, found.seconds) == (way.source, way.seconds)


def test_names_say_what_differs() -> None:
    assert [way.name for way in ways()] == [
        *("uniform", "loss, all fresh", "output gradient, 7 steps old"),
        *("output gradient, 1 step old, stratified", "loss, pool of 3, with replacement"),
        "loss, pool of 3",
    ]


def test_the_error_of_a_batch_agrees_with_a_loop(monkeypatch) -> None:
    monkeypatch.setattr("gradsift.comparison.noises.DRAWS", 3)
    gradients, way = cloud(), ways()[4]
    found = measure(way, gradients, SIZE, 2, torch.Generator().manual_seed(4))
    generator, errors = torch.Generator().manual_seed(4), []
    for _ in range(6):
        ids, drawn = way.take(SIZE, generator)
        estimate = torch.zeros(gradients.shape[1], dtype=torch.float64)
        for place, weight in zip(ids.tolist(), drawn.weights.tolist(), strict=True):
            estimate += weight * gradients[place] / SIZE
        errors.append(float((estimate - gradients.mean(0)).square().sum()))
    assert found.measured == pytest.approx(math.fsum(errors) / 6, rel=1e-10)


def test_a_pool_is_paid_with_all_that_it_scores() -> None:
    scores = torch.ones(5, dtype=torch.float64)
    found = pools([("loss", scores, 0.5), ("exact norm", scores, 2.0)], train=1.0, ratio=3.0)
    assert [(way.score, way.seconds) for way in found] == [
        *(("loss", 2.5), ("loss", 2.5), ("exact norm", 7.0), ("exact norm", 7.0)),
    ]


def test_seconds_per_example_are_those_of_the_clock_and_nothing_changes() -> None:
    some, model = people()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    found = seconds_per_example(some, model, optimizer, 8, VirtualClock(train=3.0, score=0.5))
    assert found == {
        **dict.fromkeys(SCORES, pytest.approx(0.5)),
        TRAINING: pytest.approx(3.0),
        EXACT: pytest.approx(3.0),
    }
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def found_of(steps: int = 24, checkpoints: int = 3, spectator: AbstractSpectator | None = None):
    return measure_variance(
        blobs.toy(),
        blobs.settings(steps, batch_size=8),
        Asked(checkpoints, 2),
        spectator=spectator or Silent(),
        clock=VirtualClock(),
        flags="--model linear",
    )


@pytest.fixture(scope="module")
def found() -> Iterator[VarianceFound]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradsift.comparison.noises.DRAWS", 5)
        patch.setattr("gradsift.comparison.noises.POOLS", 2)
        patch.setattr("gradsift.comparison.costs.TRIALS", 3)
        yield found_of()


@pytest.fixture(scope="module")
def small(found: VarianceFound) -> VarianceFound:
    """Little to draw: one checkpoint, and few arms."""
    last = found.checkpoints[-1]
    few = tuple(noise for noise in last.arms if noise.score in ("none", "loss"))
    return replace(found, checkpoints=(replace(last, arms=few),))


def test_checkpoints_lie_at_even_distances_and_ages_are_real(found: VarianceFound) -> None:
    assert [checkpoint.step for checkpoint in found.checkpoints] == [8, 16, 24]
    assert (found.steps, found.steps_per_epoch, found.examples) == (24, 12, 100)
    ages = [
        sorted({noise.age for noise in checkpoint.arms if noise.age is not None})
        for checkpoint in found.checkpoints
    ]
    assert ages == [[1], [1, 12], [1, 12]]
    assert len(found.checkpoints[-1].arms) == 1 + 6 + 4 + 3
    assert [against.name for against in found.checkpoints[0].against] == [
        *("output gradient, 1 step old", "loss, all fresh", "output gradient, all fresh"),
    ]
    assert found.recovered[0].checkpoints <= 3


def test_nothing_is_below_the_ideal_trace_which_the_exact_norm_has(found: VarianceFound) -> None:
    for checkpoint in found.checkpoints:
        traces = {noise.name: noise.trace for noise in checkpoint.arms if noise.trace is not None}
        assert all(trace >= checkpoint.ideal * (1 - 1e-9) for trace in traces.values())
        assert traces["exact norm, all fresh"] == pytest.approx(checkpoint.ideal, rel=1e-4)
        assert traces["uniform"] == pytest.approx(checkpoint.uniform, rel=1e-9)


def test_seconds_and_ratios_are_counted_as_said(found: VarianceFound) -> None:
    arms = {noise.name: noise for noise in found.checkpoints[-1].arms}
    last, pool = found.checkpoints[-1], arms["loss, pool of 3"]
    assert pool.seconds == pytest.approx(3e-4 + 3 * 1e-4)
    paid, even = last.at_equal_seconds(pool, 8), last.relative(pool, 8)
    assert even == pytest.approx(pool.measured * 8 / last.uniform)
    assert paid == pytest.approx(2 * even)
    assert last.at_equal_seconds(arms["loss, all fresh"], 8) is None


def test_it_repeats_and_looking_changes_nothing_of_the_run(found: VarianceFound) -> None:
    before, watched = torch.get_rng_state(), Silent()
    again = found_of(spectator=watched)
    assert plain_json(again.listed()) == plain_json(found.listed())
    assert torch.equal(torch.get_rng_state(), before)
    assert found_of(checkpoints=1).checkpoints[-1].loss == found.checkpoints[-1].loss
    assert watched.seen == [8, 16, 24]
    assert watched.shares == sorted(watched.shares)
    assert watched.shares[-1] == 1.0


def test_the_first_scores_are_those_of_the_model_as_made(found: VarianceFound) -> None:
    """After one step with an old score of one step: the scores of the untrained model."""
    problem = blobs.toy()
    model = build_model("linear", (4,), 3, generator=torch.Generator().manual_seed(0))
    some = population(problem, model, 8, torch.device("cpu"), seed=0)
    expected = some.scores(OutputGradient(), model)
    against = found_of(1, 1).checkpoints[0].against[0]
    assert against.name == "output gradient, 1 step old"
    shown = torch.tensor(against.scores, dtype=torch.float64)
    torch.testing.assert_close(shown, expected / expected.mean(), rtol=1e-4, atol=0)


def test_old_scores_are_those_of_the_step_they_are_named_after() -> None:
    first, last = found_of(24, 2).checkpoints
    fresh = {against.name: against.scores for against in first.against}
    old = {against.name: against.scores for against in last.against}
    assert old["output gradient, 12 steps old"] == fresh["output gradient, all fresh"]
    assert old["output gradient, 1 step old"] != old["output gradient, 12 steps old"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((0, 2, 3.0), "checkpoints 0"),
        ((1, 1, 3.0), "repeats 1"),
        ((1, 2, 0.5), "pool ratio 0.5"),
        ((1, 2, math.nan), "pool ratio nan"),
    ],
)
def test_amounts_that_measure_nothing_are_refused(asked, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Asked(*asked)


def test_more_checkpoints_than_steps_are_refused_and_a_broken_loss_stops() -> None:
    with pytest.raises(UsageError, match="which is 2 steps"):
        found_of(2, 3)
    settings = blobs.settings(60, lr=1e38, schedule="constant", optimizer="sgd")
    with pytest.raises(TrainingError, match="lower the learning rate"):
        measure_variance(
            blobs.toy(), settings, Asked(1, 2), spectator=Silent(), clock=VirtualClock()
        )


def arm(name: str, trace: float | None, **changes: object) -> Noise:
    values = {"source": "table", "score": "loss", "draw": "multinomial", "age": 3}
    rest = {"measured": 1.0, "low": 0.9, "high": 1.1, "formula": 1.0, "seconds": 1.0}
    return Noise(name=name, trace=trace, **{**values, **rest, **changes})  # pyright: ignore[reportArgumentType]


def test_the_recovered_share_sums_over_checkpoints() -> None:
    arms = (
        arm("uniform", 4.0, source="uniform"),
        arm("old", 3.0),
        arm("slots", 3.0, draw="stratified"),
        arm("pool", None),
        arm("ideal", 2.0, source="fresh", score=EXACT),
    )
    first = Checkpoint(1, 0.5, 4.0, 2.0, 0.1, arms, ())
    second = replace(first, uniform=40.0, ideal=30.0)
    (share,) = recovered((first, second))
    assert (share.name, share.checkpoints) == ("old", 2)
    assert share.share == pytest.approx((1 + 37) / (2 + 10))


def test_the_page_is_whole_and_needs_nothing(small: VarianceFound) -> None:
    text = variance_page(replace(small, title="<b>"))
    elements = Elements(text)
    assert elements.open == []
    tags = [tag for tag, _ in elements.found]
    assert tags.count("svg") == 3
    assert not {"script", "link", "img"} & set(tags)
    assert "&lt;b&gt;" in text
    assert not re.search(r"url\((?!#)|@import", text)
    assert "Counted cost" in text


def test_notes_say_what_cannot_be_claimed(small: VarianceFound, monkeypatch) -> None:
    monkeypatch.setattr("gradsift.report.variance_page.svg", lambda draw, shown: "")
    busy = replace(small, virtual=False, foreign_cpu=0.3, interrupted=True)
    text = variance_page(busy)
    assert "contended: other processes used 30 %" in text
    assert "Ctrl-C ended the run before step 24" in text
    assert "load unknown" in variance_page(replace(busy, foreign_cpu=None))
    shares = [("once", 0.7, math.inf, 1), ("twice", 0.5, 0.1, 2), ("never", math.nan, math.inf, 0)]
    text = variance_page(replace(busy, recovered=tuple(Recovered(*share) for share in shares)))
    assert "<td>0.70</td>" in text
    assert "<td>0.50 ± 0.10</td>" in text
    assert "<td>no checkpoint</td>" in text
    assert "contended" not in variance_page(replace(busy, foreign_cpu=0.01))


def test_the_verdict_names_the_least_noise_for_the_seconds(found: VarianceFound) -> None:
    last = found.checkpoints[-1]
    uniform = replace(arm("uniform", 4.0, source="uniform"), measured=0.5)
    cheap, slots = arm("cheap", 1.0), arm("slots", 1.0, draw="stratified")
    cheap, slots = replace(cheap, measured=0.2), replace(slots, measured=0.01)
    last = replace(last, uniform=4.0, ideal=1.0, arms=(uniform, cheap, slots))
    one = replace(found, checkpoints=(last,))
    assert "is 0.40 of that of uniform batches, with cheap" in verdict(one)
    assert "at equal seconds 0.40 (cheap)" in in_words(last, one)
    dear = replace(last, arms=(uniform, replace(cheap, seconds=9.0)))
    assert "nothing has less noise" in verdict(replace(one, checkpoints=(dear,)))
    fitted = replace(last, uniform=0.0)
    assert "no noise left" in verdict(replace(one, checkpoints=(fitted,)))
    busy = replace(one, virtual=False, foreign_cpu=0.3)
    assert verdict(busy).endswith("shared the machine: its seconds count for no claim.")
    assert variance_page(replace(one, checkpoints=(fitted,)))


def test_the_numbers_of_the_json_are_frozen(found: VarianceFound) -> None:
    listed = found.listed()
    assert sorted(listed) == sorted(VarianceFound.__dataclass_fields__)
    checkpoint = listed["checkpoints"][0]
    assert sorted(checkpoint) == sorted(
        ["step", "loss", "uniform", "ideal", "mean_square", "arms", "against"]
    )
    assert sorted(checkpoint["arms"][0]) == sorted(
        [
            *("name", "source", "score", "draw", "age", "measured", "low", "high", "formula"),
            *("seconds", "trace", "relative", "at_equal_seconds"),
        ]
    )
    assert sorted(listed["recovered"][0]) == ["checkpoints", "name", "share", "standard_error"]
    assert listed["draws"] == DRAWS
