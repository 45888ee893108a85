"""Examples read by id between two steps, and their scores by an extra forward pass."""

from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gradsift.data.sources import MapSource
from gradsift.nested import move
from gradsift.scores.untouched import random_states
from gradsift.sifting.candidates import Candidates, Chooser
from gradsift.sifting.ranks import AbstractRanks
from gradsift.sifting.setup import Setup, device_of


def fetch_examples(source: MapSource, setup: Setup, ids: Tensor) -> tuple[Any, Any]:
    """Inputs and targets of some examples, on the model's device; the loader's order stays."""
    loader = source.loader
    batch = loader.collate_fn([loader.dataset[k] for k in ids.tolist()])
    return setup.split(move(batch, device_of(setup)))


class Rescoring:
    """Scores examples by id, as a pool is scored.

    Random numbers that an example is augmented with are drawn and put back. Time goes to "loading"
    and "scoring", and every example counts as scored.

    Args:
        chooser: scores candidates.
        source: the user's loader.
    """

    def __init__(self, chooser: Chooser, source: MapSource) -> None:
        self._chooser = chooser
        self._source = source

    def scores(
        self, ids: Int64[Tensor, " n"], batch_size: int, ranks: AbstractRanks
    ) -> Float64[Tensor, " n"]:
        """The scores of at least one example, in host memory; each process scores a part of them.

        All score as many: a model whose parameters are sharded needs all of them in each pass.
        """
        share = -(-len(ids) // ranks.size)
        padded = torch.cat([ids, ids[:1].expand(share * ranks.size - len(ids))])
        mine = padded.split(share)[ranks.rank] if ranks.size > 1 else ids
        parts = [self._score(part, batch_size) for part in mine.split(2 * batch_size)]
        return ranks.gather_scores(torch.cat(parts))[: len(ids)]

    def _score(self, ids: Tensor, batch_size: int) -> Tensor:
        setup = self._chooser.setup
        with setup.clock.timing(self._chooser.seconds, "loading"), random_states([]):
            inputs, targets = fetch_examples(self._source, setup, ids)
        candidates = Candidates(inputs, targets, count=len(ids))
        return self._chooser.score(candidates, batch_size).double()
