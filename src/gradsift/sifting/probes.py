"""Small measurements on a batch that is there anyway: seconds to score it, signal against noise.

They leave no trace in the model, in any gradient or in any random state.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.sampling.draws import Multinomial
from gradsift.sampling.select import select
from gradsift.scores.base import losses_of
from gradsift.scores.gradient_loop import gradient_norms
from gradsift.scores.untouched import untouched
from gradsift.sifting.candidates import Candidates, Chooser
from gradsift.sifting.evidence import PAIRS, Evidence
from gradsift.sifting.memory import Memory
from gradsift.sifting.setup import Setup
from gradsift.sifting.wrapped import eagerly, sharded

HALF = 16
"""Examples in each of the two gradients that noise is measured by, at most."""

NORMS = 16
"""Examples whose exact gradient norms are taken in a probe."""


class Probes:
    """Measurements in turn: noise, seconds to score and to draw, scores beside gradient norms.

    Args:
        chooser: scores the batch.
        evidence: takes what was measured.
        memory: the table, or None.
    """

    def __init__(self, chooser: Chooser, evidence: Evidence, memory: Memory | None) -> None:
        self._chooser = chooser
        self._clock = chooser.setup.clock
        self._evidence = evidence
        self._memory = memory
        self._kinds = (self._scoring, self._noise, self._norms)
        self._next = self._tried = 0

    def take(self, batch: Candidates, ids: Tensor, step: int) -> None:
        """The next measurement, on a batch of the user's own order: noise first, then in turn.

        Before the noise is known every decision takes it for half of a step, which is too little to
        open for a stale table.
        """
        if self._tried < PAIRS and self._evidence.scoring.known:
            self._tried += 1
            self._noise(batch, ids, step)
            return
        kind, self._next = self._kinds[self._next], (self._next + 1) % len(self._kinds)
        kind(batch, ids, step)

    def state_dict(self) -> dict[str, Any]:
        """Whose turn it is."""
        return {"next": self._next, "tried": self._tried}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the same turn."""
        self._next, self._tried = int(state["next"]), int(state["tried"])

    def _noise(self, batch: Candidates, ids: Tensor, step: int) -> None:
        del ids, step
        halves = half_gradients(self._chooser.setup, batch)
        if halves is not None:
            self._evidence.noise.add(*halves, min(batch.count // 2, HALF))

    def _scoring(self, batch: Candidates, ids: Tensor, step: int) -> None:
        del step
        before = self._clock.now()
        self._chooser.score(batch, len(ids))
        self._evidence.scoring.add((self._clock.now() - before) / batch.count)
        if self._memory is not None:
            before = self._clock.now()
            steps = self._memory.rehearse(len(ids))
            self._evidence.drawing.add((self._clock.now() - before) / steps)

    def _norms(self, batch: Candidates, ids: Tensor, step: int) -> None:
        """Scores beside gradient norms, of a few examples drawn as the table would draw them."""
        setup, memory = self._chooser.setup, self._memory
        if memory is None or not memory.complete or not trainable(setup.model):
            return
        few = min(NORMS, batch.count)
        proposal = memory.proposal.distribution
        generator = torch.Generator().manual_seed(step)
        drawn = select(memory.table.relative(ids), proposal, Multinomial(), few, generator)
        part = batch.take(drawn.positions)
        scores = self._chooser.score(part, few)
        with eagerly():
            norms = gradient_norms(
                setup.model, setup.loss_fn, part.inputs, part.targets, forward=setup.forward
            )
        self._evidence.calibration.add(scores, norms, drawn.weights)


def half_gradients(setup: Setup, batch: Candidates) -> tuple[list[Tensor], list[Tensor]] | None:
    """The mean gradients of two halves of a batch, or parts of them, in eval mode.

    Two halves of a shuffled batch are two (almost) independent batches. Their inner product
    estimates ``‖μ‖²``, and their squared distance the noise.

    Returns:
        None where there is nothing to differentiate: a model that is no module, no parameter that
        learns, or fewer than two examples.
    """
    parameters = trainable(setup.model)
    if not parameters or batch.count < 2:
        return None
    half = min(batch.count // 2, HALF)
    with untouched(setup.model), eagerly(), torch.enable_grad():
        first, second = (
            _mean_gradient(setup, batch.take(torch.arange(start, start + half)), parameters)
            for start in (0, half)
        )
    return first, second


def trainable(model: Any) -> list[nn.Parameter]:
    """The parameters that learn and are whole; none of a callable that is no module.

    Of parameters that processes hold parts of, a gradient is more than autograd returns.
    """
    values = model.parameters() if isinstance(model, nn.Module) and not sharded(model) else ()
    return [value for value in values if value.requires_grad]


def _mean_gradient(setup: Setup, batch: Candidates, parameters: list[nn.Parameter]) -> list[Tensor]:
    losses = losses_of(setup.loss_fn, setup.forward(setup.model, batch.inputs), batch.targets)
    found = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
    return [part for part in found if part is not None]
