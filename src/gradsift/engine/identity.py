"""Do two processes mean the same examples by the same ids? Content hashes of a sample say so.

A score that lands on the wrong example costs no correctness, but all of its worth, and nobody
would notice. So a worker reads a few examples before it scores any, and compares.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsift.data.split import Split
from gradsift.errors import DataError

SAMPLE = 32
"""Examples that are compared, at most: two orders of ten classes agree by chance once in 10^32."""

GOLDEN = 0x9E3779B97F4A7C15
"""Multiples of the golden ratio spread evenly over any range."""


@dataclass(frozen=True)
class Fingerprint:
    """What some examples of a data set look like.

    Attributes:
        length: of the data set.
        contents: a hash of each example looked at, as the loader collates it; "" where two reads
            of it differed, as under random transforms.
        targets: a hash of each target.
    """

    length: int
    contents: tuple[str, ...]
    targets: tuple[str, ...]


def sampled_ids(length: int) -> list[int]:
    """The ids that are looked at: the first, the last, and others spread over the range.

    Example:
        >>> sampled_ids(3), len(sampled_ids(10**6)), sampled_ids(10**6)[-1]
        ([0, 1, 2], 32, 999999)
    """
    if length <= SAMPLE:
        return list(range(length))
    spread = {(k * GOLDEN % 2**64) * length >> 64 for k in range(1, SAMPLE - 1)}
    return sorted({0, length - 1, *spread})


def fingerprint(examples: Any, collate: Callable[[list[Any]], Any], split: Split) -> Fingerprint:
    """Reads each example of a sample twice.

    Args:
        examples: a map-style data set.
        collate: a list of examples into a batch.
        split: a batch into inputs and targets.

    Example:
        >>> from gradsift.data.split import split_batch
        >>> found = fingerprint([(1.0, 0), (2.0, 0)], lambda rows: rows[0], split_batch)
        >>> found.length, found.targets[0] == found.targets[1]
        (2, True)
        >>> found.contents[0] == found.contents[1]
        False
    """
    contents, targets = [], []
    for place in sampled_ids(len(examples)):
        first, again = (split(collate([examples[place]])) for _ in range(2))
        hashes = content_hash(first), content_hash(again)
        contents.append(hashes[0] if hashes[0] == hashes[1] else "")
        targets.append(content_hash(first[1]))
    return Fingerprint(len(examples), tuple(contents), tuple(targets))


def compare(expected: Fingerprint, found: Fingerprint) -> str | None:
    """Makes sure that a worker's examples are those of the trainer.

    Returns:
        What should be said, where only targets could be compared; None otherwise.

    Raises:
        DataError: naming the first example that differs.

    Example:
        >>> compare(Fingerprint(1, ("a",), ("t",)), Fingerprint(1, ("b",), ("t",)))
        Traceback (most recent call last):
        gradsift.errors.DataError: the engine's data set differs from the loader's at example 0: ...
    """
    if expected.length != found.length:
        raise DataError(
            f"the engine's data set has {found.length} examples, but the loader's has "
            f"{expected.length}: both must be the same, in the same order"
        )
    random = 0
    for place, (mine, theirs) in enumerate(zip(expected.contents, found.contents, strict=True)):
        moving = not (mine and theirs)
        random += moving
        same = expected.targets[place] == found.targets[place] if moving else mine == theirs
        if not same:
            what = "its target" if moving else "its content"
            raise DataError(
                "the engine's data set differs from the loader's at example "
                f"{sampled_ids(expected.length)[place]}: {what} is another one; both must be the "
                "same, in the same order"
            )
    if not random:
        return None
    return (
        f"two reads of {random} of {len(expected.contents)} examples differ, as under random "
        "transforms: of these, targets alone were compared with those of the engine's data set"
    )


def content_hash(tree: Any) -> str:
    """A hash of a nesting of tensors, arrays and plain values: types, shapes and contents.

    Example:
        >>> import torch
        >>> content_hash((torch.ones(2), 3)) == content_hash((torch.ones(2), 3))
        True
        >>> content_hash(torch.ones(2)) == content_hash(torch.ones(2, dtype=torch.float64))
        False
    """
    digest = hashlib.sha256()
    _feed(digest, tree)
    return digest.hexdigest()


def _feed(digest: Any, node: Any) -> None:
    if isinstance(node, Tensor):
        values = node.detach().cpu().contiguous()
        digest.update(f"tensor {values.dtype} {tuple(values.shape)}".encode())
        digest.update(
            values.reshape(-1).view(dtype=torch.uint8).numpy().tobytes() if values.numel() else b""
        )
    elif isinstance(node, np.ndarray):
        digest.update(f"array {node.dtype} {node.shape}".encode())
        digest.update(np.ascontiguousarray(node).tobytes())
    elif isinstance(node, Mapping):
        digest.update(f"mapping {len(node)}".encode())
        for key in node:
            digest.update(repr(key).encode())
            _feed(digest, node[key])
    elif isinstance(node, tuple | list):
        digest.update(f"sequence {len(node)}".encode())
        for part in node:
            _feed(digest, part)
    else:
        digest.update(f"{type(node).__name__} {node!r}".encode())
