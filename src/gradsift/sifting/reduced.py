"""Pools scored by reducible loss: what an example still costs beyond what it always will."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from gradsift.data.sources import MapSource
from gradsift.errors import UsageError
from gradsift.fitting.held_out import Holdout, held_out_losses
from gradsift.records import PLAIN, Plan
from gradsift.scores.untouched import random_states
from gradsift.sifting.candidates import Chooser
from gradsift.sifting.policy import AbstractPolicy
from gradsift.sifting.ranks import AbstractRanks
from gradsift.sifting.rescoring import fetch_examples
from gradsift.sifting.setup import device_of
from gradsift.sifting.wrapped import sharded


class ReducedPool(AbstractPolicy):
    """A pool in every step, once the irreducible losses of all examples are known.

    They are fitted after the first step, in time that counts as scoring. Of several processes the
    first one fits, and tells the others.

    Args:
        holdout: how they are fitted.
        chooser: of the recipe.
        source: the user's loader, whose data have ids.

    Attributes:
        irreducible: held-out loss of every example; None before.
    """

    def __init__(self, holdout: Holdout, chooser: Chooser, source: MapSource) -> None:
        super().__init__()
        self.irreducible: Tensor | None = None
        self._holdout = holdout
        self._chooser = chooser
        self._source = source
        self._batch_size = 1

    def join(self, ranks: AbstractRanks) -> None:
        """The first process fits alone, so it needs all parameters.

        Raises:
            UsageError: where processes hold parts of them.
        """
        super().join(ranks)
        if ranks.size > 1 and sharded(self._chooser.setup.model):
            raise UsageError(
                f"recipe {self._chooser.setup.recipe.name!r} received a model whose parameters are "
                "sharded over processes, expected a whole one to copy: use DDP or another recipe"
            )

    def plan(self, batch_size: int) -> Plan:
        """``r·b`` candidates for b examples."""
        self._batch_size = batch_size
        if self.irreducible is None:
            return PLAIN
        ratio = self._chooser.setup.recipe.ratio
        return Plan(candidates=round(ratio * batch_size), size=batch_size)

    def relate(self, scores: Tensor, ids: Tensor) -> Tensor:
        """``ln(1 + exp(ℓ − ℓ_irreducible))``: above zero, in the order of the difference."""
        if self.irreducible is None:
            return scores
        return F.softplus(scores.double() - self.irreducible[ids])

    def search(self) -> float:
        """Fits the irreducible losses, once."""
        if self.irreducible is not None:
            return 0.0
        clock = self._chooser.setup.clock
        before = clock.now()
        with clock.timing(self._chooser.seconds, "scoring"):
            self.irreducible = self.ranks.lead(self._fit() if self.ranks.leads else None)
        return clock.now() - before

    def state_dict(self) -> dict[str, Any]:
        """The irreducible losses."""
        known = None if self.irreducible is None else self.irreducible.clone()
        return {**super().state_dict(), "irreducible": known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """They are not fitted again."""
        super().load_state_dict(state)
        self.irreducible = state["irreducible"]

    def __str__(self) -> str:
        recipe = self._chooser.setup.recipe
        if self.irreducible is None:
            return f"off: recipe {recipe.name!r} fits its hold-out models after the first step"
        return f"on: recipe {recipe.name!r} keeps one of {recipe.ratio:g} candidates, always"

    def _fit(self) -> Tensor:
        setup, examples = self._chooser.setup, self._source.examples or 0
        device = device_of(setup)
        with random_states([device.index or 0] if device.type == "cuda" else []):
            found = held_out_losses(
                setup.model,
                setup.loss_fn,
                lambda ids: fetch_examples(self._source, setup, ids),
                examples,
                self._batch_size,
                self._chooser.generator,
                holdout=self._holdout,
                forward=setup.forward,
            )
        seen = self._holdout.epochs * examples
        self._chooser.counts.scored += seen
        setup.clock.charge(trained=seen, scored=seen)
        return found
