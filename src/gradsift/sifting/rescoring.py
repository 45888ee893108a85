"""Scores of any examples, by an extra forward pass between two steps."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gradsift.data.sources import MapSource
from gradsift.nested import move
from gradsift.scores.untouched import random_states
from gradsift.sifting.candidates import Candidates, Chooser
from gradsift.sifting.ranks import AbstractRanks
from gradsift.sifting.setup import device_of


class Rescoring:
    """Reads examples by id and scores them, as a pool is scored; the loader's order stays.

    Random numbers that an example is augmented with are drawn and put back. Time goes to "loading"
    and "scoring", and every example counts as scored.

    Args:
        chooser: scores candidates.
        source: the user's loader.
    """

    def __init__(self, chooser: Chooser, source: MapSource) -> None:
        self._chooser = chooser
        self._loader = source.loader

    def scores(
        self, ids: Int64[Tensor, " n"], batch_size: int, ranks: AbstractRanks
    ) -> Float64[Tensor, " n"]:
        """The scores of some examples, in host memory; each process scores a part of them."""
        mine = ids.tensor_split(ranks.size)[ranks.rank if ranks.size > 1 else 0]
        parts = [self._score(part, batch_size) for part in mine.split(2 * batch_size) if len(part)]
        found = torch.cat([torch.empty(0, dtype=torch.float64), *parts])
        return ranks.gather_scores(found)

    def _score(self, ids: Tensor, batch_size: int) -> Tensor:
        setup, loader = self._chooser.setup, self._loader
        with setup.clock.timing(self._chooser.seconds, "loading"), random_states([]):
            batch = loader.collate_fn([loader.dataset[k] for k in ids.tolist()])
            inputs, targets = setup.split(move(batch, device_of(setup)))
        candidates = Candidates(inputs, targets, count=len(ids))
        return self._chooser.score(candidates, batch_size).double()
