"""Guides that are saved in the middle of a window, and go on to the bit; what is refused."""

import io

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam

from gradsift.errors import UsageError
from gradsift.parallel import (
    ConstantDelay,
    FixedVerification,
    FreshVerification,
    Hardest,
    OwnLossChange,
    ParameterServer,
    Random,
    Replay,
    RotatingVerification,
    RoundGuide,
    Service,
    TailAverage,
    Ticket,
    WindowGuide,
    arrivals_by_age,
    asgd,
    ssgd,
)
from lines import batches, lines, start
from twins import assert_close

EXAMPLES = torch.tensor([1, 5, 7, 20, 2, 9])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


GUIDES = {
    "window": lambda seed: WindowGuide(FixedVerification(EXAMPLES), rho=4),
    "window, fresh": lambda seed: WindowGuide(FreshVerification(EXAMPLES, 3, seeded(seed)), rho=5),
    "window, rotating": lambda seed: WindowGuide(RotatingVerification(EXAMPLES, 3), rho=4),
    "window, random": lambda seed: WindowGuide(
        FixedVerification(EXAMPLES), rho=4, selector=Random(seeded(seed))
    ),
    "window, own change": lambda seed: WindowGuide(
        FixedVerification(EXAMPLES), rho=4, selector=OwnLossChange()
    ),
    "round": lambda seed: RoundGuide(FixedVerification(EXAMPLES), rho=4),
    "round, random, fresh": lambda seed: RoundGuide(
        FreshVerification(EXAMPLES, 2, seeded(seed + 1)), rho=4, selector=Random(seeded(seed))
    ),
    "replay": lambda seed: Replay(seeded(seed), rho=5, count=2),
    "weighted replay": lambda seed: Replay(seeded(seed), rho=5, count=2, uniform=0.3),
}


