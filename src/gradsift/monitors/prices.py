"""What other proposals would cost, priced on the batches of the one in use.

An example drawn with weight ``w`` has fresh score ``g``. A candidate proposal would have given it
the weight ``w'``: ``E[w w' g²]`` is then the candidate's second moment, without bias, whatever
the batch was drawn by.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.monitors.averages import Estimate, RatioAverage
from gradsift.monitors.moments import SecondMoments
from gradsift.monitors.proposals import Proposal as Proposal
from gradsift.monitors.proposals import ProposalGrid

TIE = 1e-6
"""Prices that differ by less than this share are equal: rounding must not choose."""


class Prices:
    """Second-moment ratios of the draw in use and of a grid of proposals, over many batches.

    The price of a proposal is ``D_c/A``, one over its ratio ``R_c = A/D_c``: below one where it
    beats uniform draws. Both are ratios of running means (`RatioAverage`). They are ratios of
    second moments of *scores*; see `SecondMoments.ratio` and `Calibration`. Prices hold the ages
    of the scores fixed, though a flatter proposal would keep them fresher. The price of the
    winner is optimistic: `after_choice` has its ratio on batches that had no part in the choice.

    Args:
        exponents: of the grid, rising.
        uniforms: shares of uniform draws, rising, in (0, 1].
        momentum: of the running means; 0.99 averages over about 200 batches.

    Attributes:
        exponents: as given; `add` wants a mean power for each.
        proposals: the grid, flattest first.
        quarantined: how many fresh scores were not finite so far.

    Raises:
        UsageError: for an empty or unordered grid, or numbers out of range.

    Example:
        >>> import torch
        >>> prices = Prices(exponents=(1.0,), uniforms=(0.2, 0.9), momentum=0.9)
        >>> table = torch.tensor([0.0, 0.0, 0.0, 4.0], dtype=torch.float64)
        >>> fresh, ones = torch.tensor([0.1, 0.1, 0.1, 4.0]), torch.ones(4)
        >>> for _ in range(2):
        ...     prices.add(fresh, table, ones, size=4, mean_powers=[1.0])
        >>> better = prices.better(Proposal(1.0, 0.9))
        >>> better, round(prices.ratio(better).value, 2)
        (Proposal(exponent=1.0, uniform=0.2), 3.3)
    """

    def __init__(
        self,
        exponents: Sequence[float] = (0.5, 0.75, 1.0),
        uniforms: Sequence[float] = (0.2, 0.3, 0.5, 0.7),
        momentum: float = 0.99,
    ) -> None:
        self.exponents = tuple(exponents)
        self._grid = ProposalGrid(exponents, uniforms)
        self.proposals = self._grid.proposals
        self.quarantined = 0
        self._momentum = momentum
        self._chosen: int | None = None
        self._after = RatioAverage(1, momentum)
        count = len(self.proposals)
        # Columns: D_c/A for every candidate, D/A, then A/(E[w g])² and D/(E[w g])².
        powers = np.ones(count + 3)
        powers[count + 1 :] = 2.0
        self._average = RatioAverage(count + 3, momentum, powers)
        self._differences = RatioAverage(count**2, momentum)

    def add(
        self,
        fresh: Float[Tensor, " drawn"],
        stale: Float[Tensor, " drawn"],
        weights: Float[Tensor, " drawn"],
        size: int,
        mean_powers: Sequence[float],
    ) -> None:
        """Takes one trained batch in; one without a finite fresh score is left out.

        Args:
            fresh: ``g``, the scores that the step computed; those that are not finite count as
                the root mean square of the others.
            stale: ``s``, the relative scores that the table held for them when they were drawn.
            weights: those that they were drawn with; ones for the user's own order.
            size: the nominal size of the draw, which divides the sums.
            mean_powers: ``mean(s^a)`` over the whole table, for each exponent of the grid.

        Raises:
            UsageError: for shapes that do not fit, before anything is changed.
        """
        batch = self._grid.price(fresh, stale, weights, size, mean_powers)
        count, uniform = len(self.proposals), batch.uniform
        tops = np.concatenate((batch.proposals, (batch.drawn, uniform, batch.drawn)))
        bottoms = np.full(count + 3, uniform)
        bottoms[count + 1 :] = batch.mean
        self._average.add(tops, bottoms)
        with np.errstate(invalid="ignore"):
            differences = batch.proposals[:, None] - batch.proposals
        self._differences.add(differences.ravel(), uniform)
        if self._chosen is not None:
            self._after.add(float(batch.proposals[self._chosen]), uniform)
        self.quarantined += batch.quarantined

    @property
    def batches(self) -> int:
        """How many were taken in."""
        return self._average.batches

    @property
    def drawn(self) -> Estimate:
        """``A/D``: the ratio of the draws in use, mixed over their recent proposals."""
        return self._average.estimate(len(self.proposals)).inverse

    @property
    def ideal(self) -> Estimate:
        """``A/(E[w g])²``: what fresh scores as the proposal would have; no proposal has more."""
        return self._average.estimate(len(self.proposals) + 1)

    @property
    def efficiency(self) -> Estimate:
        """``κ = (E[w g])²/E[w² g²]``: the share of `ideal` that the draws in use reach."""
        return self._average.estimate(len(self.proposals) + 2).inverse

    @property
    def after_choice(self) -> Estimate:
        """``A/D_c`` of the chosen proposal on the batches since `choose`; nan before any."""
        return self._after.estimate().inverse

    def ratio(self, proposal: Proposal) -> Estimate:
        """``R_c = A/D_c`` of a proposal of the grid.

        Raises:
            UsageError: for a proposal that is not on the grid.
        """
        return self._average.estimate(self._grid.place(proposal)).inverse

    def better(self, current: Proposal, steps: int = 1) -> Proposal:
        """The cheapest of the near proposals that are certainly cheaper than the current one.

        Certain means that the difference ``(D_c − D_k)/A`` to the current proposal k is below zero
        by two of *its own* standard errors. Prices of one batch move together, so the difference is
        known far better than either; and a price that is uncertain because scores have heavy
        tails is no reason to leave the proposal for a flatter one.

        Args:
            current: k; at most ``steps`` grid steps are taken from it on each axis.
            steps: so many.

        Returns:
            The current proposal where none is certainly cheaper, as with fewer than two batches.

        Raises:
            UsageError: for a current proposal that is not on the grid.
        """
        count, place = len(self.proposals), self._grid.place(current)
        upper = self._differences.upper.reshape(count, count)[:, place]
        price = self._average.value[:count]
        cheaper = self._grid.near(current, steps) & (upper < -TIE * price[place])
        if not cheaper.any():
            return current
        return self.proposals[int(np.where(cheaper, price, math.inf).argmin())]

    def choose(self, proposal: Proposal) -> None:
        """Says which proposal is drawn from: `after_choice` starts anew where it is another one.

        Raises:
            UsageError: for a proposal that is not on the grid.
        """
        place = self._grid.place(proposal)
        if place != self._chosen:
            self._chosen = place
            self._after = RatioAverage(1, self._momentum)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors, from which `load_state_dict` goes on to the bit."""
        return {
            "grid": self._points(),
            "chosen": self._chosen,
            "quarantined": self.quarantined,
            "average": self._average.state_dict(),
            "differences": self._differences.state_dict(),
            "after": self._after.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another object's state.

        Raises:
            UsageError: for another grid or momentum, before anything is changed.
        """
        if state["grid"] != self._points():
            raise UsageError(
                f"received the prices of the grid {state['grid']}, expected {self._points()}: load "
                "them into prices of the same exponents and uniforms"
            )
        self._average.load_state_dict(state["average"])
        self._differences.load_state_dict(state["differences"])
        self._after.load_state_dict(state["after"])
        self._chosen = state["chosen"]
        self.quarantined = int(state["quarantined"])

    def _points(self) -> list[list[float]]:
        return [[proposal.exponent, proposal.uniform] for proposal in self.proposals]


def pool_ratio_measured(moments: SecondMoments, size: int, pool: int) -> float:
    """``1/R = D/A + (b − 1)/B``: the measured ratio of a pool resampled with replacement.

    ``b`` of ``B`` uniform candidates are drawn with replacement. The trained examples share their
    pool, whose own noise adds ``(b − 1)/b · v/B`` to the variance; ``A/D`` alone leaves it out
    and measures τ². Exact for a mean gradient of zero and scores that are gradient norms. A table,
    or a pool drawn without replacement, has no such term: its ratio is ``moments.ratio``.

    Args:
        moments: running means of the second moments of many batches.
        size: ``b``, at least 1.
        pool: ``B``, at least 1.

    Returns:
        The ratio; nan where all scores are zero.

    Raises:
        UsageError: for sizes below 1.

    Example:
        >>> moments = SecondMoments(uniform=6.0, drawn=1.5, ideal=1.0)
        >>> moments.ratio, pool_ratio_measured(moments, size=64, pool=252)
        (4.0, 2.0)
    """
    if size < 1 or pool < 1:
        raise UsageError(f"received size {size} and pool {pool}, expected at least one of each")
    if not moments.uniform:
        return math.nan
    return 1 / (moments.drawn / moments.uniform + (size - 1) / pool)
