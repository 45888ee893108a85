"""From what arrived for a step to the batch that is handed out: inspected, scored, drawn from."""

from typing import Any

import torch
from torch import Tensor

from gradsift.data.sources import Fetched
from gradsift.records import Draw, WeightedBatch
from gradsift.sifting.candidates import Candidates, Chooser
from gradsift.sifting.feedback import Feedback
from gradsift.sifting.policy import AbstractPolicy
from gradsift.sifting.setup import Setup


class Preparing:
    """Prepares one batch after the other.

    Attributes:
        rehearsed: whether the dry run of all that can fail later is over, or not needed.
    """

    def __init__(
        self, setup: Setup, chooser: Chooser, policy: AbstractPolicy, feedback: Feedback
    ) -> None:
        self._setup = setup
        self._chooser = chooser
        self._policy = policy
        self._feedback = feedback
        self._ones = torch.ones(0)
        self.rehearsed = not setup.recipe.scored

    def prepare(self, fetched: Fetched, data: Any, device: torch.device) -> WeightedBatch:
        """The batch to hand out, of data that are on the device already."""
        arrived = Candidates(*self._setup.split(data), count=len(fetched.portion))
        if not self.rehearsed:
            self.rehearsed = True
            for notice in self._chooser.rehearse(arrived, fetched.batch_size):
                self._feedback.notice(notice)
        if fetched.plan.source == "off":
            scores = self._policy.inspect(arrived, fetched.portion, fetched.batch_size)
            if scores is not None:
                self._feedback.see(scores)
        if fetched.plan.size is None:
            return self._batch(arrived, fetched.portion.given, fetched.plan.draw, device)
        scores = self._chooser.score(arrived, fetched.batch_size)
        scores = self._policy.relate(scores, fetched.portion.ids)
        size = min(fetched.plan.size, arrived.count)
        chosen, draw = self._chooser.choose(arrived, scores, size, fetched.plan.draw)
        self._feedback.see(scores)
        return self._batch(chosen, fetched.portion.ids[draw.positions], draw, device)

    def _batch(
        self,
        chosen: Candidates,
        ids: Tensor | list[Any],
        draw: Draw | None,
        device: torch.device,
    ) -> WeightedBatch:
        weights = (
            self._even(len(ids), device)
            if draw is None
            else draw.weights.to(device, torch.get_default_dtype())
        )
        return WeightedBatch(
            inputs=chosen.inputs,
            targets=chosen.targets,
            weights=weights,
            ids=ids,
            size=len(ids) if draw is None else draw.size,
            drawn=draw is not None,
            loss_fn=self._setup.loss_fn,
            report=self._feedback.report,
        )

    def _even(self, count: int, device: torch.device) -> Tensor:
        """Weights of one, which take the memory of one and refuse to be written to."""
        if len(self._ones) != count:
            self._ones = torch.ones(1, device=device).expand(count)
        return self._ones
