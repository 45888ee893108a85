"""Averaged weights beside a mean over a list."""

import pytest
import torch
from torch.optim import SGD

from gradsift.errors import UsageError
from gradsift.parallel import (
    ConstantDelay,
    ParameterServer,
    TailAverage,
    arrivals_by_age,
    asgd,
)
from lines import batches, lines, start
from twins import assert_close


@pytest.mark.parametrize("runs", [(), (3,)])
def test_an_average_is_the_mean_of_a_list(runs):
    objective, data = lines(runs), batches(30, runs)
    arrivals = arrivals_by_age(ConstantDelay(4), 5, 30, torch.Generator())
    held, average, kept = start(runs), TailAverage(), []
    server = ParameterServer(held, SGD(held, lr=0.2), memory=4)
    for done in asgd(server, objective, arrivals, data):
        if done > 12:
            average.add(server.weights)
            kept.append([weight.clone() for weight in server.weights])
    assert average.count == len(kept) == 18
    for place, found in enumerate(average.weights):
        expected = sum(weights[place] for weights in kept) / 18
        assert_close(found, torch.as_tensor(expected))


def test_an_average_cancels_what_swings():
    """A quadratic with a gradient two updates late, near the edge of stability."""
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    server = ParameterServer([w], SGD([w], lr=0.6), memory=2)
    average, last = TailAverage(), []
    for step in range(200):
        server.push([server.read(max(0, step - 2)).weights[0]], read=max(0, step - 2))
        if step >= 100:
            average.add(server.weights)
            last.append(abs(w.item()))
    assert abs(float(average.weights[0])) < 0.05 * max(last)


def test_an_average_is_a_copy_and_goes_on_from_its_state():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    average = TailAverage()
    average.add([w])
    with torch.no_grad():
        w += 1
    assert average.weights[0].tolist() == [1.0, 2.0]
    average.weights[0].zero_()
    assert average.weights[0].tolist() == [1.0, 2.0]
    again = TailAverage()
    again.load_state_dict(average.state_dict())
    for one in (average, again):
        one.add([w])
        assert one.weights[0].tolist() == [1.5, 2.5]
        assert one.count == 2
        assert not one.weights[0].requires_grad


def test_an_average_of_nothing_is_refused():
    with pytest.raises(UsageError, match="an average of no weights asked for"):
        _ = TailAverage().weights
