"""Guided replay beside the published rules written out, and every selector beside a sort."""

import itertools
import math

import pytest
import torch
from torch.optim import SGD, RMSprop

from gradsift.errors import UsageError
from gradsift.parallel import (
    Alignment,
    ConstantDelay,
    Easiest,
    FixedVerification,
    FreshVerification,
    Hardest,
    MovementAlignment,
    OwnLossChange,
    ParameterServer,
    Random,
    Replay,
    RotatingVerification,
    RoundGuide,
    Window,
    WindowGuide,
    arrivals_by_age,
    asgd,
    ssgd,
)
from gradsift.parallel.replay import picked, replay_probabilities
from lines import Lines, batches, lines, slow_gradient, slow_loss, start
from twins import assert_close

VERIFICATION = torch.tensor([1, 5, 7, 20])
MAKERS = {"sgd": lambda p: SGD(p, lr=0.1, momentum=0.5), "rmsprop": lambda p: RMSprop(p, lr=0.02)}


def values(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def stepped(parameters, optimizer, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert_close(one.detach(), other.detach())


def slow_replay(objective, parameters, optimizer, window, scores, limit):
    """Batches by falling score, those above zero, at most ``limit``; returns how many."""
    order = sorted(range(len(window)), key=lambda k: -scores[k])
    chosen = [k for k in order[:limit] if scores[k] > 0]
    for k in chosen:
        stepped(parameters, optimizer, slow_gradient(objective, values(parameters), window[k]))
    return len(chosen)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("rho", "revisits", "delay"), [(4, 2, 0), (5, 1, 2), (4, 3, 3), (2, 0, 1)])
def test_the_window_rule_is_the_published_one(name, rho, revisits, delay):
    objective, data = lines(), batches(22)
    arrivals = arrivals_by_age(ConstantDelay(delay), 3, 22, torch.Generator())
    held = start()
    server = ParameterServer(held, MAKERS[name](held), memory=delay)
    guide = WindowGuide(FixedVerification(VERIFICATION), rho=rho, revisits=revisits)
    list(asgd(server, objective, arrivals, data, guide))

    parameters = start()
    optimizer = MAKERS[name](parameters)
    history, previous, replayed = [values(parameters)], 10.0, 0
    window, psi = [], []
    for arrival, batch in zip(arrivals, data, strict=True):
        stepped(parameters, optimizer, slow_gradient(objective, history[arrival.read], batch))
        now = slow_loss(objective, values(parameters), VERIFICATION)
        sign = 1 if now < previous else -1
        for k in range(len(window))[-revisits:] if revisits else []:
            psi[k].append(sign * (previous - slow_loss(objective, values(parameters), window[k])))
        window.append(batch)
        psi.append([previous - now])
        previous = now
        if len(window) == rho:
            means = [sum(scores) / len(scores) for scores in psi]
            replayed += slow_replay(objective, parameters, optimizer, window, means, rho // 2)
            previous = slow_loss(objective, values(parameters), VERIFICATION)
            window, psi = [], []
        history.append(values(parameters))
    assert_same(held, parameters)
    assert guide.replays == replayed > 0
    assert server.version == 22 + replayed


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("combine", ["average", "last"])
@pytest.mark.parametrize(("workers", "rho"), [(4, 4), (6, 4), (10, 10), (3, 8)])
def test_the_round_rule_is_the_published_one(name, combine, workers, rho):
    objective, data = lines(), batches(6 * workers)
    held = start()
    server = ParameterServer(held, MAKERS[name](held))
    guide = RoundGuide(FixedVerification(VERIFICATION), rho=rho)
    list(ssgd(server, objective, workers, data, guide, combine))

    parameters = start()
    optimizer = MAKERS[name](parameters)
    previous, replayed = math.inf, 0
    for k in range(6):
        handed = data[k * workers : (k + 1) * workers]
        parts = [slow_gradient(objective, values(parameters), batch) for batch in handed]
        mean = [sum(tensors) / workers for tensors in zip(*parts, strict=True)]
        stepped(parameters, optimizer, mean if combine == "average" else parts[-1])
        now = slow_loss(objective, values(parameters), VERIFICATION)
        sign = 1 if now < previous else -1
        window = handed[-rho:][:-1]
        own = [slow_loss(objective, values(parameters), batch) for batch in window]
        scores = [sign * (previous - e) for e in own]
        limit = min(4, rho // 2)
        replayed += slow_replay(objective, parameters, optimizer, window, scores, limit)
        previous = now
    assert_same(held, parameters)
    assert guide.replays == replayed > 0


@pytest.mark.parametrize("kind", [WindowGuide, RoundGuide])
def test_a_guided_population_is_its_runs_one_by_one(kind):
    together, data = lines((3,)), batches(24, (3,))
    sets = torch.tensor([[1, 5], [2, 9], [20, 21]])
    selectors = (None, Hardest(), Easiest(), OwnLossChange(), Alignment(), MovementAlignment())
    for selector in selectors:
        held = start((3,))
        server = ParameterServer(held, RMSprop(held, lr=0.05))
        whole = kind(FixedVerification(sets), rho=4, selector=selector)
        list(ssgd(server, together, 4, data, whole))
        assert whole.replays == server.version - server.received
        for run in range(3):
            alone = start()
            single = Lines(together.x[run], together.y[run])
            server = ParameterServer(alone, RMSprop(alone, lr=0.05))
            guide = kind(FixedVerification(sets[run]), rho=4, selector=selector)
            list(ssgd(server, single, 4, [batch[run] for batch in data], guide))
            assert guide.replays == int(guide.corrections) == int(whole.corrections[run]) > 0
            assert_same([tensor[run] for tensor in held], alone)


def a_window(objective, weights, anchor, data, direction=-1.0):
    consistency = torch.tensor([0.3, -0.2, 0.1, -0.5, 0.2], dtype=torch.float64)
    return Window(
        objective=objective,
        now=weights,
        anchor=anchor,
        batches=data,
        verification=VERIFICATION,
        consistency=consistency,
        direction=torch.tensor(direction, dtype=torch.float64),
    )


def test_selectors_rank_by_what_they_say():
    objective, data = lines(), batches(5)
    weights, anchor = values(start()), [w + 0.25 for w in values(start())]
    window = a_window(objective, weights, anchor, data)
    now = [slow_loss(objective, weights, batch) for batch in data]
    then = [slow_loss(objective, anchor, batch) for batch in data]
    target = torch.cat(slow_gradient(objective, weights, VERIFICATION))
    gradients = [torch.cat(slow_gradient(objective, weights, batch)) for batch in data]
    movement = torch.cat([a - w for a, w in zip(anchor, weights, strict=True)])

    def cosine(gradient, target):
        return float(gradient @ target) / math.sqrt(
            float(gradient @ gradient) * float(target @ target)
        )

    expected = {
        Hardest(): now,
        Easiest(): [-e for e in now],
        OwnLossChange(): [-(a - b) for a, b in zip(then, now, strict=True)],
        Alignment(): [cosine(gradient, target) for gradient in gradients],
        MovementAlignment(): [cosine(gradient, movement) for gradient in gradients],
    }
    for selector, ranks in expected.items():
        found = selector.ranks(window)
        assert_close(found, torch.tensor(ranks, dtype=torch.float64))
        best = sorted(range(5), key=lambda k, ranks=ranks: -ranks[k])[:3]
        assert selector.eligible(window, found).tolist() == [k in best for k in range(5)]


def test_a_zero_gradient_is_aligned_with_nothing():
    objective = Lines(torch.zeros(24, 3, dtype=torch.float64), torch.zeros(24, dtype=torch.float64))
    weights = [torch.zeros(3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    window = a_window(objective, weights, weights, batches(5))
    assert Alignment().ranks(window).tolist() == [0.0] * 5
    assert MovementAlignment().ranks(window).tolist() == [0.0] * 5


def test_random_replays_as_many_as_are_consistent_each_equally_often():
    window = a_window(lines(), values(start()), values(start()), batches(5))
    random = Random(torch.Generator().manual_seed(0))
    counts = torch.zeros(5)
    for _ in range(600):
        eligible = random.eligible(window, random.ranks(window))
        assert int(eligible.sum()) == 3
        counts += eligible
    assert bool(((counts - 360).abs() < 5 * math.sqrt(600 * 0.6 * 0.4)).all())


def test_weighted_replay_is_the_window_mean_in_expectation():
    """By enumeration of the positions, for windows of any losses, and any vectors."""
    generator = torch.Generator().manual_seed(1)
    for uniform, n in itertools.product((0.05, 0.5, 1.0), (2, 5)):
        losses = torch.rand(n, dtype=torch.float64, generator=generator) ** 4
        losses[0] = 0.0
        p = replay_probabilities(losses, uniform)
        assert float(p.sum()) == pytest.approx(1, abs=1e-12)
        vectors = torch.randn(n, 3, dtype=torch.float64, generator=generator)
        weighted = [float(p[k]) / (n * float(p[k])) * vectors[k] for k in range(n)]
        assert_close(torch.stack(weighted).sum(0), vectors.mean(0))
        assert float((1 / (n * p)).max()) <= 1 / uniform + 1e-12
    assert replay_probabilities(torch.zeros(4), 0.1).tolist() == [0.25] * 4


def test_weighted_replay_draws_with_its_probabilities_and_weights(monkeypatch):
    """Every slice of the unit interval, in proportion: the draw itself is integrated."""
    objective, data = lines(), batches(3)
    weights = values(start())
    losses = torch.tensor([slow_loss(objective, weights, b) for b in data], dtype=torch.float64)
    p = replay_probabilities(losses, 0.2)
    ends = [0.0, float(p[0]), float(p[0] + p[1]), 1.0]
    expected = torch.zeros(4, dtype=torch.float64)
    for k in range(3):
        middle = (ends[k] + ends[k + 1]) / 2
        monkeypatch.setattr(
            torch, "rand", lambda shape, u=middle, **_: torch.full(shape, u).double()
        )
        held = start()
        server = ParameterServer(held, SGD(held, lr=1.0))
        guide = Replay(torch.Generator(), rho=3, count=1, uniform=0.2)
        guide.after_update(server, objective, data)
        moved = torch.cat([b - a.detach() for a, b in zip(held, weights, strict=True)])
        own = torch.cat(slow_gradient(objective, weights, data[k]))
        assert_close(moved, own / (3 * float(p[k])))
        expected += (ends[k + 1] - ends[k]) * moved
        assert (guide.replays, guide.evaluations) == (1, 3)
    all_three = [torch.cat(slow_gradient(objective, weights, batch)) for batch in data]
    assert_close(expected, torch.stack(all_three).mean(0))


@pytest.mark.parametrize("runs", [(), (3,)])
def test_plain_replay_takes_different_batches_at_fresh_weights(runs):
    objective, data = lines(runs), batches(8, runs)
    held = start(runs)
    server = ParameterServer(held, SGD(held, lr=0.1))
    guide = Replay(torch.Generator().manual_seed(3), rho=4, count=4)
    list(ssgd(server, objective, 2, data, guide))
    assert (guide.replays, guide.evaluations, server.version, server.received) == (8, 0, 12, 4)
    assert torch.equal(guide.corrections, torch.full(runs, 8))
    draws = torch.Generator().manual_seed(3)
    orders = [
        torch.rand((*runs, 4), dtype=torch.float64, generator=draws).argsort(-1) for _ in "ab"
    ]
    for run in range(3 if runs else 1):
        single = Lines(objective.x[run], objective.y[run]) if runs else objective
        mine = [batch[run] for batch in data] if runs else data
        w = values(start())
        for half in range(2):
            for pair in range(2):
                parts = [slow_gradient(single, w, b) for b in mine[4 * half + 2 * pair :][:2]]
                w = [a - 0.1 * (b + c) / 2 for a, b, c in zip(w, *parts, strict=True)]
            order = orders[half][run] if runs else orders[half]
            for k in order.tolist():
                gradient = slow_gradient(single, w, mine[4 * half + k])
                w = [a - 0.1 * b for a, b in zip(w, gradient, strict=True)]
        assert_same([tensor[run] if runs else tensor for tensor in held], w)


def test_verification_policies_name_the_examples_they_promise():
    examples = torch.arange(10, 17)
    fixed, rotating = FixedVerification(examples), RotatingVerification(examples, parts=3)
    assert fixed.ids() is fixed.ids()
    turns = [rotating.ids().tolist() for _ in range(4)]
    assert turns == [[10, 11], [12, 13], [14, 15], [10, 11]]
    fresh = FreshVerification(examples, 5, torch.Generator().manual_seed(0))
    places = torch.randint(7, (5,), generator=torch.Generator().manual_seed(0))
    assert fresh.ids().tolist() == examples[places].tolist()
    runs = torch.tensor([[1, 2, 3], [7, 8, 9]])
    drawn = FreshVerification(runs, 40, torch.Generator()).ids()
    assert set(drawn[0].tolist()) == {1, 2, 3}
    assert set(drawn[1].tolist()) == {7, 8, 9}


def test_picked_takes_one_batch_per_run():
    stacked = torch.arange(24).reshape(2, 3, 4)
    found = picked(stacked, torch.tensor([2, 0]))
    assert torch.equal(found, torch.stack([stacked[0, 2], stacked[1, 0]]))
    assert torch.equal(picked(stacked[1], torch.tensor(1)), stacked[1, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedVerification(torch.empty(0, dtype=torch.int64)), "set is empty"),
        (lambda: FreshVerification(torch.arange(3), 0, torch.Generator()), "set of 0 examples"),
        (lambda: RotatingVerification(torch.arange(3), 4), "4 verification sets out of 3"),
        (lambda: RotatingVerification(torch.arange(3), 0), "0 verification sets"),
        (lambda: WindowGuide(FixedVerification(VERIFICATION), rho=1), "rho 1 received"),
        (lambda: RoundGuide(FixedVerification(VERIFICATION), rho=0), "rho 0 received"),
        (lambda: RoundGuide(FixedVerification(VERIFICATION), limit=-1), "-1 replays received"),
        (lambda: WindowGuide(FixedVerification(VERIFICATION), revisits=-1), "-1 revisits"),
        (lambda: Replay(torch.Generator(), rho=1), "rho 1 received"),
        (lambda: Replay(torch.Generator(), rho=4, count=5), "5 replays of 4 batches"),
        (lambda: Replay(torch.Generator(), uniform=0.0), "uniform share of 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_nothing_consistent_means_no_replay():
    """A verification loss that falls to just below a start that every batch lies above."""
    objective = lines()
    held = start()
    own = [slow_loss(objective, values(held), torch.tensor([k])) for k in range(24)]
    order = sorted(range(24), key=lambda k: own[k])
    easy, hard = torch.tensor(order[:4]), torch.tensor(order[4:]).reshape(5, 4)
    level = (own[order[3]] + own[order[4]]) / 2
    server = ParameterServer(held, SGD(held, lr=1e-9))
    guide = RoundGuide(FixedVerification(easy), rho=4, start=level)
    list(ssgd(server, objective, 5, list(hard), guide))
    assert (guide.replays, guide.evaluations) == (0, 4)
    turned = RoundGuide(FixedVerification(easy), rho=4, start=0.0)
    list(ssgd(server, objective, 5, list(hard), turned))
    assert turned.replays == 2
