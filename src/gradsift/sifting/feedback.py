"""What steps tell, and what follows from it: the gate's state, notices, lines in the log.

Everything that flows back does so through here, by value and one step late. The gate learns from
fresh scores; the rest is only looked at.
"""

import logging
from typing import Any

from torch import Tensor

from gradsift.gate import GateState
from gradsift.monitors.moments import second_moments
from gradsift.monitors.steps import StepLog
from gradsift.records import ScoreUpdate, StepRecord, WeightedBatch
from gradsift.sampling.quarantine import neutralise
from gradsift.scores.base import AbstractOutputScore
from gradsift.sifting.mailbox import Mailbox, Reported
from gradsift.sifting.setup import Counts, Setup

_logger = logging.getLogger("gradsift")


class Feedback:
    """Collects what training steps report, and keeps the gate's state.

    Attributes:
        gate: what the gate has seen.
        scores: the scores seen last, of a pool or of a trained batch; None before.
        notices: what was said once about this run.
    """

    def __init__(self, setup: Setup, counts: Counts) -> None:
        self.gate = GateState()
        self.scores: Tensor | None = None
        self.notices: list[str] = []
        self._setup = setup
        self._counts = counts
        self._mailbox = Mailbox()
        self._step_log = StepLog(setup.log)
        self._start = 0.0
        self._record_due = False
        self._last_reported = -1

    def begin(self) -> None:
        """Starts the seconds of the log."""
        self._start = self._setup.clock.now()

    def hand_out(self) -> None:
        """A batch is about to be handed out: decides whether its step is recorded."""
        self._record_due = self._step_log.due(self._counts.steps)

    def report(self, batch: WeightedBatch, outputs: Any, losses: Tensor) -> None:
        """Called by the training step: keeps what it tells, without waiting for it."""
        if self._last_reported == self._counts.steps:
            return
        self._last_reported = self._counts.steps
        recipe, score = self._setup.recipe, self._setup.recipe.score
        feeds_gate = recipe.gate is not None and not batch.drawn
        is_recorded = self._record_due and recipe.source == "pool" and batch.drawn
        update = None
        if isinstance(score, AbstractOutputScore) and (feeds_gate or is_recorded):
            values = score.of_outputs(batch.loss_fn, outputs, batch.targets)
            update = ScoreUpdate(batch.indices, values, self._counts.steps)
        if update is not None or self._record_due or losses.device.type != "cpu":
            self._mailbox.post(Reported(batch, losses.detach(), update))

    def collect(self) -> None:
        """Reads what the last step told, now that the next one begins.

        Raises:
            TrainingError: naming examples whose loss was not finite, where the step could not
                look without waiting for its device.
        """
        for report in self._mailbox.collect():
            if report.batch.weights.device.type != "cpu":
                report.batch.check_finite(report.losses)
            if report.update is not None and not report.batch.drawn:
                self.observe(report.update.score)
            if self._record_due:
                self._write_step(report)
        self._say_if_silent()

    def observe(self, scores: Tensor) -> None:
        """Looks at fresh scores: the gate learns from them, what is not finite is counted."""
        cleaned = neutralise(scores)
        if cleaned.quarantined and not self._counts.quarantined:
            self.notice(
                f"{cleaned.quarantined} of {len(scores)} scores are not finite: they count as "
                "the root mean square of the others"
            )
        self._counts.quarantined += cleaned.quarantined
        self.scores = scores
        recipe = self._setup.recipe
        if recipe.gate is None:
            return
        before = self.gate
        self.gate = recipe.gate.observe(before, cleaned.values, self._counts.steps, recipe.ratio)
        if before.observed == 0 or before.open != self.gate.open:
            self._setup.log.write(
                "gate",
                step=self._counts.steps,
                seconds=self._now(),
                tau=self.gate.tau,
                **self.summary() or {},
            )

    def summary(self) -> dict[str, Any] | None:
        """State, reason and the step at which the gate first opened; None without a gate."""
        gate, ratio = self._setup.recipe.gate, self._setup.recipe.ratio
        if gate is None:
            return None
        return {
            "state": "on" if self.gate.open else "off",
            "reason": gate.reason(self.gate, ratio),
            "opened_at_step": self.gate.opened_at_step,
        }

    def notice(self, text: str) -> None:
        """Says something about the run, once: as a warning of the log ``gradsift``, and kept."""
        if text in self.notices:
            return
        self.notices.append(text)
        _logger.warning(text)
        self._setup.log.write("event", step=self._counts.steps, seconds=self._now(), text=text)

    def _say_if_silent(self) -> None:
        recipe = self._setup.recipe
        waits = recipe.gate is not None and isinstance(recipe.score, AbstractOutputScore)
        if waits and self._counts.steps == 2 and self._last_reported < 0:
            self.notice(
                "no scores arrive, so sampling stays off: compute the loss by "
                "batch.loss(outputs), which reports them"
            )

    def _write_step(self, report: Reported) -> None:
        batch = report.batch
        weights = batch.weights.cpu().double()
        kappa = None
        if report.update is not None and batch.drawn:
            kappa = second_moments(report.update.score, weights, batch.size).efficiency
        record = StepRecord(
            drawn=batch.drawn,
            loss=float((weights * report.losses.cpu().double()).sum() / batch.size),
            tau=None if self._setup.recipe.gate is None else self.gate.tau,
            kappa=kappa,
            largest_weight=float(weights.max()) if len(weights) else 0.0,
            trained=self._counts.trained,
            scored=self._counts.scored,
            quarantined=self._counts.quarantined,
        )
        self._step_log.write(self._counts.steps, self._now(), record)

    def _now(self) -> float:
        return self._setup.clock.now() - self._start
