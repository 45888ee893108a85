"""The server and the algorithms, beside loops of a few lines."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, RMSprop

from gradsift.errors import UsageError
from gradsift.parallel import (
    Arrival,
    ConstantDelay,
    ModuleObjective,
    ParameterServer,
    UniformDelay,
    arrivals_by_age,
    arrivals_by_race,
    asgd,
    local_sgd,
    longest_age,
    ssgd,
)
from lines import batches, lines, slow_gradient, start
from twins import assert_close

OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "rmsprop": lambda p: RMSprop(p, lr=0.02),
    "adagrad": lambda p: Adagrad(p, lr=0.1),
    "adam": lambda p: Adam(p, lr=0.05),
}


def stepped(parameters, optimizer, gradients):
    """One step of any optimiser, as a user writes it."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def values(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert_close(one.detach(), other.detach())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("delay", [ConstantDelay(0), ConstantDelay(3), UniformDelay(0, 5)])
def test_asgd_is_a_loop_over_old_weights(name, delay):
    objective, data = lines(), batches(20)
    arrivals = arrivals_by_age(delay, 4, 20, torch.Generator().manual_seed(5))
    held = start()
    server = ParameterServer(held, OPTIMIZERS[name](held), memory=longest_age(arrivals))
    assert list(asgd(server, objective, arrivals, data)) == list(range(1, 21))

    parameters = start()
    optimizer = OPTIMIZERS[name](parameters)
    history = [values(parameters)]
    for arrival, batch in zip(arrivals, data, strict=True):
        stepped(parameters, optimizer, slow_gradient(objective, history[arrival.read], batch))
        history.append(values(parameters))
    assert_same(held, parameters)
    assert (server.version, server.received) == (20, 20)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("combine", ["average", "last"])
def test_ssgd_is_a_loop_over_rounds(name, combine):
    objective, data = lines(), batches(14)
    held = start()
    server = ParameterServer(held, OPTIMIZERS[name](held))
    assert list(ssgd(server, objective, 4, data, combine=combine)) == [1, 2, 3]

    parameters = start()
    optimizer = OPTIMIZERS[name](parameters)
    for k in range(3):
        parts = [slow_gradient(objective, values(parameters), b) for b in data[4 * k : 4 * k + 4]]
        mean = [sum(tensors) / 4 for tensors in zip(*parts, strict=True)]
        stepped(parameters, optimizer, mean if combine == "average" else parts[-1])
    assert_same(held, parameters)


def test_one_worker_without_delay_is_sequential_sgd():
    objective, data = lines(), batches(9)
    results = []
    for algorithm in ("asgd", "ssgd", "local"):
        held = start()
        server = ParameterServer(held, SGD(held, lr=0.1))
        if algorithm == "asgd":
            arrivals = arrivals_by_age(ConstantDelay(0), 1, 9, torch.Generator())
            list(asgd(server, objective, arrivals, data))
        elif algorithm == "ssgd":
            list(ssgd(server, objective, 1, data))
        else:
            list(local_sgd(held, lambda p: SGD(p, lr=0.1), objective, 1, 3, data))
        results.append(values(held))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_ssp_keeps_clocks_within_the_bound(bound):
    objective, data = lines(), batches(40)
    seconds = UniformDelay(1.0, 7.5)
    arrivals = arrivals_by_race(seconds, 4, 40, torch.Generator().manual_seed(2), bound)
    delivered = [0] * 4
    for place, arrival in enumerate(arrivals):
        began = [sum(a.worker == w for a in arrivals[: arrival.read]) for w in range(4)]
        assert began[arrival.worker] - min(began) <= bound
        assert arrival.read <= place
        delivered[arrival.worker] += 1
    assert max(delivered) - min(delivered) <= bound + 1
    held = start()
    server = ParameterServer(held, SGD(held, lr=0.05), memory=longest_age(arrivals))
    list(asgd(server, objective, arrivals, data))
    parameters, history = start(), [values(start())]
    for arrival, batch in zip(arrivals, data, strict=True):
        gradients = slow_gradient(objective, history[arrival.read], batch)
        stepped(parameters, SGD(parameters, lr=0.05), gradients)
        history.append(values(parameters))
    assert_same(held, parameters)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("warmup", [0, 2])
