"""Which blocks to score next: round after round, or where it pays."""

from collections.abc import Collection, Mapping
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from gradsift.engine.interface import Block, blocks_of
from gradsift.errors import UsageError

RARELY, OFTEN = 0.25, 4.0
"""How often a block is visited, relative to the average: what seems calm may move."""

STATE = ("versions", "measured", "_asked", "_costs")

MEMORY = 0.5
"""Share of what was known of a block that stays when it is measured anew."""


@final
class Sweep:
    """Knows how old the scores of every block are, and which block should be asked for next.

    Round-robin: the block that was asked for longest ago. Adaptive: the block whose age times its
    rate is largest.

    A draw by stale scores ``s`` where fresh ones are ``s + δ``, of the same mean, has a second
    moment that is larger by ``mean(δ²/s)``, in units of the mean: it grows with how far scores move
    and with how often they are drawn. If scores wander, ``δ²`` grows like the age, at the
    rate ``v_b`` of block b, and refreshing it ``f_b`` times as often costs ``Σ v_b / f_b`` in all.
    With ``Σ f_b`` fixed that is least for ``f_b ∝ sqrt(v_b)`` (the form of Cho & Garcia-Molina,
    "Effective page refresh policies for web crawlers", 2003). ``v_b`` is measured when a block
    comes back; rates are kept between `RARELY` and `OFTEN` of the average.

    Args:
        examples: N.
        size: examples per block.
        order: "round-robin" or "adaptive".

    Attributes:
        blocks: all of them.
        versions: of the newest scores of each; −1 where there are none.
        measured: when those came, in the caller's seconds; −inf where there are none.

    Example:
        >>> sweep = Sweep(examples=6, size=2)
        >>> [block.number for block in sweep.next(2, excluded=())]
        [0, 1]
        >>> [block.number for block in sweep.next(2, excluded=())]
        [2, 0]
    """

    def __init__(self, examples: int, size: int, order: str = "round-robin") -> None:
        self.blocks = blocks_of(examples, size)
        count = len(self.blocks)
        self.versions: Int64[np.ndarray, " blocks"] = np.full(count, -1)
        self.measured: Float64[np.ndarray, " blocks"] = np.full(count, -np.inf)
        self._adaptive = order == "adaptive"
        self._asked: Int64[np.ndarray, " blocks"] = np.arange(count) - count
        self._costs: Float64[np.ndarray, " blocks"] = np.full(count, np.nan)
        self._turn = 0

    @property
    def rates(self) -> Float64[np.ndarray, " blocks"]:
        """How often each block should come; the average is one, but for the bounds."""
        known = np.isfinite(self._costs)
        if not (self._adaptive and known.any() and self._costs[known].mean() > 0):
            return np.ones(len(self.blocks))
        rates = np.sqrt(np.where(known, self._costs, self._costs[known].mean()))
        return np.clip(rates / rates.mean(), RARELY, OFTEN)

    def next(self, count: int, excluded: Collection[int]) -> list[Block]:
        """The blocks to ask for now, most urgent first.

        Args:
            count: how many, at most.
            excluded: numbers of blocks that are set aside; those of slices mean nothing here.
        """
        left = np.ones(len(self.blocks), dtype=bool)
        left[[number for number in excluded if number < len(left)]] = False
        rates = self.rates
        found: list[Block] = []
        for _ in range(min(count, int(left.sum()))):
            urgency = np.where(left, (self._turn - self._asked) * rates, -np.inf)
            number = int(urgency.argmax())
            left[number] = False
            self._asked[number] = self._turn
            self._turn += 1
            found.append(self.blocks[number])
        return found

    def came(self, block: Block, version: int, now: float, cost: float | None) -> None:
        """Notes fresh scores.

        Args:
            block: whose.
            version: that they were measured with.
            now: in the caller's seconds.
            cost: ``mean(δ²/s)`` over the block, by the scores from before; None at first. It
                counts where these were measured with older parameters.
        """
        number = block.number
        steps = version - int(self.versions[number])
        if cost is not None and steps > 0:
            before, rate = self._costs[number], cost / steps
            known = np.isfinite(before)
            self._costs[number] = MEMORY * before + (1 - MEMORY) * rate if known else rate
        self.versions[number] = max(version, int(self.versions[number]))
        self.measured[number] = now

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in STATE}
        return {**arrays, "turn": self._turn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another sweep over the same blocks.

        Raises:
            UsageError: for other blocks.
        """
        if len(state["versions"]) != len(self.blocks):
            raise UsageError(
                f"the state of a sweep over {len(state['versions'])} blocks received, expected "
                f"{len(self.blocks)}: give the engine the block size it had"
            )
        for name in STATE:
            setattr(self, name, state[name].numpy().copy())
        self._turn = state["turn"]

    def forgotten(self, block: Block) -> None:
        """Its scores are no longer in use."""
        self.versions[block.number] = -1
        self.measured[block.number] = -np.inf

    def ages(self, version: int, now: float) -> dict[str, float | int | None]:
        """How old scores are, over the blocks that have some: for logs.

        Args:
            version: of the parameters, now.
            now: in the caller's seconds.

        Returns:
            Steps since the parameters of the median block, of the oldest and of the newest, as
            ``age``, ``oldest`` and ``behind``; ``seconds_old`` since the median block came.
        """
        known = self.versions >= 0
        if not known.any():
            return dict.fromkeys(("age", "oldest", "behind", "seconds_old"))
        ages = np.maximum(version - self.versions[known], 0)
        return {
            "age": float(np.median(ages)),
            "oldest": int(ages.max()),
            "behind": int(ages.min()),
            "seconds_old": now - float(np.median(self.measured[known])),
        }

    def older(self, version: int, now: float) -> Bool[np.ndarray, " blocks"]:
        """Which blocks have scores that are older than a version, or came before a moment."""
        known = self.versions >= 0
        return known & ((self.versions < version) | (self.measured < now))
