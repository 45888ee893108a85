"""A pool of candidates: scored as the model is now, and drawn from."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gradsift.clock import Seconds
from gradsift.nested import take
from gradsift.records import Draw
from gradsift.sampling.quarantine import clean
from gradsift.sampling.resampling import Resampler
from gradsift.sampling.select import select
from gradsift.sampling.two_stage import second_stage
from gradsift.scores.base import AbstractOutputScore
from gradsift.scores.evaluate import score_examples
from gradsift.scores.objective import examine
from gradsift.scores.untouched import untouched
from gradsift.sifting.setup import Counts, Setup


@dataclass(frozen=True, eq=False)
class Candidates:
    """Examples on the model's device, as inputs and targets.

    Attributes:
        inputs: what the model takes.
        targets: what the loss takes.
        count: how many examples there are.
    """

    inputs: Any
    targets: Any
    count: int

    def take(self, positions: Tensor) -> "Candidates":
        """The candidates at some positions."""
        inputs, targets = (
            take(side, positions, self.count) for side in (self.inputs, self.targets)
        )
        return Candidates(inputs, targets, len(positions))


@dataclass(frozen=True, eq=False)
class Chooser:
    """Scores candidates and draws from them.

    Attributes:
        setup: what to do.
        counts: scored examples are counted here.
        seconds: time goes to "scoring".
        generator: of the draws.
    """

    setup: Setup
    counts: Counts
    seconds: Seconds
    generator: torch.Generator = field(default_factory=torch.Generator)

    @cached_property
    def resampler(self) -> Resampler | None:
        """Where the recipe weighs a pool by powers; it remembers earlier pools."""
        resampling = self.setup.recipe.resampling
        return None if resampling is None else Resampler(resampling)

    def score(self, candidates: Candidates, batch_size: int) -> Tensor:
        """One score for each candidate, in host memory.

        A forward pass takes two batches at a time: without a graph it needs no more memory than
        a training step on one, which is known to fit.
        """
        setup = self.setup
        with setup.clock.timing(self.seconds, "scoring"):
            scores = self._scores(candidates, 2 * batch_size).cpu()
            setup.clock.charge(scored=candidates.count)
        self.counts.scored += candidates.count
        return scores

    def choose(
        self, candidates: Candidates, scores: Tensor, size: int, first: Draw | None = None
    ) -> tuple[Candidates, Draw]:
        """Draws ``size`` candidates by their scores.

        Args:
            candidates: what to draw from.
            scores: one for each.
            size: how many.
            first: how the candidates were drawn themselves; None for candidates as they came.
        """
        recipe = self.setup.recipe
        with self.setup.clock.timing(self.seconds, "scoring"):
            if first is not None:
                draw = second_stage(first, scores, size, self.generator)
            elif self.resampler is not None:
                draw = self.resampler.draw(scores, size, self.generator)
            else:
                draw = select(
                    scores,
                    recipe.distribution,
                    recipe.draw,
                    size,
                    self.generator,
                    recipe.correction,
                )
            return candidates.take(draw.positions), draw

    def rehearse(self, candidates: Candidates, batch_size: int) -> list[str]:
        """A dry run of everything that can fail later, on one batch and without a trace.

        Returns:
            What should be said about the loss, in words.

        Raises:
            UsageError: for a batch that cannot be cut, a loss that is no objective, or a score
                that is not one number ≥ 0 per example.
        """
        setup = self.setup
        notices: list[str] = []
        candidates = candidates.take(torch.arange(min(batch_size, candidates.count)))
        score = setup.recipe.score
        if isinstance(score, AbstractOutputScore):
            with untouched(setup.model, score.mode):
                outputs = score.outputs(setup.model, setup.forward, candidates.inputs)
                notices = examine(setup.loss_fn, outputs, candidates.targets)
        clean(self._scores(candidates, candidates.count))
        return notices

    def _scores(self, candidates: Candidates, chunk: int) -> Tensor:
        setup = self.setup
        return score_examples(
            setup.recipe.score,
            setup.model,
            setup.loss_fn,
            candidates.inputs,
            candidates.targets,
            count=candidates.count,
            chunk=chunk,
            forward=setup.forward,
        )
