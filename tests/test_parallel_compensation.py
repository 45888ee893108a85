"""Every compensation rule beside its formula, one number at a time."""

import math

import pytest
import torch
from torch.optim import SGD, Adam, RMSprop

from gradsift.errors import UsageError
from gradsift.parallel import (
    AbstractCompensation,
    AdaptiveDelayCompensated,
    ConstantDelay,
    DelayCompensated,
    GapAware,
    Lateness,
    LearningRateByAge,
    ParameterServer,
    Uncompensated,
    UniformDelay,
    arrivals_by_age,
    asgd,
    longest_age,
)
from lines import batches, lines, slow_gradient, start
from twins import assert_close

RATE = 0.1
RULES = {
    "none": Uncompensated,
    "rate": LearningRateByAge,
    "constant": lambda: DelayCompensated(0.3),
    "adaptive": lambda: AdaptiveDelayCompensated(0.5, decay=0.9),
    "gap": lambda: GapAware(decay=0.9),
}


class SlowRule:
    """The five rules on lists of numbers: SGD at a constant rate, every element by itself."""

    def __init__(self, name):
        self.name, self.squares, self.moves, self.steps = name, {}, [0.0] * 4, 0

    def step(self, w, g, stale, age, worker):
        if self.name == "rate":
            return [a - RATE / max(1, age) * b for a, b in zip(w, g, strict=True)]
        if self.name == "constant":
            g = [b + 0.3 * b * b * (a - s) for a, b, s in zip(w, g, stale, strict=True)]
        if self.name == "adaptive":
            old = self.squares.get(worker, [0.0] * 4)
            m = [0.9 * o + (1 - 0.9) * b * b for o, b in zip(old, g, strict=True)]
            self.squares[worker] = m
            strength = [0.5 / math.sqrt(v + 1e-7) for v in m]
            g = [b + k * b * b * (a - s) for a, b, s, k in zip(w, g, stale, strength, strict=True)]
        if self.name == "gap" and self.steps:
            usual = [math.sqrt(v / (1 - 0.9**self.steps)) for v in self.moves]
            g = [b / (1 + abs(a - s) / c) for a, b, s, c in zip(w, g, stale, usual, strict=True)]
        new = [a - RATE * b for a, b in zip(w, g, strict=True)]
        self.moves = [
            0.9 * v + (1 - 0.9) * (n - a) ** 2 for v, n, a in zip(self.moves, new, w, strict=True)
        ]
        self.steps += 1
        return new


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("delay", [ConstantDelay(0), ConstantDelay(4), UniformDelay(0, 6)])
def test_a_rule_is_its_formula(name, delay):
    objective, data = lines(), batches(25)
    arrivals = arrivals_by_age(delay, 3, 25, torch.Generator().manual_seed(4))
    held = start()
    server = ParameterServer(
        held, SGD(held, lr=RATE), compensation=RULES[name](), memory=longest_age(arrivals)
    )
    list(asgd(server, objective, arrivals, data))

    rule, history = SlowRule(name), [[0.5] * 4]
    for place, (arrival, batch) in enumerate(zip(arrivals, data, strict=True)):
        stale = torch.tensor(history[arrival.read], dtype=torch.float64)
        gradient = torch.cat(slow_gradient(objective, [stale[:3], stale[3:]], batch)).tolist()
        age = place - arrival.read
        history.append(rule.step(history[-1], gradient, stale.tolist(), age, arrival.worker))
    found = torch.cat([tensor.detach() for tensor in held])
    assert_close(found, torch.tensor(history[-1], dtype=torch.float64))


@pytest.mark.parametrize("name", RULES)
def test_without_delay_every_rule_is_plain_sgd(name):
    results = []
    for rule in (Uncompensated(), RULES[name]()):
        held = start()
        server = ParameterServer(held, RMSprop(held, lr=0.05), compensation=rule)
        arrivals = arrivals_by_age(ConstantDelay(0), 1, 12, torch.Generator())
        list(asgd(server, lines(), arrivals, batches(12)))
        results.append(held)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_rules_differ_under_delay_and_resume_to_the_bit(name):
    arrivals = arrivals_by_age(ConstantDelay(4), 3, 20, torch.Generator())
    objective, data = lines(), batches(20)

    def server_of(rule):
        held = start()
        return held, ParameterServer(held, SGD(held, lr=RATE), compensation=rule, memory=4)

    plain, server = server_of(Uncompensated())
    list(asgd(server, objective, arrivals, data))
    whole, server = server_of(RULES[name]())
    list(asgd(server, objective, arrivals[:11], data[:11]))
    state = server.state_dict()
    list(asgd(server, objective, arrivals[11:], data[11:]))
    again, resumed = server_of(RULES[name]())
    resumed.load_state_dict(state)
    list(asgd(resumed, objective, arrivals[11:], data[11:]))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert torch.equal(plain[0], whole[0]) == (name == "none")


def test_the_learning_rate_counts_where_the_gradient_does_not():
    """Adam scales gradients back; dividing the rate still shortens the step."""
    moved = []
    for rule in (Uncompensated(), LearningRateByAge()):
        w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = Adam([w], lr=0.1)
        server = ParameterServer([w], optimizer, compensation=rule, memory=5)
        for _ in range(5):
            server.push([torch.ones(1, dtype=torch.float64)], read=server.received)
        before = w.item()
        server.push([torch.ones(1, dtype=torch.float64)], read=1)
        moved.append(before - w.item())
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert moved[1] == pytest.approx(moved[0] / 4, rel=1e-6)


def test_corrections_make_a_gradient_older():
    """Age is counted in versions: two gradients and one replay make three."""
    seen = []

    class Spy(AbstractCompensation):
        def correct(self, gradients, lateness):
            seen.append((lateness.age, lateness.worker))
            return list(gradients)

    w = torch.zeros(1, requires_grad=True)
    server = ParameterServer([w], SGD([w], lr=1.0), compensation=Spy(), memory=3)
    one = [torch.ones(1)]
    server.push(one, read=0)
    server.correct(one)
    server.push(one, read=1)
    server.push(one, read=0, worker=2)
    assert seen == [(0, 0), (0, 0), (3, 2)]
    assert server.read(1).weights == [torch.tensor([-2.0])]


def test_zero_gaps_and_zero_steps_are_no_division_by_zero():
    rule = GapAware()
    still = [torch.tensor([1.0, 2.0])]
    rule.observe(still, still)
    late = Lateness(now=[torch.tensor([1.0, 2.5])], stale=still, age=3, worker=0)
    (found,) = rule.correct([torch.tensor([4.0, 4.0])], late)
    assert found.tolist() == [4.0, 0.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: DelayCompensated(-1.0),
        lambda: DelayCompensated(math.inf),
        lambda: AdaptiveDelayCompensated(math.nan),
        lambda: AdaptiveDelayCompensated(1.0, decay=1.0),
        lambda: GapAware(decay=-0.1),
    ],
)
def test_settings_that_cannot_work_are_refused(make):
    with pytest.raises(UsageError, match="received, expected a"):
        make()


def test_a_state_of_another_rule_is_refused():
    with pytest.raises(UsageError, match=r"Uncompensated keeps no state, but found \['squares'"):
        Uncompensated().load_state_dict(GapAware().state_dict())
    with pytest.raises(UsageError, match=r"GapAware has \['squares'\], expected"):
        GapAware().load_state_dict(AdaptiveDelayCompensated().state_dict())
