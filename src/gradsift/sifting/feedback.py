"""What steps tell, on its way to the policy, to the notices and to the log.

Everything that flows back does so through here, by value and one step late. The policy learns from
it; the rest is only looked at.
"""

import logging
import math
from typing import Any

from torch import Tensor

from gradsift.monitors.moments import second_moments
from gradsift.monitors.steps import StepLog
from gradsift.records import StepRecord, WeightedBatch
from gradsift.sampling.quarantine import neutralise
from gradsift.scores.base import AbstractOutputScore
from gradsift.sifting.mailbox import Mailbox, Reported
from gradsift.sifting.observations import Observations, Scored
from gradsift.sifting.policy import AbstractPolicy
from gradsift.sifting.setup import Counts, Setup

_logger = logging.getLogger("gradsift")


class Feedback:
    """Collects what training steps report, and hands it to the policy.

    Attributes:
        scores: the scores seen last, of a pool or of a trained batch; None before.
        notices: what was said once about this run.
    """

    def __init__(self, setup: Setup, counts: Counts, policy: AbstractPolicy) -> None:
        self.scores: Tensor | None = None
        self.notices: list[str] = []
        self._setup = setup
        self._counts = counts
        self._policy = policy
        self._mailbox = Mailbox()
        self._step_log = StepLog(setup.log)
        self._start = 0.0
        self._record_due = False
        score = setup.recipe.score
        self._observations: Observations | None = None
        if isinstance(score, AbstractOutputScore):
            self._observations = Observations(score, setup.loss_fn, policy.window)
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
        scores: Tensor | None = None
        found: list[Scored] = []
        if self._observations is not None:
            if self._policy.wants_scores(drawn=batch.drawn):
                before = self._setup.clock.now()
                found = self._observations.add(batch, outputs, self._counts.steps)
                self._policy.observed(self._setup.clock.now() - before, drawn=batch.drawn)
            if self._record_due and batch.drawn and self._setup.recipe.scored:
                scores = self._observations.score(outputs, batch.targets)
        if found or self._record_due or losses.device.type != "cpu":
            self._mailbox.post(Reported(batch, losses.detach(), scores, tuple(found)))

    def collect(self) -> None:
        """Reads what the last step told, now that the next one begins.

        Raises:
            TrainingError: naming examples whose loss was not finite, where the step could not
                look without waiting for its device.
        """
        for report in self._mailbox.collect():
            if report.batch.weights.device.type != "cpu":
                report.batch.check_finite(report.losses)
            for found in report.scored:
                self.look(found.update.score)
                weights = found.weights.cpu().double()
                self._policy.learn(found.update, weights, drawn=found.drawn)
            if self._record_due:
                self._write_step(report)
        self._say_if_silent()

    def look(self, scores: Tensor) -> None:
        """Looks at fresh scores: what is not finite is counted."""
        self.scores = scores
        if math.isfinite(float(scores.sum())):
            return
        quarantined = neutralise(scores).quarantined
        if quarantined and not self._counts.quarantined:
            self.notice(
                f"{quarantined} of {len(scores)} scores are not finite: they count as "
                "the root mean square of the others"
            )
        self._counts.quarantined += quarantined

    def see(self, scores: Tensor) -> None:
        """Looks at the fresh scores of a pool, and lets the policy learn from them."""
        self.look(scores)
        self._policy.see(scores, self._counts.steps)

    def write_news(self) -> None:
        """Writes down what the policy has decided, and says what it has to say."""
        for values in self._policy.news:
            self._setup.log.write("gate", step=self._counts.steps, seconds=self._now(), **values)
        self._policy.news.clear()
        for text in self._policy.said:
            self.notice(text)
        self._policy.said.clear()

    def notice(self, text: str) -> None:
        """Says something about the run, once: as a warning of the log ``gradsift``, and kept."""
        if text in self.notices:
            return
        self.notices.append(text)
        _logger.warning(text)
        self._setup.log.write("event", step=self._counts.steps, seconds=self._now(), text=text)

    def _say_if_silent(self) -> None:
        waits = self._policy.learns and self._observations is not None
        if waits and self._counts.steps == 2 and self._last_reported < 0:
            self.notice(
                "no scores arrive, so sampling stays off: compute the loss by "
                "batch.loss(outputs), which reports them"
            )

    def _write_step(self, report: Reported) -> None:
        batch = report.batch
        weights = batch.weights.cpu().double()
        kappa = None
        if report.scores is not None:
            kappa = second_moments(report.scores, weights, batch.size).efficiency
        record = StepRecord(
            drawn=batch.drawn,
            loss=float((weights * report.losses.cpu().double()).sum() / batch.size),
            tau=self._policy.tau,
            kappa=kappa,
            largest_weight=float(weights.max()) if len(weights) else 0.0,
            trained=self._counts.trained,
            scored=self._counts.scored,
            quarantined=self._counts.quarantined,
        )
        self._step_log.write(self._counts.steps, self._now(), record)

    def _now(self) -> float:
        return self._setup.clock.now() - self._start
