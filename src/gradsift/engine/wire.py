"""What a process that scores and the trainer tell each other: small records, scores in lanes.

A record is shorter than the size up to which a pipe takes a write whole or not at all, so a process
that is killed or stopped never leaves half a record, and the trainer never waits for the rest of
one. Scores go through shared memory, one lane per lease, and are copied out by the trainer.
"""

import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

READY, BEGUN, DONE, FAILED, REFUSED, NOTICE = range(6)
"""What a worker says: able to score, at work on a lease, done, could not, will never, a remark."""

_FORMAT = struct.Struct("<qqqqqd")


@dataclass(frozen=True)
class Record:
    """One thing said; what the numbers mean depends on ``kind``.

    Attributes:
        kind: `READY` to `NOTICE`; in what the trainer says the `Block.part` of the lease.
        ticket: of the lease.
        lane: where its scores are, or a text.
        start: the first id of the block, or the place of the slice; of a text its bytes.
        stop: the id after its last.
        version: of the parameters.
        seconds: that scoring took.
    """

    kind: int
    ticket: int = 0
    lane: int = 0
    start: int = 0
    stop: int = 0
    version: int = 0
    seconds: float = 0.0

    def pack(self) -> bytes:
        """As bytes.

        Example:
            >>> record = Record(DONE, ticket=2**40, lane=3, start=4, stop=9, version=7, seconds=0.5)
            >>> Record.unpack(record.pack()) == record, len(record.pack())
            (True, 48)
        """
        kind_and_lane = self.kind << 32 | self.lane
        return _FORMAT.pack(
            kind_and_lane, self.ticket, self.start, self.stop, self.version, self.seconds
        )

    @classmethod
    def unpack(cls, content: bytes) -> "Record":
        """From bytes."""
        kind_and_lane, ticket, start, stop, version, seconds = _FORMAT.unpack(content)
        kind, lane = kind_and_lane >> 32, kind_and_lane & 0xFFFFFFFF
        return cls(kind, ticket, lane, start, stop, version, seconds)


def write_text(lanes: Tensor, lane: int, text: str) -> int:
    """Puts a text into a lane, as much as fits; returns its bytes.

    Example:
        >>> lanes = torch.zeros(2, 4)
        >>> write_text(lanes, 1, "too much, by far"), read_text(lanes, 1, 16)
        (16, 'too much, by far')
    """
    room = lanes[lane].view(torch.uint8)
    content = text.encode()[: len(room)]
    if content:
        room[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return len(content)


def read_text(lanes: Tensor, lane: int, length: int) -> str:
    """The text of a lane, on one line."""
    content = bytes(lanes[lane].view(torch.uint8)[:length].tolist())
    return " ".join(content.decode(errors="replace").split())


def send(connection: Any, record: Record) -> None:
    """Writes one record to a pipe."""
    connection.send_bytes(record.pack())


def receive(connection: Any) -> Record:
    """Reads one record from a pipe that has one; raises EOFError at its end."""
    return Record.unpack(connection.recv_bytes(_FORMAT.size))
