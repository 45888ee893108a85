"""Replays: some of the last batches again, at fresh weights, by chance.

What compensates delay in guided SGD is the correction without delay; which batches it is made with
matters less. So replaying at random is the control of every guided rule, and a rule of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.parallel.objective import AbstractObjective, Weights
from gradsift.parallel.saved import check_keys
from gradsift.parallel.server import ParameterServer


class AbstractGuide(ABC):
    """Is told after each update of the server, and may correct the weights.

    Attributes:
        replays: corrections made, counted once for a whole population.
        corrections: the same for each run by itself, ``[*runs]``.
        evaluations: batches whose loss was computed to choose.
    """

    replays: int = 0
    corrections: Tensor = torch.zeros((), dtype=torch.int64)
    evaluations: int = 0

    @abstractmethod
    def after_update(
        self, server: ParameterServer, objective: AbstractObjective, batches: list[Tensor]
    ) -> None:
        """After an update, with the batches that were handed out for it, oldest first."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that later replays depend on: plain values, for `load_state_dict`."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on to the bit where another guide with the same settings was.

        Raises:
            UsageError: for the state of another kind of guide.
        """

    def _counted(self) -> dict[str, Any]:
        return {
            "replays": self.replays,
            "corrections": self.corrections.clone(),
            "evaluations": self.evaluations,
        }

    def _count_on(self, state: Mapping[str, Any]) -> None:
        self.replays, self.evaluations = int(state["replays"]), int(state["evaluations"])
        self.corrections = state["corrections"].clone()


@final
class Replay(AbstractGuide):
    """Every ρ batches, ``count`` of them again at fresh weights, at random: no verification.

    The control of guided SGD, and a rule of its own: what helps under delay is that these
    gradients are not late. With ``uniform < 1`` batches are drawn with replacement by their loss,
    ``p_k = (1 − λ)·e_k/Σe + λ/n``, and the gradient is multiplied by ``1/(n p_k)``: the replayed
    gradient is then the window's mean gradient in expectation, for every λ > 0.

    Args:
        generator: of the draws.
        rho: ρ, batches per window.
        count: replays per window.
        uniform: λ, the share of uniform draws; at 1, batches are drawn without replacement, all
            weights are 1, and no loss is computed.

    Raises:
        UsageError: for a window below 2, more replays than a window has batches, or λ outside
            (0, 1].

    Example:
        >>> Replay(torch.Generator(), rho=10, count=2).replays
        0
    """

    def __init__(
        self, generator: torch.Generator, rho: int = 10, count: int = 2, uniform: float = 1.0
    ) -> None:
        if rho < 2:
            raise UsageError(f"rho {rho} received, expected at least 2: a window of batches")
        if not 0 <= count <= rho:
            raise UsageError(f"{count} replays of {rho} batches received, expected 0 to {rho}")
        if not 0 < uniform <= 1:
            raise UsageError(f"a uniform share of {uniform} received, expected one in (0, 1]")
        self._generator = generator
        self._rho = rho
        self._count = count
        self._uniform = uniform
        self._batches: list[Tensor] = []

    def after_update(
        self, server: ParameterServer, objective: AbstractObjective, batches: list[Tensor]
    ) -> None:
        """Collects a window, then replays out of it."""
        self._batches += batches
        if len(self._batches) < self._rho:
            return
        stacked = torch.stack(self._batches, dim=-2)
        positions, weights = self._draw(server.weights, objective, stacked)
        for place in range(self._count):
            chosen = picked(stacked, positions[..., place])
            batch, scale = objective.agree(chosen, weights[..., place])
            gradients = objective.gradient(server.weights, batch)
            server.correct([_scaled(g, scale) for g in gradients])
            self.replays += 1
            self.corrections = self.corrections + torch.ones_like(positions[..., place])
        self._batches = []

    def state_dict(self) -> dict[str, Any]:
        """The window, the generator and what was counted."""
        return {
            **self._counted(),
            "batches": list(self._batches),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on in the middle of a window."""
        check_keys(self, state, {*self._counted(), "batches", "generator"})
        self._count_on(state)
        self._batches = list(state["batches"])
        self._generator.set_state(state["generator"])

    def _draw(
        self, weights: Weights, objective: AbstractObjective, stacked: Int64[Tensor, "*runs n size"]
    ) -> tuple[Tensor, Tensor]:
        """Positions in the window and their weights, ``[*runs, count]``."""
        shape = stacked.shape[:-1]
        if self._uniform == 1.0:
            order = torch.rand(shape, dtype=torch.float64, generator=self._generator).argsort(-1)
            return order[..., : self._count], torch.ones(*shape[:-1], self._count)
        losses = torch.stack([objective.loss(weights, b) for b in stacked.unbind(-2)], dim=-1)
        self.evaluations += shape[-1]
        probabilities = replay_probabilities(losses, self._uniform)
        uniforms = torch.rand(
            (*shape[:-1], self._count), dtype=torch.float64, generator=self._generator
        )
        ends = probabilities.cumsum(-1)[..., :-1].contiguous()
        positions = torch.searchsorted(ends, uniforms, right=True)
        return positions, 1 / (shape[-1] * probabilities.gather(-1, positions))


def replay_probabilities(
    losses: Float[Tensor, "*runs n"], uniform: float
) -> Float[Tensor, "*runs n"]:
    """``(1 − λ)·e_k/Σe + λ/n`` in float64; uniform where all losses are zero.

    Example:
        >>> replay_probabilities(torch.tensor([1.0, 3.0]), 0.5)
        tensor([0.3750, 0.6250], dtype=torch.float64)
    """
    values = losses.double()
    total = values.sum(dim=-1, keepdim=True)
    flat = torch.full_like(values, 1 / values.shape[-1])
    return (1 - uniform) * torch.where(total > 0, values / total, flat) + uniform * flat


def picked(
    stacked: Int64[Tensor, "*runs n size"], positions: Int64[Tensor, "*runs"]
) -> Int64[Tensor, "*runs size"]:
    """One batch of each run's window.

    Example:
        >>> picked(torch.tensor([[[0, 1], [2, 3]], [[4, 5], [6, 7]]]), torch.tensor([1, 0]))
        tensor([[2, 3],
                [4, 5]])
    """
    return torch.take_along_dim(stacked, positions[..., None, None], dim=-2).squeeze(-2)


def _scaled(gradient: Tensor, weights: Tensor) -> Tensor:
    """A gradient times one weight per run."""
    shape = weights.shape + (1,) * (gradient.dim() - weights.dim())
    return gradient * weights.reshape(shape).to(gradient.dtype)
