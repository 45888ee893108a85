"""The loop itself: decide, fetch, choose, hand out, and learn from what the step tells.

While nothing is chosen this is the plain loop: the same batches, the same random numbers, the
same update, to the bit. Decisions use what earlier steps told, never the batch they weight.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.byproduct import Mailbox, Reported
from gradsift.clock import AbstractClock, Seconds
from gradsift.data.sources import Fetched, open_source
from gradsift.data.split import Split
from gradsift.errors import UsageError
from gradsift.gate import GateState
from gradsift.monitors.log import AbstractLog
from gradsift.monitors.moments import second_moments
from gradsift.monitors.steps import StepLog
from gradsift.nested import move, take
from gradsift.recipes.recipe import Recipe
from gradsift.records import Draw, LossFunction, Plan, ScoreUpdate, StepRecord, WeightedBatch
from gradsift.sampling.quarantine import clean
from gradsift.sampling.select import select
from gradsift.scores.base import AbstractOutputScore, Forward
from gradsift.scores.evaluate import score_examples
from gradsift.scores.objective import examine
from gradsift.scores.untouched import untouched

_logger = logging.getLogger("gradsift")


@dataclass(frozen=True, eq=False)
class Setup:
    """What a sifted loader works on, fixed when it is made.

    Attributes:
        model: trained by the user, read here.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example.
        recipe: what to do.
        split: a collated batch into inputs and targets.
        forward: how the model is called for scoring.
        device: where batches go; None follows the model.
        seed: of the draws.
        rank: of this process among data-parallel ones; None asks `torch.distributed`.
        clock: where seconds come from.
        log: where measurements go.
    """

    model: Any
    loss_fn: LossFunction
    recipe: Recipe
    split: Split
    forward: Forward
    device: torch.device | None
    seed: int
    rank: int | None
    clock: AbstractClock
    log: AbstractLog


class SiftedLoader:
    """Batches of the examples that matter; made by `gradsift.sift`.

    Iterating gives one epoch of `WeightedBatch`. ``print`` says whether examples are being chosen
    and why.

    Attributes:
        recipe: the recipe in use.
        steps: batches handed out so far.
        examples_trained: examples handed out so far.
        examples_scored: examples scored by an extra forward pass so far.
        quarantined: candidates whose score was not finite so far.
        seconds: seconds spent "loading" and "scoring" so far, by the clock.
        notices: what was said once about this run, in words.
        scores: the scores seen last, of a pool or of a trained batch; None before.
    """

    def __init__(self, loader: Any, setup: Setup) -> None:
        self.recipe = setup.recipe
        self.steps = 0
        self.examples_trained = 0
        self.examples_scored = 0
        self.quarantined = 0
        self.seconds = Seconds()
        self.notices: list[str] = []
        self.scores: Tensor | None = None
        self._loader = loader
        self._setup = setup
        self._source = open_source(loader)
        self._mailbox = Mailbox()
        self._step_log = StepLog(setup.log)
        self._gate = GateState()
        self._device = torch.device("cpu")
        self._generator = torch.Generator()
        self._start = 0.0
        self._begun = False
        self._tried = False
        self._record_due = False
        self._last_reported = -1
        if self.recipe.source == "iid" and not self._source.plain_order:
            raise UsageError(
                "recipe 'uniform-iid' draws ids from the whole data set, but the loader has "
                "a sampler or an order of its own, which defines another objective: use a "
                "map-style DataLoader with shuffle=True, or another recipe"
            )

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        recipe = self.recipe
        if recipe.source != "pool":
            return f"off: recipe {recipe.name!r} chooses no example by score"
        if recipe.gate is None:
            return f"on: recipe {recipe.name!r} draws one of {recipe.ratio:g} candidates, always"
        state = "on" if self._gate.open else "off"
        return f"{state}: {recipe.gate.reason(self._gate, recipe.ratio)}"

    @property
    def gate(self) -> dict[str, Any] | None:
        """The gate's state, reason and the step at which it first opened; None without a gate."""
        gate = self.recipe.gate
        if gate is None:
            return None
        return {
            "state": "on" if self._gate.open else "off",
            "reason": gate.reason(self._gate, self.recipe.ratio),
            "opened_at_step": self._gate.opened_at_step,
        }

    def __iter__(self) -> Iterator[WeightedBatch]:
        self._begin()
        steps = self._source.epoch(self._plan)
        while (fetched := self._fetch(steps)) is not None:
            batch = self._prepare(fetched)
            self._record_due = self._step_log.due(self.steps)
            self.steps += 1
            self.examples_trained += len(batch)
            yield batch
            self._setup.clock.charge(trained=len(batch))
            self._collect()

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        setup = self._setup
        self._device = setup.device or _device_of(setup.model)
        rank = _rank() if setup.rank is None else setup.rank
        self._generator.manual_seed((setup.seed * 1_000_003 + rank) % 2**63)
        self._start = setup.clock.now()
        if self.recipe.biased:
            self._notice(f"recipe {self.recipe.name!r} is biased on purpose: see its docstring")
        if self.recipe.source == "pool" and _has_batch_statistics(setup.model):
            self._notice(
                "the model has BatchNorm in train mode: its loss is no sum over examples, so "
                "weights keep no gradient unbiased, and running statistics follow the examples "
                "picked; recalibrate them before evaluation, or use GroupNorm"
            )

    def _plan(self, batch_size: int) -> Plan:
        recipe = self.recipe
        if recipe.source == "iid":
            high = self._source.examples or 0
            ids = torch.randint(high, (batch_size,), generator=self._generator)
            return Plan(draw=Draw(ids, torch.ones(batch_size, dtype=torch.float64), batch_size))
        if recipe.source == "loader" or (recipe.gate is not None and not self._gate.open):
            return Plan()
        if recipe.gate is not None:
            return recipe.gate.plan(self._gate, batch_size, recipe.ratio)
        return Plan(candidates=round(recipe.ratio * batch_size), size=batch_size)

    def _fetch(self, steps: Iterator[Fetched]) -> Fetched | None:
        with self._setup.clock.timing(self.seconds, "loading"):
            fetched = next(steps, None)
            if fetched is None:
                return None
            return replace(fetched, data=move(fetched.data, self._device, non_blocking=True))

    def _prepare(self, fetched: Fetched) -> WeightedBatch:
        inputs, targets = self._setup.split(fetched.data)
        count = len(fetched.ids)
        if not self._tried:
            self._try(inputs, targets, count)
        if fetched.plan.size is None:
            if self.recipe.gate is not None and not self._scores_for_free:
                self._observe(self._score(inputs, targets, count, fetched.batch_size))
            return self._batch(inputs, targets, fetched.ids, fetched.plan.draw)
        size = min(fetched.plan.size, count)
        scores = self._score(inputs, targets, count, fetched.batch_size)
        with self._setup.clock.timing(self.seconds, "scoring"):
            recipe = self.recipe
            draw = select(
                scores, recipe.distribution, recipe.draw, size, self._generator, recipe.correction
            )
            chosen = draw.positions.to(self._device)
            inputs, targets = (take(side, chosen, count) for side in (inputs, targets))
        self._observe(scores)
        return self._batch(inputs, targets, fetched.ids[draw.positions], draw)

    def _batch(self, inputs: Any, targets: Any, ids: Tensor, draw: Draw | None) -> WeightedBatch:
        kind = torch.get_default_dtype()
        weights = torch.ones(len(ids)) if draw is None else draw.weights
        return WeightedBatch(
            inputs=inputs,
            targets=targets,
            weights=weights.to(self._device, kind),
            indices=ids.to(self._device),
            size=len(ids) if draw is None else draw.size,
            drawn=draw is not None,
            loss_fn=self._setup.loss_fn,
            report=self._report,
        )

    @property
    def _scores_for_free(self) -> bool:
        return isinstance(self.recipe.score, AbstractOutputScore)

    def _score(self, inputs: Any, targets: Any, count: int, chunk: int) -> Tensor:
        setup = self._setup
        with setup.clock.timing(self.seconds, "scoring"):
            scores = score_examples(
                self.recipe.score,
                setup.model,
                setup.loss_fn,
                inputs,
                targets,
                count=count,
                chunk=chunk,
                forward=setup.forward,
            ).cpu()
            setup.clock.charge(scored=count)
        self.examples_scored += count
        return scores

    def _observe(self, scores: Tensor) -> None:
        """Looks at fresh scores: the gate learns from them, what is not finite is counted."""
        cleaned = clean(scores)
        if cleaned.quarantined and not self.quarantined:
            self._notice(
                f"{cleaned.quarantined} of {len(scores)} scores are not finite: they count as "
                "the root mean square of the others"
            )
        self.quarantined += cleaned.quarantined
        self.scores = scores
        gate = self.recipe.gate
        if gate is None:
            return
        before, ratio = self._gate, self.recipe.ratio
        self._gate = gate.observe(before, cleaned.values, self.steps, ratio)
        if before.observed == 0 or before.open != self._gate.open:
            self._write_gate()

    def _try(self, inputs: Any, targets: Any, count: int) -> None:
        """A dry run of everything that can fail later, without a trace in the run."""
        self._tried = True
        if self.recipe.source != "pool":
            return
        setup = self._setup
        everything = torch.arange(count, device=self._device)
        take(inputs, everything, count)
        take(targets, everything, count)
        score = self.recipe.score
        if isinstance(score, AbstractOutputScore):
            with untouched(setup.model, score.mode):
                outputs = score.outputs(setup.model, setup.forward, inputs)
                for notice in examine(setup.loss_fn, outputs, targets):
                    self._notice(notice)
        fresh = score_examples(
            score, setup.model, setup.loss_fn, inputs, targets, count=count, forward=setup.forward
        )
        clean(fresh)

    def _report(self, batch: WeightedBatch, outputs: Any, losses: Tensor) -> None:
        """Called by the training step: keeps what it tells, without waiting for it."""
        if self._last_reported == self.steps:
            return
        self._last_reported = self.steps
        feeds_gate = self.recipe.gate is not None and not batch.drawn
        score = self.recipe.score
        wanted = feeds_gate or (self._record_due and batch.drawn)
        if not isinstance(score, AbstractOutputScore) or not wanted:
            update = None
        else:
            values = score.of_outputs(batch.loss_fn, outputs, batch.targets)
            update = ScoreUpdate(batch.indices, values, self.steps)
        if update is not None or self._record_due:
            self._mailbox.post(Reported(batch, losses.detach(), update))

    def _collect(self) -> None:
        """Reads what the last step told, now that the next one begins."""
        for report in self._mailbox.collect():
            report.batch.check_finite(report.losses)
            if report.update is not None and not report.batch.drawn:
                self._observe(report.update.score)
            if self._record_due:
                self._write_step(report)
        self._say_if_silent()

    def _say_if_silent(self) -> None:
        waits = self.recipe.gate is not None and not self._gate.open and self._scores_for_free
        if waits and self.steps == 2 and self._last_reported < 0:
            self._notice(
                "no scores arrive, so sampling stays off: compute the loss by "
                "batch.loss(outputs), which reports them"
            )

    def _write_step(self, report: Reported) -> None:
        weights = report.batch.weights.cpu().double()
        kappa = None
        if report.update is not None and report.batch.drawn:
            kappa = second_moments(report.update.score, weights, report.batch.size).efficiency
        record = StepRecord(
            drawn=report.batch.drawn,
            loss=float((weights * report.losses.cpu().double()).sum() / report.batch.size),
            tau=None if self.recipe.gate is None else self._gate.tau,
            kappa=kappa,
            largest_weight=float(weights.max()) if len(weights) else 0.0,
            trained=self.examples_trained,
            scored=self.examples_scored,
            quarantined=self.quarantined,
        )
        self._step_log.write(self.steps, self._now(), record)

    def _write_gate(self) -> None:
        state = self.gate or {}
        tau = self._gate.tau
        self._setup.log.write("gate", step=self.steps, seconds=self._now(), tau=tau, **state)

    def _notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)
            _logger.warning(text)
            self._setup.log.write("event", step=self.steps, seconds=self._now(), text=text)

    def _now(self) -> float:
        return self._setup.clock.now() - self._start


def _device_of(model: Any) -> torch.device:
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return torch.device("cpu")


def _has_batch_statistics(model: Any) -> bool:
    if not isinstance(model, nn.Module):
        return False
    kind = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, kind) and module.training for module in model.modules())


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0
