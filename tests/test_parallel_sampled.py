"""Importance sampling inside the workers: beside a loop, and unbiased over all draws."""

import io
import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from gradsift.errors import UsageError
from gradsift.parallel import (
    AbstractSharedTable,
    Arrival,
    ConstantDelay,
    DrawnBatches,
    ModuleObjective,
    ParameterServer,
    PopulationTable,
    SharedDraw,
    SharedTable,
    UniformDelay,
    arrivals_by_age,
    asgd,
    longest_age,
    sampled_asgd,
)
from gradsift.sampling.distributions import Mixed, Proportional
from gradsift.sampling.table import ScoreTable
from gradsift.scores import OutputGradient
from lines import Lines, lines, slow_gradient, start
from twins import assert_close

MAKERS = {"sgd": lambda p: SGD(p, lr=0.1, momentum=0.5), "adam": lambda p: Adam(p, lr=0.05)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def values(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def flat(parameters):
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def stepped(parameters, optimizer, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def slow_scored(objective, weights, drawn):
    """The weighted gradient and the scores, an example at a time."""
    total = [torch.zeros(3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    scores = []
    for k, weight in zip(drawn.positions.tolist(), drawn.weights.tolist(), strict=True):
        parts = slow_gradient(objective, weights, torch.tensor([k]))
        scores.append(float(torch.cat(parts).square().sum()) ** 0.5)
        total = [t + weight * p / drawn.size for t, p in zip(total, parts, strict=True)]
    return total, torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("delay", [ConstantDelay(0), ConstantDelay(3), UniformDelay(0, 6)])
def test_sampled_asgd_is_a_loop_over_old_weights_and_old_scores(name, delay):
    objective = lines()
    arrivals = arrivals_by_age(delay, 4, 30, seeded(5))
    held = start()
    server = ParameterServer(held, MAKERS[name](held), memory=longest_age(arrivals))
    batches = DrawnBatches(SharedTable(ScoreTable(24, seed=3)), size=5)
    assert list(sampled_asgd(server, objective, arrivals, batches)) == list(range(1, 31))

    table, parameters = ScoreTable(24, seed=3), start()
    optimizer = MAKERS[name](parameters)
    history, waiting, versions = [values(parameters)], {}, {}
    ages, unseen, moments = [], 0, [0.0, 0.0]
    for place, arrival in enumerate(arrivals):
        for later, other in enumerate(arrivals):
            if other.read == place:
                waiting[later] = table.draw(5)
                ids = waiting[later].positions.tolist()
                ages += [place - versions[k] for k in ids if k in versions]
                unseen += sum(k not in versions for k in ids)
        drawn = waiting.pop(place)
        gradients, scores = slow_scored(objective, history[arrival.read], drawn)
        stepped(parameters, optimizer, gradients)
        table.update(drawn.positions, scores, arrival.read, drawn.weights)
        for k in drawn.positions.tolist():
            versions[k] = max(arrival.read, versions.get(k, 0))
        moments[0] += float((drawn.weights * scores**2).sum())
        moments[1] += float((drawn.weights**2 * scores**2).sum())
        history.append(values(parameters))
    assert not waiting
    assert_close(flat(held), flat(parameters))
    assert (batches.examples, batches.unseen) == (150, unseen)
    assert batches.mean_age == pytest.approx(sum(ages) / len(ages), rel=1e-12)
    assert batches.gain == pytest.approx(moments[0] / moments[1], rel=1e-9)
    assert len(ages) > 60


def test_a_table_of_uniform_draws_is_plain_asgd_on_its_batches():
    objective, arrivals = lines(), arrivals_by_age(ConstantDelay(3), 4, 15, seeded())
    flat_law = Mixed(Proportional(), uniform=1.0)
    table = ScoreTable(24, distribution=flat_law, seed=1)
    drawn = [table.draw(4).positions for _ in range(15)]
    held, plain = start(), start()
    server = ParameterServer(held, SGD(held, lr=0.1), memory=3)
    batches = DrawnBatches(SharedTable(ScoreTable(24, distribution=flat_law, seed=1)), size=4)
    list(sampled_asgd(server, objective, arrivals, batches))
    list(asgd(ParameterServer(plain, SGD(plain, lr=0.1), memory=3), objective, arrivals, drawn))
    assert_close(flat(held), flat(plain))
    assert batches.gain == pytest.approx(1.0, abs=1e-12)


SIZE, COUNT, UPDATES = 2, 3, 3
LATE = [Arrival(0, 0), Arrival(1, 0), Arrival(0, 1)]
OUT_OF_ORDER = [Arrival(0, 0), Arrival(0, 1), Arrival(1, 0)]
"""In the second order, scores that are older than the table's arrive last."""

SCRIPTS = list(itertools.product(itertools.product(range(COUNT), repeat=SIZE), repeat=UPDATES))
"""Which example each slot of each draw takes, in every possible way."""


def covered(p, slot, item):
    """A uniform number that makes a slot take an item, and the chance of that."""
    below = sum(p[:item])
    low, high = max(below, slot / SIZE), min(below + p[item], (slot + 1) / SIZE)
    chance = max(0.0, high - low) * SIZE
    return ((low + high) / 2 * SIZE - slot if chance > 0 else 0.5), chance


class ImpossibleError(Exception):
    """An outcome that has no chance."""


def three_lines(runs=()):
    """Three examples of very different size: importance sampling has something to do."""
    x = torch.tensor([[1.0, -0.5, 0.2], [3.0, 1.0, -2.0], [0.1, 0.4, 0.3]], dtype=torch.float64)
    y = torch.tensor([2.0, -4.0, 0.5], dtype=torch.float64)
    return Lines(x.expand(*runs, 3, 3), y.expand(*runs, 3))


def expected_path(arrivals):
    """Delayed gradient descent on all examples: gradients of these losses are linear in w."""
    objective, everything = three_lines(), torch.arange(COUNT)
    history = [values(start())]
    for arrival in arrivals:
        gradients = slow_gradient(objective, history[arrival.read], everything)
        history.append([w - 0.05 * g for w, g in zip(history[-1], gradients, strict=True)])
    return flat(history[-1])


def ended(table, arrivals, objective, held):
    server = ParameterServer(held, SGD(held, lr=0.05), memory=2)
    list(sampled_asgd(server, objective, arrivals, DrawnBatches(table, SIZE)))
    return held


def mean_of_all_paths(monkeypatch, arrivals, wrap):
    """Every outcome of every draw, weighted by its chance: an exact expectation of the end."""
    mean, total = torch.zeros(4, dtype=torch.float64), 0.0
    impossible = set()
    for script in SCRIPTS:
        if any(script[:drawn] in impossible for drawn in range(1, UPDATES + 1)):
            continue
        table, turns, chances = ScoreTable(COUNT), iter(script), []

        def rand(size, *, table=table, turns=turns, chances=chances, **_):
            p = table.probabilities(torch.arange(COUNT)).tolist()
            found = [covered(p, slot, item) for slot, item in enumerate(next(turns))]
            if not all(chance > 0 for _, chance in found):
                raise ImpossibleError
            chances.extend(chance for _, chance in found)
            return torch.tensor([uniform for uniform, _ in found], dtype=torch.float64)

        try:
            with monkeypatch.context() as patched:
                patched.setattr(torch, "rand", rand)
                held = ended(wrap(table), arrivals, three_lines(), start())
        except ImpossibleError:
            impossible.add(script[: len(chances) // SIZE + 1])
            continue
        assert len(chances) == SIZE * UPDATES
        mean, total = mean + math.prod(chances) * flat(held), total + math.prod(chances)
    assert total == pytest.approx(1, abs=1e-12)
    return mean


@pytest.mark.parametrize("arrivals", [LATE, OUT_OF_ORDER])
def test_the_mean_over_all_draws_is_delayed_gradient_descent(monkeypatch, arrivals):
    """Drawn batches are unbiased at the weights read, however late they and all scores are."""
    found = mean_of_all_paths(monkeypatch, arrivals, SharedTable)
    assert_close(found, expected_path(arrivals))


class Unweighted(AbstractSharedTable):
    """What must not be done: draws by score that all weigh one."""

    def __init__(self, table):
        self.table = table

    def draw(self, size):
        positions = self.table.draw(size).positions
        return SharedDraw(positions, torch.ones(size, dtype=torch.float64))

    def learn(self, draw, scores, version):
        self.table.update(draw.batch, scores, version)

    def ages(self, batch, version):
        return self.table.ages(batch, version)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        del state


def test_the_enumeration_sees_a_bias(monkeypatch):
    found = mean_of_all_paths(monkeypatch, LATE, Unweighted)
    assert float((found - expected_path(LATE)).abs().max()) > 0.01


@pytest.mark.parametrize("arrivals", [LATE, OUT_OF_ORDER])
def test_a_population_of_all_draws_has_the_same_mean(monkeypatch, arrivals):
    """729 runs side by side, one for every outcome: the population's table is unbiased too."""
    runs = len(SCRIPTS)
    table = PopulationTable(runs, COUNT, generator=seeded())
    chances = torch.ones(runs, dtype=torch.float64)
    turn = itertools.count()

    def rand(shape, **_):
        place, uniforms = next(turn), []
        for run, p in enumerate(table.probabilities.tolist()):
            found = [covered(p, slot, item) for slot, item in enumerate(SCRIPTS[run][place])]
            uniforms.append([uniform for uniform, _ in found])
            for _, chance in found:
                chances[run] *= chance
        return torch.tensor(uniforms, dtype=torch.float64)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand", rand)
        held = ended(table, arrivals, three_lines((runs,)), start((runs,)))
    ends = torch.cat([held[0].detach(), held[1].detach()], dim=1)
    assert float(chances.sum()) == pytest.approx(1, abs=1e-12)
    assert_close(chances @ ends, expected_path(arrivals))


def test_a_population_of_one_is_a_score_table():
    """The same law, smoothing, level and versions; scores are float32 in a score table."""
    one = ScoreTable(13, seed=4)
    population = PopulationTable(1, 13, generator=seeded(4))
    chance = seeded(9)
    for round_ in range(80):
        expected, found = one.draw(4), population.draw(4)
        assert torch.equal(found.batch[0], expected.positions)
        assert_close(found.weights[0], expected.weights, tolerance=1e-5)
        scores = torch.rand(4, dtype=torch.float64, generator=chance) ** 3
        if round_ % 20 == 7:
            scores.zero_()
        version = max(0, round_ - int(torch.randint(6, (), generator=chance)))
        one.update(expected.positions, scores, version, expected.weights)
        population.learn(found, scores.unsqueeze(0), version)
        everything = torch.arange(13)
        ages = population.ages(everything.unsqueeze(0), round_)
        assert torch.equal(ages[0], one.ages(everything, round_))
        p = population.probabilities[0]
        assert_close(p, one.probabilities(everything), tolerance=1e-5)


def test_runs_of_a_population_may_have_fewer_examples(monkeypatch):
    """Ids beyond a run's own are never drawn, at the very end of the line neither."""
    rows = torch.rand(30, 2, 3, dtype=torch.float64, generator=seeded(6))
    rows[::5] = 1 - 2**-53
    together = PopulationTable(2, torch.tensor([5, 9]), generator=seeded())
    alone = [PopulationTable(1, count, generator=seeded()) for count in (5, 9)]
    for version, uniforms in enumerate(rows):
        found = []
        for table, part in zip((together, *alone), (uniforms, *uniforms.split(1)), strict=True):
            with monkeypatch.context() as patched:
                patched.setattr(torch, "rand", lambda *_, part=part, **__: part)
                drawn = table.draw(3)
            table.learn(drawn, (drawn.batch + 1.0) / (version + 1), version)
            found.append(drawn)
        whole, *parts = found
        assert torch.equal(whole.batch, torch.cat([one.batch for one in parts]))
        assert_close(whole.weights, torch.cat([one.weights for one in parts]))
    assert_close(together.probabilities[0, :5], alone[0].probabilities[0])
    assert not together.probabilities[0, 5:].any()


def test_a_population_is_its_runs_one_by_one(monkeypatch):
    together, arrivals = lines((3,)), arrivals_by_age(UniformDelay(0, 4), 3, 20, seeded(2))
    rows = torch.rand(20, 3, 4, dtype=torch.float64, generator=seeded(6))

    def trained(objective, runs, uniforms):
        held, turn = start((runs,)), iter(uniforms)
        server = ParameterServer(held, SGD(held, lr=0.1), memory=longest_age(arrivals))
        batches = DrawnBatches(PopulationTable(runs, 24, generator=seeded()), 4)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "rand", lambda *_, **__: next(turn))
            list(sampled_asgd(server, objective, arrivals, batches))
        return held, batches

    held, batches = trained(together, 3, rows)
    unseen = 0
    for run in range(3):
        part = slice(run, run + 1)
        objective = Lines(together.x[part], together.y[part])
        alone, single = trained(objective, 1, rows[:, part])
        unseen += single.unseen
        for one, other in zip(alone, held, strict=True):
            assert_close(one[0].detach(), other[run].detach())
        assert_close(single.gains[0], batches.gains[run])
    assert (batches.examples, batches.unseen) == (240, unseen)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (SharedTable(ScoreTable(24, seed=8)), lines(), start()),
        lambda: (PopulationTable(2, 24, generator=seeded(8)), lines((2,)), start((2,))),
    ],
)
def test_drawn_batches_go_on_to_the_bit_with_what_is_on_its_way(make):
    arrivals = arrivals_by_age(ConstantDelay(4), 5, 24, seeded())

    def opened():
        table, objective, held = make()
        batches = DrawnBatches(table, 4)
        return held, objective, ParameterServer(held, SGD(held, lr=0.1), memory=4), batches

    whole, objective, server, batches = opened()
    run = sampled_asgd(server, objective, arrivals, batches)
    for _ in range(11):
        next(run)
    file = io.BytesIO()
    torch.save({"server": server.state_dict(), "batches": batches.state_dict()}, file)
    assert len(batches.state_dict()["pending"]) == 4
    list(run)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again, objective, resumed, others = opened()
    resumed.load_state_dict(state["server"])
    others.load_state_dict(state["batches"])
    list(sampled_asgd(resumed, objective, arrivals[11:], others))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert (others.examples, others.unseen) == (batches.examples, batches.unseen)
    assert (others.mean_age, others.gain) == (batches.mean_age, batches.gain)


def test_a_module_weighs_its_examples_and_gives_their_scores_away():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 4), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    model, loss_fn = Half().double(), nn.CrossEntropyLoss(reduction="none")
    x = torch.randn(9, 3, dtype=torch.float64, generator=seeded(1))
    y = torch.randint(4, (9,), generator=seeded(2))
    objective = ModuleObjective(model, loss_fn, lambda ids: (x[ids], y[ids]))
    stale = [p.detach() + 0.1 for p in model.parameters()]
    batch = torch.tensor([7, 2, 7, 0])
    importance = torch.tensor([0.5, 3.0, 0.5, 1.25], dtype=torch.float64)
    gradients, scores = objective.scored_gradient(stale, batch, importance)
    expected = [torch.zeros_like(weight) for weight in stale]
    for k, weight in zip(batch.tolist(), importance.tolist(), strict=True):
        one = objective.gradient(stale, torch.tensor([k]))
        expected = [e + weight * g / 4 for e, g in zip(expected, one, strict=True)]
        logits = nn.functional.linear(x[k : k + 1], stale[0], stale[1])
        alone = OutputGradient().of_outputs(loss_fn, logits, y[k : k + 1])
        assert_close(scores[batch == k], alone.expand(int((batch == k).sum())))
    for found, slow in zip(gradients, expected, strict=True):
        assert_close(found, slow)
    assert not gradients[2].any()
    scalar = ModuleObjective(model, nn.CrossEntropyLoss(), lambda ids: (x[ids], y[ids]))
    with pytest.raises(UsageError, match="loss_fn returned a scalar, expected \\[4\\]"):
        scalar.scored_gradient(stale, batch, importance)


def test_what_cannot_be_is_refused():
    table = SharedTable(ScoreTable(24))
    held = start()
    server = ParameterServer(held, SGD(held, lr=0.1))
    batches = DrawnBatches(table, 4)
    assert batches.mean_age != batches.mean_age
    assert batches.gain != batches.gain
    with pytest.raises(UsageError, match="gradient 0 arrives, but no batch was drawn for it"):
        list(sampled_asgd(server, lines(), [Arrival(0, 3)], batches))
    with pytest.raises(UsageError, match="batches of 0 examples"):
        DrawnBatches(table, 0)
    with pytest.raises(UsageError, match="cannot draw 25 of 24"):
        DrawnBatches(table, 25).hand_out(0, 0)
    for settings in ({"uniform": 0.0}, {"uniform": 1.5}, {"smoothing": 1.0}):
        with pytest.raises(UsageError, match="expected shares in"):
            PopulationTable(2, 5, **settings, generator=seeded())
    population = PopulationTable(2, 5, generator=seeded())
    drawn = population.draw(3)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="below 0 or not finite"):
            population.learn(drawn, torch.full((2, 3), wrong), 0)
    state = PopulationTable(2, 6, generator=seeded()).state_dict()
    with pytest.raises(UsageError, match=r"tables \[2, 6\] received, expected \[2, 5\]"):
        population.load_state_dict(state)
