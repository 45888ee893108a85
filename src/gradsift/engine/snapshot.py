"""Parameters in shared memory: written without waiting, read whole or not at all.

Two slots take turns, so a reader of the newest set is disturbed only by a writer that laps it. Each
slot has a sequence number, odd while it is written, by which a disturbed reader notices and reads
again: it never sees a mixture of two versions. No lock is held by anybody, so a process that is
killed or stopped at any point stops no other.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradsift.engine.outbox import bytes_of, same_bits
from gradsift.errors import UsageError

SLOTS = 2
ALIGNMENT = 64
"""Bytes: every tensor begins at a multiple, as vector loads like it."""

NEWEST, SEQUENCE, VERSION = 0, 1, 1 + SLOTS
"""Places in the header: the number of the last write, then one sequence and version per slot."""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a slot.

    Attributes:
        name: in the state dictionary.
        shape: of the tensor.
        dtype: likewise.
        start: its first byte.
        stop: the byte after its last.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Board:
    """Shared memory for one state dictionary, to be passed to other processes.

    Attributes:
        entries: where each tensor lies.
        header: int64, shared.
        slots: bytes, shared, shape ``[SLOTS, bytes]``.
    """

    entries: tuple[Entry, ...]
    header: Tensor
    slots: Tensor


def make_board(parameters: Mapping[str, Tensor]) -> Board:
    """A board for dictionaries like this one.

    Example:
        >>> board = make_board({"weight": torch.zeros(2, 3)})
        >>> board.entries[0].stop, board.slots.is_shared()
        (24, True)
    """
    entries: list[Entry] = []
    start = 0
    for name, value in parameters.items():
        stop = start + value.numel() * value.element_size()
        entries.append(Entry(name, tuple(value.shape), value.dtype, start, stop))
        start = -(-stop // ALIGNMENT) * ALIGNMENT
    header = torch.zeros(1 + 2 * SLOTS, dtype=torch.int64).share_memory_()
    slots = torch.zeros(SLOTS, max(start, 1), dtype=torch.uint8).share_memory_()
    return Board(tuple(entries), header, slots)


def _views(board: Board, slot: int) -> dict[str, Tensor]:
    memory = board.slots[slot]
    return {
        entry.name: memory[entry.start : entry.stop].view(entry.dtype).reshape(entry.shape)
        for entry in board.entries
    }


class Writer:
    """Writes whole sets to a board. There is one writer.

    A slot still holds the set before the last one, so what has not changed since is not written
    again: frozen tensors are copied into each slot once.

    Example:
        >>> board = make_board({"weight": torch.zeros(2)})
        >>> Writer(board).write({"weight": torch.ones(2)}, version=7)
        8
        >>> Reader(board).read()
        ({'weight': tensor([1., 1.])}, 7)
    """

    def __init__(self, board: Board) -> None:
        self._header = board.header.numpy()
        self._views = [_views(board, slot) for slot in range(SLOTS)]
        newest = int(self._header[NEWEST])
        self._changed = {entry.name: newest for entry in board.entries}

    def write(self, parameters: Mapping[str, Tensor], version: int) -> int:
        """Copies one set into the slot that is not the newest, then makes it the newest.

        Returns:
            The bytes that were written.

        Raises:
            UsageError: before anything is written, for other names, shapes or types than the
                board was made for.
        """
        number = int(self._header[NEWEST]) + 1
        slot = number % SLOTS
        views = self._views[slot]
        _check(views, parameters)
        stale = self._stale(parameters, number)
        self._header[SEQUENCE + slot] += 1
        self._header[VERSION + slot] = version
        with torch.no_grad():
            for name in stale:
                views[name].copy_(parameters[name])
        self._header[SEQUENCE + slot] += 1
        self._header[NEWEST] = number
        return bytes_of({name: views[name] for name in stale})

    def _stale(self, parameters: Mapping[str, Tensor], number: int) -> list[str]:
        """Names of what has changed since the slot of this write was written."""
        newest = self._views[(number - 1) % SLOTS]
        for name, value in parameters.items():
            if number == 1 or not same_bits(newest[name], value):
                self._changed[name] = number
        return [name for name, changed in self._changed.items() if changed > number - SLOTS]


class Reader:
    """Reads whole sets from a board, each into memory of its own."""

    def __init__(self, board: Board) -> None:
        self._header: np.ndarray = board.header.numpy()
        self._board = board
        self._copy = torch.empty_like(board.slots)[:1].clone()
        self._views = _views(Board(board.entries, board.header, self._copy), 0)

    @property
    def newest(self) -> int:
        """The number of the last write; 0 before the first."""
        return int(self._header[NEWEST])

    def read(self) -> tuple[dict[str, Tensor], int] | None:
        """The newest whole set and its version; None before the first write.

        The tensors are valid until the next call.
        """
        while (newest := self.newest) > 0:
            slot = newest % SLOTS
            before = int(self._header[SEQUENCE + slot])
            version = int(self._header[VERSION + slot])
            self._copy[0].copy_(self._board.slots[slot])
            after = int(self._header[SEQUENCE + slot])
            if before == after and before % 2 == 0:
                return self._views, version
        return None


def _check(views: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    expected = {name: (tuple(view.shape), view.dtype) for name, view in views.items()}
    found = {name: (tuple(value.shape), value.dtype) for name, value in parameters.items()}
    if found != expected:
        odd = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        raise UsageError(
            f"the engine received other parameters than it was started with, first {odd[0]!r}: "
            f"{found.get(odd[0], 'missing')}, expected {expected.get(odd[0], 'nothing')}; "
            "sift the loader again when the model has changed its shape"
        )
