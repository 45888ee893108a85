"""Which blocks to score next: round after round, or where it pays."""

from collections.abc import Collection, Mapping
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from gradsift.engine.interface import Block, blocks_of
from gradsift.errors import UsageError

RARELY = 0.25
"""A block is visited at least this often, relative to the average: what seems calm may move."""

STATE = ("versions", "measured", "_asked", "_movement", "_draws")

MEMORY = 0.5
"""Share of what was known of a block's movement that stays when it is measured anew."""


@final
class Sweep:
    """Knows how old the scores of every block are, and which block should be asked for next.

    Round-robin: the block that was asked for longest ago. Adaptive: the block whose age times its
    rate is largest, with rate ``sqrt(m · d)`` from the movement m of its scores, per step, and the
    share d of draws that fall on it, both relative to their means, and at least `RARELY`. The
    square root is the known optimum of refreshing things that change at rates m and matter by d,
    where a refresh costs the same for all (Cho & Garcia-Molina, "Effective page refresh policies
    for web crawlers", 2003, for the form of the problem).

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
        self._movement: Float64[np.ndarray, " blocks"] = np.full(count, np.nan)
        self._draws: Float64[np.ndarray, " blocks"] = np.zeros(count)
        self._turn = 0
        self._size = size

    @property
    def rates(self) -> Float64[np.ndarray, " blocks"]:
        """How often each block should come, relative to the average of what is known."""
        count = len(self.blocks)
        if not self._adaptive:
            return np.ones(count)
        known = np.isfinite(self._movement)
        mean = self._movement[known].mean() if known.any() else 0.0
        movement = np.where(known, self._movement / mean, 1.0) if mean > 0 else np.ones(count)
        total = self._draws.sum()
        draws = self._draws * count / total if total > 0 else np.ones(count)
        rates = np.sqrt(movement * draws)
        level = rates.mean()
        return np.maximum(rates / level, RARELY) if level > 0 else np.ones(count)

    def next(self, count: int, excluded: Collection[int]) -> list[Block]:
        """The blocks to ask for now, most urgent first.

        Args:
            count: how many, at most.
            excluded: numbers of blocks that are set aside.
        """
        left = np.ones(len(self.blocks), dtype=bool)
        left[list(excluded)] = False
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

    def came(self, block: Block, version: int, now: float, movement: float | None) -> None:
        """Notes fresh scores.

        Args:
            block: whose.
            version: that they were measured with.
            now: in the caller's seconds.
            movement: mean absolute change of its relative scores since the last; None at first.
        """
        number = block.number
        steps = max(1, version - int(self.versions[number]))
        if movement is not None:
            before, speed = self._movement[number], movement / steps
            known = np.isfinite(before)
            self._movement[number] = MEMORY * before + (1 - MEMORY) * speed if known else speed
        self.versions[number] = max(version, int(self.versions[number]))
        self.measured[number] = now

    def drew(self, ids: Int64[np.ndarray, " n"]) -> None:
        """Notes where draws fell; what fell earlier fades."""
        counts = np.bincount(ids // self._size, minlength=len(self.blocks))
        fading = len(ids) / (len(ids) + 4 * len(self.blocks) * self._size)
        self._draws += fading * (counts / max(len(ids), 1) - self._draws)

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

    def older(self, version: int, now: float) -> Bool[np.ndarray, " blocks"]:
        """Which blocks have scores that are older than a version, or came before a moment."""
        known = self.versions >= 0
        return known & ((self.versions < version) | (self.measured < now))
