"""Successive passes over a user's own batches, cut into the portions that a step asks for.

While every step takes the next batch as it comes, this is iteration and nothing else: the same
batches in the same order, the same calls at the same moments, so the same random numbers. A step
that asks for more examples gets several batches as one portion; what is cut off stays in hand for
the next, and a pass that ends is followed by a new one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from gradsift.nested import concatenate, length, take


@dataclass(frozen=True, eq=False)
class Portion:
    """Examples by id, with their data where the data come along.

    Attributes:
        given: int64 ids, or the list of them that a batch sampler made.
        data: the collated batch of a stream; None for map-style data, which are fetched by id.
    """

    given: Int64[Tensor, " examples"] | list[Any]
    data: Any = None

    def __len__(self) -> int:
        return len(self.given)

    @cached_property
    def ids(self) -> Int64[Tensor, " examples"]:
        """As a tensor, made when it is first looked at: a plain step never does."""
        given = self.given
        return torch.from_numpy(np.array(given, np.int64)) if isinstance(given, list) else given

    @property
    def listed(self) -> list[Any]:
        """As a list; the batch sampler's own, where there is one."""
        return self.given if isinstance(self.given, list) else self.given.tolist()

    def split(self, count: int) -> tuple["Portion", "Portion"]:
        """The first ``count`` examples, and the rest."""
        parts = slice(0, count), slice(count, len(self))
        head, tail = (Portion(self.ids[part], _cut(self.data, part, len(self))) for part in parts)
        return head, tail


def join(portions: list[Portion]) -> Portion:
    """Several portions as one.

    Example:
        >>> import torch
        >>> join([Portion(torch.tensor([7])), Portion(torch.tensor([3, 5]))]).ids
        tensor([7, 3, 5])
    """
    if len(portions) == 1:
        return portions[0]
    data = None if portions[0].data is None else concatenate([part.data for part in portions])
    return Portion(torch.cat([part.ids for part in portions]), data)


class Passes:
    """Portions out of endless passes over the same source.

    Args:
        restart: begins a pass; one that cannot be begun again yields nothing.

    Attributes:
        steps: how many steps of this epoch were given a portion; counted by whoever asks.
        carries_over: whether a pass was cut into other portions, so that epochs are no passes.
        batches_in_pass: how many batches the last whole pass had; None before one ended.

    Example:
        >>> import torch
        >>> passes = Passes(lambda: iter([Portion(torch.arange(3)), Portion(torch.arange(3, 5))]))
        >>> passes.begin()
        >>> passes.take(4).ids, passes.take(4).ids
        (tensor([0, 1, 2, 3]), tensor([4, 0, 1, 2]))
    """

    def __init__(self, restart: Callable[[], Iterator[Portion]]) -> None:
        self._restart = restart
        self._current: Iterator[Portion] = iter(())
        self._hand: Portion | None = None
        self._batches = 0
        self.steps = 0
        self.carries_over = False
        self.batches_in_pass: int | None = None

    def begin(self) -> None:
        """Starts an epoch: a fresh pass, unless the last one was cut into other portions."""
        self.steps = 0
        if not self.carries_over:
            self._hand = None
            self._begin_pass()

    def peek(self, *, restart: bool) -> Portion | None:
        """The next portion of the user's own order, which stays in hand.

        Args:
            restart: whether a pass that has ended is followed by another.

        Returns:
            None when the pass has ended, or cannot be begun again.
        """
        if self._hand is None:
            self._hand = self._next()
        if self._hand is None and restart:
            self._begin_pass()
            self._hand = self._next()
        return self._hand

    def next(self) -> Portion | None:
        """The next portion as it comes."""
        portion, self._hand = self.peek(restart=self.carries_over), None
        return portion

    def take(self, count: int) -> Portion | None:
        """``count`` examples over as many batches and passes as that needs.

        Returns:
            None when the source ends before there is one example; a short portion when it ends
            later.
        """
        self.carries_over = True
        parts: list[Portion] = []
        missing = count
        while missing > 0 and (portion := self.next()) is not None:
            if len(portion) > missing:
                portion, self._hand = portion.split(missing)
            parts.append(portion)
            missing -= len(portion)
        return join(parts) if parts else None

    def state_dict(self) -> dict[str, Any]:
        """Everything but the iteration itself and the data in hand."""
        return {
            "hand": None if self._hand is None else self._hand.ids.clone(),
            "batches": self._batches,
            "steps": self.steps,
            "carries_over": self.carries_over,
            "batches_in_pass": self.batches_in_pass,
        }

    def load_state_dict(
        self, state: Mapping[str, Any], current: Iterator[Portion], last: Any = None
    ) -> None:
        """Goes on in the middle of a pass.

        Args:
            state: of other passes over the same source.
            current: what is left of the pass.
            last: data of the batch that was taken last; what was in hand is the end of them.
        """
        ids = state["hand"]
        self._hand = None if ids is None else Portion(ids, _end(last, len(ids)))
        self._current = current
        self._batches = state["batches"]
        self.steps = state["steps"]
        self.carries_over = state["carries_over"]
        self.batches_in_pass = state["batches_in_pass"]

    def _begin_pass(self) -> None:
        self._batches = 0
        self._current = self._restart()

    def _next(self) -> Portion | None:
        for portion in self._current:
            if len(portion) > 0:
                self._batches += 1
                return portion
        if self._batches:
            self.batches_in_pass = self._batches
        return None


def _end(data: Any, count: int) -> Any:
    """The last examples of a batch."""
    whole = 0 if data is None else length(data)
    return _cut(data, slice(whole - count, whole), whole)


def _cut(data: Any, part: slice, count: int) -> Any:
    return None if data is None else take(data, part, count)
