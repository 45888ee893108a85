"""Workers and a server for the coordinator's tests: in this process, with faults given as values.

What they compute, a line fitted by least squares, can be imported by processes of a cluster too.
"""

import time
from collections import deque
from copy import deepcopy

import torch
from torch.optim import SGD

from gradsift.parallel import (
    AbstractActors,
    AdaptiveDelayCompensated,
    FixedVerification,
    ParameterServer,
    Recording,
    Service,
    TailAverage,
    WindowGuide,
    asgd,
)
from gradsift.parallel.actors import Heard, ServerLostError
from lines import batches, lines, start

LONGEST = 12
"""Gradients that may be late, and weights that the server remembers."""


class Slow:
    """The same line, on a machine that takes a moment for a gradient."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self):
        objective = lines()
        quick = objective.gradient

        def gradient(weights, batch):
            time.sleep(self.seconds)
            return quick(weights, batch)

        objective.gradient = gradient
        return objective


def make_parts(memory=LONGEST):
    """A server whose every rule has a state of its own: momentum, compensation by worker, guide."""
    parameters = start()
    server = ParameterServer(
        parameters,
        SGD(parameters, lr=0.05, momentum=0.5),
        compensation=AdaptiveDelayCompensated(0.5),
        memory=memory,
    )
    guide = WindowGuide(FixedVerification(torch.tensor([1, 5, 7])), rho=4)
    return server, guide


def make_service():
    server, guide = make_parts()
    return Service(server, lines(), guide, TailAverage(), after=7)


def rate(received):
    return 0.05 / (1 + received)


def replayed(taken, stream):
    """Server, guide and average of a simulation in which gradients arrive as they did."""
    recording = Recording.of(taken)
    server, guide = make_parts(memory=len(taken))
    rounds = asgd(server, lines(), recording.arrivals, recording.reordered(stream), guide)
    average = TailAverage()
    for received in range(len(taken)):
        for group in server.optimizer.param_groups:
            group["lr"] = rate(received)
        next(rounds)
        if received >= 7:
            average.add(server.weights)
    return server, guide, average


def weights_of(state):
    return [weight.tolist() for weight in state["server"]["weights"]]


DELIVER, TWICE, DIE, SILENCE, SERVER_BEFORE, SERVER_AFTER = range(6)


class Crowd(AbstractActors):
    """Everybody in this process; ``script`` says what is heard next, then it goes on in order.

    Args:
        script: pairs of what happens and to which of the open calls.
    """

    def __init__(self, script=()):
        self.script = deque(script)
        self.calls = []
        self.now = 0.0
        self.server_dies = None
        self.service = None
        self.opened = self.applied = 0
        self.closed = False

    def clock(self):
        return self.now

    def open(self, state):
        self.opened += 1
        self.server_dies = None
        self.service = make_service()
        self.service.load_state_dict(deepcopy(state))
        return self.service.progress

    def _alive(self):
        if self.service is None:
            raise ServerLostError("ended")
        return self.service

    def apply(self, ticket, gradients, batch, rate):
        if self.server_dies == SERVER_BEFORE:
            self.service = None
        progress = self._alive().apply(ticket, gradients, batch, rate)
        self.applied += 1
        if self.server_dies == SERVER_AFTER:
            self.service = None
            self._alive()
        return progress

    def save(self):
        return deepcopy(self._alive().state_dict())

    def hire(self, worker):
        self.calls.append((worker, None, None, None))

    def ask(self, worker, ticket, batch):
        weights = [weight.clone() for weight in self._alive().weights(ticket.read)]
        self.calls.append((worker, ticket.number, weights, batch))

    def hear(self, wait):
        self.now += 1.0
        what, which = self.script.popleft() if self.script else (DELIVER, 0)
        if what == SILENCE:
            self.now += 1000.0
            return []
        if what in (SERVER_BEFORE, SERVER_AFTER):
            self.server_dies = what
        if not self.calls:
            return []
        worker, number, weights, batch = self.calls.pop(which % len(self.calls))
        if what == DIE and self.opened and number is not None:
            return [Heard(worker, lost="was killed")]
        if number is None:
            return [Heard(worker)]
        heard = Heard(worker, number, lines().gradient(weights, batch))
        return [heard, heard] if what == TWICE else [heard]

    def dismiss(self, worker):
        self.calls = [call for call in self.calls if call[0] != worker]

    def close(self):
        self.closed = True


def stream(count):
    return batches(count)
