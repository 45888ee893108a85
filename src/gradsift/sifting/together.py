"""Several processes that meet through `torch.distributed`, in a group of their own on the host.

Every exchange begins with the same small message, so a process that has failed or has no batch left
is understood wherever the others are. Ids travel as int64, apart from the scores.
"""

from collections.abc import Sequence
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.records import ScoreUpdate
from gradsift.sifting.observations import Scored
from gradsift.sifting.ranks import AbstractRanks, Alone, EpochOverError, TogetherError

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: one of them may be evaluating."""

NO_LABEL = torch.iinfo(torch.int64).min


class _Doing(IntEnum):
    """Where a process is when they meet."""

    BATCH = 0
    ENDED = 1
    SCORES = 2
    LEADING = 3
    FAILED = 4


class Together(AbstractRanks):
    """The processes of the default group; every one of them makes this object at the same time.

    Args:
        description: what has to be the same everywhere, such as the recipe and the seed.
        patience: how long to wait for the others.

    Raises:
        UsageError: where the descriptions differ.
    """

    def __init__(self, description: str, patience: timedelta) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._patience = patience
        self._group: Any = dist.new_group(backend="gloo", timeout=patience)
        self._wish = False
        found = self._objects(description)
        if len(set(found)) > 1:
            other = next(k for k, theirs in enumerate(found) if theirs != description)
            raise UsageError(
                f"rank {other} sifts {found[other]}, rank {self.rank} sifts {description}: give "
                "every rank the same arguments"
            )

    def agree(self, examples: int | None, *, wish: bool) -> list[int]:
        """Meets the others before a batch is handed out."""
        doing = _Doing.ENDED if examples is None else _Doing.BATCH
        met = self._meet(doing, examples or 0, wish=wish)
        self._wish = bool(met[0][2])
        return [count for _, count, _ in met]

    def follows(self, wish: bool) -> bool:
        """What the first process wished when they last met."""
        del wish
        return self._wish

    def gather(self, found: Sequence[Scored]) -> list[Scored]:
        """One update of all drawn examples and one of all others, by rank."""
        whole, real = _packed(found)
        counts = [count for _, count, _ in self._meet(_Doing.SCORES, len(whole))]
        if not any(counts):
            return []
        return _unpacked(self._rows(whole, counts), self._rows(real, counts))

    def gather_scores(self, scores: Tensor) -> Tensor:
        """Scores by rank, in float64."""
        values = scores.double().reshape(-1, 1)
        counts = [count for _, count, _ in self._meet(_Doing.SCORES, len(values))]
        return self._rows(values, counts)[:, 0]

    def lead(self, value: Any) -> Any:
        """The value of the first process."""
        self._meet(_Doing.LEADING, 0)
        return self._objects(value if self.rank == 0 else None)[0]

    def fail(self, error: Exception) -> None:
        """Meets the others once more and leaves; where they do not come, that is said by them."""
        try:
            self._heard(_Doing.FAILED, 0)
            self._objects(str(error) or type(error).__name__)
        except TogetherError:
            return

    def _meet(self, doing: _Doing, count: int, *, wish: bool = False) -> list[list[int]]:
        met = self._heard(doing, count, wish=wish)
        places = [_Doing(where) for where, _, _ in met]
        if _Doing.FAILED in places:
            told = self._objects(None)
            first = places.index(_Doing.FAILED)
            raise TogetherError(f"rank {first} stopped: {told[first]}")
        if _Doing.ENDED in places:
            if doing in (_Doing.BATCH, _Doing.SCORES):
                raise EpochOverError
        elif len(set(places)) > 1:
            names = ", ".join(place.name for place in places)
            raise TogetherError(
                f"the ranks are at different points of the loop ({names}): every rank takes the "
                "same steps, and calls batch.loss in the same ones"
            )
        return met

    def _heard(self, doing: _Doing, count: int, *, wish: bool = False) -> list[list[int]]:
        mine = torch.tensor([doing, count, wish], dtype=torch.int64)
        heard = [torch.empty_like(mine) for _ in range(self.size)]
        self._waiting(dist.all_gather, heard, mine)
        return [message.tolist() for message in heard]

    def _rows(self, mine: Tensor, counts: list[int]) -> Tensor:
        """Rows of every rank, one below the other; each sends as many as the longest has."""
        longest = max(counts)
        sent = torch.zeros(longest, mine.shape[1], dtype=mine.dtype)
        sent[: len(mine)] = mine
        heard = [torch.empty_like(sent) for _ in counts]
        self._waiting(dist.all_gather, heard, sent)
        return torch.cat([part[:count] for part, count in zip(heard, counts, strict=True)])

    def _objects(self, mine: Any) -> list[Any]:
        heard: list[Any] = [None] * self.size
        self._waiting(dist.all_gather_object, heard, mine)
        return heard

    def _waiting(self, exchange: Any, heard: list[Any], mine: Any) -> None:
        try:
            exchange(heard, mine, group=self._group)
        except RuntimeError as error:
            raise TogetherError(
                f"rank {self.rank} heard nothing from another rank within "
                f"{self._patience.total_seconds():g} s, or it has gone: look at the messages of "
                "the other ranks"
            ) from error


def current_rank() -> int:
    """Of this process in `torch.distributed`; 0 where that is not in use."""
    ready = dist.is_available() and dist.is_initialized()
    return dist.get_rank() if ready else 0


def find_ranks(
    rank: int | None, world_size: int | None, description: str, *, scored: bool
) -> AbstractRanks:
    """The processes that share their scores: those of `torch.distributed`, unless told otherwise.

    Args:
        rank: as given to `gradsift.sift`.
        world_size: likewise; 1 keeps a process to itself.
        description: what has to be the same on every rank.
        scored: whether there are scores to share.
    """
    ready = dist.is_available() and dist.is_initialized()
    mine, size = current_rank(), dist.get_world_size() if ready else 1
    whole = rank in (None, mine) and world_size in (None, size)
    if ready and whole and size > 1 and scored:
        return Together(description, PATIENCE)
    return Alone(mine if rank is None else rank)


def _packed(found: Sequence[Scored]) -> tuple[Tensor, Tensor]:
    """Rows of (id, label, drawn, version), and of (score, weight)."""
    whole, real = [torch.empty(0, 4, dtype=torch.int64)], [torch.empty(0, 2, dtype=torch.float64)]
    for part in found:
        update = part.update
        ids = update.index.cpu()
        label = torch.full_like(ids, NO_LABEL) if update.label is None else update.label.cpu()
        drawn = torch.full_like(ids, int(part.drawn))
        version = torch.full_like(ids, update.version)
        whole.append(torch.stack([ids, label, drawn, version], 1))
        scores, weights = update.score.cpu().double(), part.weights.cpu().double()
        real.append(torch.stack([scores, weights], 1))
    return torch.cat(whole), torch.cat(real)


def _unpacked(whole: Tensor, real: Tensor) -> list[Scored]:
    found = []
    for drawn in (False, True):
        of_kind = whole[:, 2] == int(drawn)
        if not bool(of_kind.any()):
            continue
        ids, label, _, version = whole[of_kind].unbind(1)
        scores, weights = real[of_kind].unbind(1)
        known = label if bool((label != NO_LABEL).all()) else None
        update = ScoreUpdate(ids.contiguous(), scores.contiguous(), int(version.min()), known)
        found.append(Scored(update, weights.contiguous(), drawn))
    return found
