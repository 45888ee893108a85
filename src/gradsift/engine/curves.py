"""Curves of loss and error that workers measure between blocks, as published in 2015."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from gradsift.engine.evaluate import SLICES
from gradsift.engine.interface import Block, Scored

EVERY = 20
"""Blocks that are scored for one slice of each data set: the published odds."""


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        set: name of the data set.
        version: steps that the parameters had taken with which its oldest slice was measured.
        newest: likewise of its newest slice; in exact mode it is the same.
        loss: mean over the examples that were looked at.
        error: likewise; nan where none is measured.
        examples: that were looked at.
    """

    set: str
    version: int
    newest: int
    loss: float
    error: float
    examples: int

    def listed(self) -> dict[str, Any]:
        """For the log.

        Example:
            >>> Point("test", 3, 3, 0.5, 0.25, 8).listed()["set"]
            'test'
        """
        return asdict(self)


@final
class Curves:
    """Asks for slices of data sets in turn, and makes a point of every pass over one.

    Slices of a pass may have been measured with parameters of several versions, from
    ``Point.version`` to ``Point.newest``: what is published is never waited for. One that was set
    aside is left out.

    Args:
        names: of the data sets; none asks for nothing.
        first: number of the first slice: as many as there are blocks.

    Attributes:
        slices: of all data sets.

    Example:
        >>> curves = Curves(["test"], first=100)
        >>> import torch
        >>> for place, block in enumerate(curves.slices):
        ...     point = curves.came(Scored(block, torch.tensor([place, 0.5, 2.0]), 7, 0.1), ())
        >>> point
        Point(set='test', version=7, newest=7, loss=3.5, error=0.5, examples=16)
    """

    def __init__(self, names: Sequence[str], first: int) -> None:
        self.slices = tuple(
            Block(first + SLICES * (part - 1) + place, place, place + 1, part, name)
            for part, name in enumerate(names, start=1)
            for place in range(SLICES)
        )
        self._first = first
        self._asked = 0
        self._turn = 0
        self._found: dict[int, Scored] = {}

    def among(self, blocks: Sequence[Block]) -> list[Block]:
        """Blocks that are about to be asked for, with the slices whose turn has come."""
        mixed: list[Block] = []
        for block in blocks:
            mixed.append(block)
            self._asked += 1
            if self.slices and self._asked % EVERY == 0:
                mixed += [one for one in self.slices if one.start == self._turn % SLICES]
                self._turn += 1
        return mixed

    def came(self, scored: Scored, aside: Collection[int]) -> Point | None:
        """Takes a slice; returns the point where its data set has been looked at.

        Args:
            scored: of a slice.
            aside: numbers of blocks and slices that are not measured any more.
        """
        self._found[scored.block.number] = scored
        mine = [one.number for one in self.slices if one.part == scored.block.part]
        if any(number not in self._found and number not in aside for number in mine):
            return None
        found = [self._found.pop(number) for number in mine if number in self._found]
        return _point(scored.block.name, found)

    def state_dict(self) -> dict[str, Any]:
        """Whose turn it is. A pass under way begins anew."""
        return {"asked": self._asked, "turn": self._turn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from other curves."""
        self._asked, self._turn = state["asked"], state["turn"]
        self._found = {}


def _point(name: str, found: Sequence[Scored]) -> Point:
    rows = [scored.scores.double().tolist() for scored in found]
    examples = sum(count for *_, count in rows)
    versions = [scored.version for scored in found]
    return Point(
        set=name,
        version=min(versions),
        newest=max(versions),
        loss=sum(loss * count for loss, _, count in rows) / max(examples, 1),
        error=sum(error * count for _, error, count in rows) / max(examples, 1),
        examples=int(examples),
    )