def test_local_and_post_local_sgd_are_loops_over_workers(name, warmup):
    objective, data = lines(), batches(warmup * 3 + 12)
    held = start()
    made = local_sgd(held, OPTIMIZERS[name], objective, 3, 2, data, warmup)
    assert list(made) == [3 * k for k in range(1, warmup + 1)] + [3 * warmup + 6, 3 * warmup + 12]

    workers = [start() for _ in range(3)]
    optimizers = [OPTIMIZERS[name](worker) for worker in workers]
    stream = iter(data)
    for _ in range(warmup):
        parts = [slow_gradient(objective, values(w), next(stream)) for w in workers]
        mean = [sum(tensors) / 3 for tensors in zip(*parts, strict=True)]
        for worker, optimizer in zip(workers, optimizers, strict=True):
            stepped(worker, optimizer, mean)
    for _ in range(2):
        for _ in range(2):
            for worker, optimizer in zip(workers, optimizers, strict=True):
                gradients = slow_gradient(objective, values(worker), next(stream))
                stepped(worker, optimizer, gradients)
        middle = [(a + b + c).detach() / 3 for a, b, c in zip(*workers, strict=True)]
        for worker in workers:
            for parameter, mean in zip(worker, middle, strict=True):
                parameter.data = mean.clone()
    assert_same(held, workers[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_population_is_its_runs_one_by_one(name):
    together, data = lines((3,)), batches(12, (3,))
    arrivals = arrivals_by_age(ConstantDelay(2), 3, 12, torch.Generator())
    held = start((3,))
    list(asgd(ParameterServer(held, OPTIMIZERS[name](held), memory=2), together, arrivals, data))
    for run in range(3):
        alone = start()
        objective = type(together)(together.x[run], together.y[run])
        server = ParameterServer(alone, OPTIMIZERS[name](alone), memory=2)
        list(asgd(server, objective, arrivals, [batch[run] for batch in data]))
        assert_same([tensor[run] for tensor in held], alone)


@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop", "adagrad"])
def test_a_masked_correction_changes_nothing_elsewhere(name):
    objective, data = lines((2,)), batches(8, (2,))
    masks = [torch.tensor(m) for m in ([True, False], [False, True], [True, True], [False, False])]
    held = start((2,))
    server = ParameterServer(held, OPTIMIZERS[name](held))
    for batch, mask in zip(data, masks * 2, strict=True):
        server.correct(objective.gradient(server.weights, batch), mask)
    assert (server.version, server.received) == (6, 0)
    for run in range(2):
        alone = start()
        optimizer = OPTIMIZERS[name](alone)
        single = type(objective)(objective.x[run], objective.y[run])
        for batch, mask in zip(data, masks * 2, strict=True):
            if mask[run]:
                stepped(alone, optimizer, slow_gradient(single, values(alone), batch[run]))
        assert_same([tensor[run] for tensor in held], alone)


def test_a_shared_count_of_steps_cannot_be_masked():
    held = start((2,))
    server = ParameterServer(held, Adam(held, lr=0.1))
    gradients = [torch.ones_like(tensor) for tensor in server.weights]
    with pytest.raises(UsageError, match="Adam counts its steps for all runs together"):
        server.correct(gradients, torch.tensor([True, False]))
    server.correct(gradients, torch.tensor([True, True]))
    assert server.version == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_server_goes_on_as_if_nothing_happened(name):
    objective, data = lines(), batches(12)
    arrivals = arrivals_by_age(ConstantDelay(3), 4, 12, torch.Generator())
    held = start()
    server = ParameterServer(held, OPTIMIZERS[name](held), memory=3)
    list(asgd(server, objective, arrivals[:7], data[:7]))
    state = server.state_dict()
    list(asgd(server, objective, arrivals[7:], data[7:]))
    again = start()
    resumed = ParameterServer(again, OPTIMIZERS[name](again), memory=3)
    resumed.load_state_dict(state)
    list(asgd(resumed, objective, arrivals[7:], data[7:]))
    assert all(torch.equal(a, b) for a, b in zip(held, again, strict=True))
    assert (resumed.version, resumed.received) == (12, 12)


def test_the_state_of_another_optimiser_or_model_is_refused():
    held, other = start(), start()
    state = ParameterServer(held, Adam(held, lr=0.1)).state_dict()
    with pytest.raises(UsageError, match="state of another optimiser than SGD"):
        ParameterServer(other, SGD(other, lr=0.1)).load_state_dict(state)
    wide = start((2,))
    with pytest.raises(UsageError, match="weights of shapes"):
        ParameterServer(wide, Adam(wide, lr=0.1)).load_state_dict(state)


def test_forgotten_weights_are_refused_with_a_reason():
    held = start()
    server = ParameterServer(held, SGD(held, lr=0.1), memory=1)
    data = batches(3)
    with pytest.raises(UsageError, match="those of 1 to 2: give it a longer memory"):
        list(asgd(server, lines(), [Arrival(0, 0)] * 3, data))
    with pytest.raises(UsageError, match="not the 1 of the server"):
        ParameterServer(held[:1], SGD(held, lr=0.1))
    with pytest.raises(UsageError, match="memory of -1"):
        ParameterServer(held, SGD(held, lr=0.1), memory=-1)


def test_more_workers_than_batches_are_refused():
    held = start()
    server = ParameterServer(held, SGD(held, lr=0.1))
    message = "a round needs 4 batches, but there are 3: use fewer workers"
    with pytest.raises(UsageError, match=message):
        list(ssgd(server, lines(), 4, batches(3)))
    with pytest.raises(UsageError, match=message):
        list(local_sgd(held, lambda p: SGD(p, lr=0.1), lines(), 2, 2, batches(3)))
    with pytest.raises(UsageError, match="a round needs 2 batches, but there are 1"):
        list(local_sgd(held, lambda p: SGD(p, lr=0.1), lines(), 2, 2, batches(3), warmup=2))
    with pytest.raises(UsageError, match="0 workers"):
        list(ssgd(server, lines(), 0, batches(3)))
    with pytest.raises(UsageError, match="combine 'first' is unknown"):
        list(ssgd(server, lines(), 1, batches(3), combine="first"))
    with pytest.raises(UsageError, match="0 local steps"):
        list(local_sgd(held, lambda p: SGD(p, lr=0.1), lines(), 1, 0, batches(3)))


def test_a_module_learns_at_old_weights_like_anything_else():
    torch_model = nn.Linear(3, 1).double()
    objective = lines()
    data = batches(10)

    def squared(outputs, targets):
        return (outputs.squeeze(1) - targets).square() / 2

    module = ModuleObjective(torch_model, squared, lambda ids: (objective.x[ids], objective.y[ids]))
    parameters = list(torch_model.parameters())
    first = values(parameters)
    arrivals = arrivals_by_age(ConstantDelay(2), 3, 10, torch.Generator())
    server = ParameterServer(parameters, SGD(parameters, lr=0.1), memory=2)
    list(asgd(server, module, arrivals, data))
    history = [[first[0][0], first[1]]]
    for arrival, batch in zip(arrivals, data, strict=True):
        gradients = slow_gradient(objective, history[arrival.read], batch)
        history.append([w - 0.1 * g for w, g in zip(history[-1], gradients, strict=True)])
    assert_same([parameters[0][0], parameters[1]], history[-1])


def test_a_loss_leaves_no_trace_and_an_unused_parameter_stays():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
            self.unused = nn.Linear(3, 1)

        def forward(self, x):
            return self.used(x)

    model = Half()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    objective = ModuleObjective(model, lambda o, y: o.square().sum(1), lambda ids: (x[ids], x[ids]))
    ids = torch.arange(8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objective.loss(list(model.parameters()), ids)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    gradients = objective.gradient(list(model.parameters()), ids)
    assert [bool(g.any()) for g in gradients] == [True] * 4 + [False] * 2
    assert not torch.equal(before["used.0.running_mean"], model.state_dict()["used.0.running_mean"])