def through_a_file(state):
    """As a checkpoint has it: plain values only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def begin(name, seed):
    held = start()
    server = ParameterServer(held, SGD(held, lr=0.05, momentum=0.5), memory=3)
    return server, GUIDES[name](seed)


def play(name, server, guide, updates):
    """Those updates of one run, whose batches and arrivals are the same in every call."""
    if not updates:
        return
    data = batches(48)
    if "round" in name:
        rounds = ssgd(server, lines(), 4, data[4 * updates.start : 4 * updates.stop], guide)
    else:
        arrivals = arrivals_by_age(ConstantDelay(2), 3, 48, torch.Generator())
        part = slice(updates.start, updates.stop)
        rounds = asgd(server, lines(), arrivals[part], data[part], guide)
    assert len(list(rounds)) == len(updates)


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("cut", [0, 1, 4, 6, 9])
def test_a_guide_goes_on_to_the_bit(name, cut):
    whole, guide = begin(name, 3)
    play(name, whole, guide, range(12))
    first, early = begin(name, 3)
    play(name, first, early, range(cut))
    saved = through_a_file({"server": first.state_dict(), "guide": early.state_dict()})
    play(name, first, early, range(cut, 12))  # a state that was taken stays what it is
    second, late = begin(name, 99)
    second.load_state_dict(saved["server"])
    late.load_state_dict(saved["guide"])
    play(name, second, late, range(cut, 12))
    for server, found in ((first, early), (second, late)):
        for mine, expected in zip(server.weights, whole.weights, strict=True):
            assert torch.equal(mine, expected)
        assert server.version == whole.version == 12 + guide.replays
        counts = (found.replays, found.evaluations, found.corrections.tolist())
        assert counts == (guide.replays, guide.evaluations, guide.corrections.tolist())
    assert guide.replays > 0


@pytest.mark.parametrize("name", ["window, fresh", "window, random", "replay", "weighted replay"])
def test_without_its_state_a_guide_goes_on_otherwise(name):
    """So that the test above could fail."""
    results = []
    for restored in (True, False):
        server, guide = begin(name, 3)
        play(name, server, guide, range(6))
        other = GUIDES[name](99)
        if restored:
            other.load_state_dict(guide.state_dict())
        play(name, server, other, range(6, 12))
        results.append([weight.tolist() for weight in server.weights])
    assert results[0] != results[1]


def test_a_population_goes_on_to_the_bit():
    def run(updates, saved=None):
        held = start((3,))
        server = ParameterServer(held, Adagrad(held, lr=0.05))
        guide = RoundGuide(FixedVerification(EXAMPLES.expand(3, -1)), rho=4)
        if saved is not None:
            server.load_state_dict(saved["server"])
            guide.load_state_dict(saved["guide"])
        data = batches(40, (3,))[4 * updates.start : 4 * updates.stop]
        list(ssgd(server, lines((3,)), 4, data, guide))
        return {"server": server.state_dict(), "guide": guide.state_dict()}

    whole, again = run(range(10)), run(range(4, 10), through_a_file(run(range(4))))
    for mine, expected in zip(again["server"]["weights"], whole["server"]["weights"], strict=True):
        assert torch.equal(mine, expected)
    assert again["guide"]["corrections"].tolist() == whole["guide"]["corrections"].tolist()


def test_the_state_of_another_guide_is_refused():
    window = GUIDES["window"](0).state_dict()
    for name in ("round", "replay"):
        with pytest.raises(UsageError, match=r"the state of \w+ has .* expected .*: go on with"):
            GUIDES[name](0).load_state_dict(window)
    with pytest.raises(UsageError, match=r"the state of WindowGuide has"):
        GUIDES["window"](0).load_state_dict(GUIDES["round"](0).state_dict())
    with pytest.raises(UsageError, match=r"FreshVerification has \[\], expected \['generator'\]"):
        GUIDES["window, fresh"](0).load_state_dict(window)
    with pytest.raises(UsageError, match=r"Random has \[\], expected \['generator'\]"):
        GUIDES["window, random"](0).load_state_dict(window)
    with pytest.raises(UsageError, match=r"FixedVerification has \['next'\], expected \[\]"):
        GUIDES["window"](0).load_state_dict(GUIDES["window, rotating"](0).state_dict())
    with pytest.raises(UsageError, match=r"Hardest has \['generator'\], expected \[\]"):
        Hardest().load_state_dict(Random(seeded(0)).state_dict())
    with pytest.raises(UsageError, match="verification set 4 is next, but there are 2"):
        RotatingVerification(EXAMPLES, 2).load_state_dict({"next": 4})


def service(kind, guide=None):
    held = start()
    return Service(ParameterServer(held, kind(held, lr=0.1)), lines(), guide)


@pytest.mark.parametrize("reload", [False, True])
def test_a_ticket_is_applied_once(reload):
    """Sent twice, in any order, and to a server that goes on from a state of another."""
    data = batches(4)
    found = service(SGD)
    expected = start()
    for number, batch in ((3, data[0]), (3, data[0]), (0, data[1]), (3, data[2]), (0, data[3])):
        place = found.progress.received
        gradients = lines().gradient(found.weights(place), batch)
        if (number, place) in ((3, 0), (0, 1)):
            for weight, gradient in zip(expected, gradients, strict=True):
                weight.data -= 0.1 * gradient
        found.apply(Ticket(number, 0, place, place), gradients, batch)
        if reload:
            state = through_a_file(found.state_dict())
            found = service(SGD)
            found.load_state_dict(state)
    assert found.progress.received == found.progress.version == 2
    for mine, truth in zip(found.weights(2), expected, strict=True):
        assert_close(mine, truth.detach())


@pytest.mark.parametrize("reload", [False, True])
def test_a_service_averages_what_its_last_updates_left(reload):
    """Three of five are averaged; one sent twice counts once."""

    def averaging():
        held, average = start(), TailAverage()
        server = ParameterServer(held, SGD(held, lr=0.1))
        return Service(server, lines(), None, average, after=2), average

    (found, average), kept = averaging(), []
    for number, batch in enumerate(batches(5)):
        gradients = lines().gradient(found.weights(number), batch)
        for _ in range(2):
            found.apply(Ticket(number, 0, number, number), gradients, batch)
        kept.append([weight.clone() for weight in found.weights(number + 1)])
        if reload:
            state = through_a_file(found.state_dict())
            found, average = averaging()
            found.load_state_dict(state)
    assert average.count == 3
    for place, mean in enumerate(average.weights):
        assert_close(mean, torch.stack([weights[place] for weights in kept[2:]]).mean(0))


def test_a_service_refuses_what_is_not_its_own():
    state = service(Adam).state_dict()
    with pytest.raises(UsageError, match="state of another optimiser than SGD") as caught:
        service(SGD).load_state_dict(state)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="a state without guide received, expected one with"):
        service(Adam, GUIDES["window"](0)).load_state_dict(state)
    guided = service(Adam, GUIDES["window"](0)).state_dict()
    with pytest.raises(UsageError, match="a state with guide received, expected one without"):
        service(Adam).load_state_dict(guided)
    with pytest.raises(UsageError, match="the state of Service has"):
        service(Adam).load_state_dict({"server": state["server"]})
    with pytest.raises(UsageError, match="a state with average received, expected one"):
        service(Adam).load_state_dict({**state, "average": {"count": 0, "mean": []}})
    broken = {**state, "server": {**state["server"], "optimizer": {"momentum": 3}}}
    with pytest.raises(UsageError, match="expected that of Adam") as caught:
        service(Adam).load_state_dict(broken)
    assert "\n" not in str(caught.value)
