"""The loop itself. While nothing is chosen it is the plain loop, to the bit.

One step, in order: collect what the last step told, decide, fetch, and, where examples are
chosen, score the candidates and draw. A decision uses what earlier steps told, never the batch
that it weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.clock import Seconds
from gradsift.data.sources import Fetched, open_source
from gradsift.nested import move
from gradsift.records import Draw, WeightedBatch
from gradsift.sampling.table import ScoreTable
from gradsift.sifting.candidates import Candidates, Chooser
from gradsift.sifting.feedback import Feedback
from gradsift.sifting.policies import choose_policy
from gradsift.sifting.setup import Counts, Setup, batch_norms


class SiftedLoader:
    """Batches of the examples that matter; made by `gradsift.sift`.

    Iterating gives one epoch of `WeightedBatch`. ``print`` says whether examples are being chosen
    and why.

    Attributes:
        recipe: the recipe in use.
        seconds: seconds spent "loading" and "scoring" so far, by the clock.
        policy: who decides what each step takes.

    Example:
        >>> import torch, gradsift
        >>> batches = [(torch.randn(8, 2), torch.randint(3, (8,))) for _ in range(6)]
        >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
        >>> train = gradsift.sift(batches, torch.nn.Linear(2, 3), loss_fn, recipe="pool")
        >>> sum(len(batch) for batch in train), train.examples_scored, train.steps
        (48, 144, 6)
    """

    def __init__(self, loader: Any, setup: Setup) -> None:
        self.recipe = setup.recipe
        self.seconds = Seconds()
        self._setup = setup
        self._loader = loader
        self._source = open_source(loader)
        self._counts = Counts()
        self._chooser = Chooser(setup, self._counts, self.seconds)
        self.policy = choose_policy(setup, self._source, self._chooser)
        self._feedback = Feedback(setup, self._counts, self.policy)
        self._device = torch.device("cpu")
        self._begun = False
        self._rehearsed = not setup.recipe.scored

    @property
    def steps(self) -> int:
        """Batches handed out so far."""
        return self._counts.steps

    @property
    def examples_trained(self) -> int:
        """Examples handed out so far."""
        return self._counts.trained

    @property
    def examples_scored(self) -> int:
        """Examples scored by an extra forward pass so far."""
        return self._counts.scored

    @property
    def quarantined(self) -> int:
        """Scores so far that were not finite, and counted as the root mean square of others."""
        return self._counts.quarantined

    @property
    def scores(self) -> Tensor | None:
        """The scores seen last, of a pool or of a trained batch; None before."""
        return self._feedback.scores

    @property
    def table(self) -> ScoreTable | None:
        """The score table, to look at; None where none is kept."""
        return self.policy.table

    @property
    def lr_factor(self) -> float:
        """What to multiply the learning rate of the next step by: 1, unless ``spend="lr"``."""
        return self.policy.lr_factor

    @property
    def notices(self) -> tuple[str, ...]:
        """What was said once about this run, in words."""
        return tuple(self._feedback.notices)

    @property
    def gate(self) -> dict[str, Any] | None:
        """The gate's state, reason and the step at which it first opened; None without a gate."""
        return self.policy.summary()

    @property
    def engine(self) -> dict[str, Any] | None:
        """The engine's kind, and how many of its workers were lost and restarted; None without."""
        return self.policy.engine_summary

    @property
    def engine_status(self) -> dict[str, Any] | None:
        """How an engine's search goes: rate, ages in steps, versions behind; None without one."""
        return self.policy.engine_status()

    def close(self) -> None:
        """Ends what an engine runs beside the training. Nothing is searched for afterwards."""
        self.policy.close()

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        return str(self.policy)

    def __iter__(self) -> Iterator[WeightedBatch]:
        self._begin()
        clock = self._setup.clock
        steps = self._source.epoch(self.policy.plan)
        before = clock.now()
        while (fetched := next(steps, None)) is not None:
            data = move(fetched.data, self._device, non_blocking=True)
            loading = clock.now() - before
            self.seconds.add("loading", loading)
            batch = self._prepare(fetched, data)
            self._feedback.hand_out()
            self._counts.steps += 1
            self._counts.trained += len(batch)
            yield batch
            self._feedback.collect()
            now = clock.now()
            self.policy.timed(fetched.plan, now - before, loading)
            searching = self.policy.search()
            self._feedback.write_news()
            before = now + searching

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        setup = self._setup
        self._device = setup.device or _device_of(setup.model)
        rank = _rank() if setup.rank is None else setup.rank
        self._chooser.generator.manual_seed((setup.seed * 1_000_003 + rank) % 2**63)
        self._feedback.begin()
        self.policy.begin(setup.clock.now())
        if setup.recipe.biased:
            self._feedback.notice(
                f"recipe {setup.recipe.name!r} is biased on purpose: its weighted mean is not "
                "the mean over the data"
            )
        if setup.recipe.scored and self._source.one_pass:
            self._feedback.notice(
                "the loader is a one-pass stream: a pool uses several of its batches, so there "
                "are fewer steps, and their number is not known beforehand"
            )
        if setup.recipe.source == "auto" and not self._source.plain_order:
            self._feedback.notice(
                "this loader has no ids or an order of its own, which defines another objective: "
                "only pools are considered, no table"
            )
        if setup.recipe.scored and any(layer.training for layer in batch_norms(setup.model)):
            self._feedback.notice(
                "the model has BatchNorm in train mode: its loss is no sum over examples, so "
                "weights keep no gradient unbiased, and running statistics follow the examples "
                "picked; recalibrate them before evaluation, or use GroupNorm"
            )

    def _prepare(self, fetched: Fetched, data: Any) -> WeightedBatch:
        arrived = Candidates(*self._setup.split(data), count=len(fetched.ids))
        if not self._rehearsed:
            self._rehearsed = True
            for notice in self._chooser.rehearse(arrived, fetched.batch_size):
                self._feedback.notice(notice)
        if fetched.plan.source == "off":
            scores = self.policy.inspect(arrived, fetched.ids, fetched.batch_size)
            if scores is not None:
                self._feedback.see(scores)
        if fetched.plan.size is None:
            return self._batch(arrived, fetched.ids, fetched.plan.draw)
        scores = self._chooser.score(arrived, fetched.batch_size)
        size = min(fetched.plan.size, arrived.count)
        chosen, draw = self._chooser.choose(arrived, scores, size, fetched.plan.draw)
        self._feedback.see(scores)
        return self._batch(chosen, fetched.ids[draw.positions], draw)

    def _batch(self, chosen: Candidates, ids: Tensor, draw: Draw | None) -> WeightedBatch:
        weights = (
            torch.ones(len(ids), device=self._device)
            if draw is None
            else draw.weights.to(self._device, torch.get_default_dtype())
        )
        return WeightedBatch(
            inputs=chosen.inputs,
            targets=chosen.targets,
            weights=weights,
            indices=ids.to(self._device),
            size=len(ids) if draw is None else draw.size,
            drawn=draw is not None,
            loss_fn=self._setup.loss_fn,
            report=self._feedback.report,
        )


def _device_of(model: Any) -> torch.device:
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return torch.device("cpu")


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0
