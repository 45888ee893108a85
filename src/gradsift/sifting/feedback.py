"""What steps tell, on its way to the policy, to the notices and to the log.

Everything that flows back does so through here, by value and one step late. The policy learns from
it; the rest is only looked at.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gradsift.monitors.moments import second_moments
from gradsift.monitors.steps import StepLog
from gradsift.records import ScoreUpdate, StepRecord, WeightedBatch
from gradsift.sampling.quarantine import neutralise
from gradsift.scores.base import AbstractOutputScore
from gradsift.scores.gradient_norm import GradientNorm
from gradsift.sifting.mailbox import Mailbox, Reported
from gradsift.sifting.observations import Observations, Scored, scored
from gradsift.sifting.policy import AbstractPolicy
from gradsift.sifting.ranks import AbstractRanks, Alone
from gradsift.sifting.setup import Counts, Setup
from gradsift.sifting.versions import Versions
from gradsift.sifting.watching import StepWatch

_logger = logging.getLogger("gradsift")


class Feedback:
    """Collects what training steps report, and hands it to the policy.

    Attributes:
        scores: the scores seen last, of a pool or of a trained batch; None before.
        notices: what was said once about this run.
        versions: updates that the parameters have taken.
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
        self._watch: StepWatch | None = None
        if isinstance(score, GradientNorm) and setup.recipe.source == "table":
            self._watch = StepWatch(score, setup.model)
        self._last_reported = -1
        self._ranks: AbstractRanks = Alone()
        self._untold: list[Scored] = []
        self.versions = Versions(setup.model)

    def begin(self) -> None:
        """Starts the seconds of the log."""
        self._start = self._setup.clock.now()

    def join(self, ranks: AbstractRanks) -> None:
        """From now on these processes tell each other what they find."""
        self._ranks = ranks

    def hand_out(self, batch: WeightedBatch) -> None:
        """A batch is about to be handed out: decides whether its step is recorded and watched."""
        self._record_due = self._step_log.due(self._counts.steps)
        if self._watch is not None and self._policy.wants_scores(drawn=batch.drawn):
            self._watch.begin(len(batch))

    def taken(self) -> None:
        """The step on the batch is over, or its loop has been left."""
        if self._watch is not None:
            self._watch.end()

    def report(self, batch: WeightedBatch, outputs: Any, losses: Tensor) -> None:
        """Called by the training step: keeps what it tells, without waiting for it."""
        if self._last_reported == self._counts.steps:
            return
        self._last_reported = self._counts.steps
        version = self.versions.read()
        if self._watch is not None and self._watch.looks:
            self._watch.expect(losses, lambda norms: self._told(batch, losses, norms, version))
            return
        scores: Tensor | None = None
        found: list[Scored] = []
        if self._observations is not None:
            if self._policy.wants_scores(drawn=batch.drawn):
                before = self._setup.clock.now()
                found = self._observations.add(batch, outputs, version)
                self._policy.observed(self._setup.clock.now() - before, drawn=batch.drawn)
            if self._record_due and batch.drawn and self._setup.recipe.scored:
                scores = self._observations.score(outputs, batch.targets)
        if found or self._record_due or batch.several or losses.device.type != "cpu":
            self._mailbox.post(Reported(batch, losses.detach(), scores, tuple(found)))

    def _told(self, batch: WeightedBatch, losses: Tensor, norms: Tensor, version: int) -> None:
        """The step's backward pass has shown the norms of its examples."""
        found = scored(batch, norms, version)
        shown = norms if self._record_due and batch.drawn else None
        self._mailbox.post(Reported(batch, losses.detach(), shown, (found,)))

    def collect(self) -> None:
        """Reads what the last step told, now that the next one begins.

        Raises:
            TrainingError: naming examples whose loss was not finite, where the step could not
                look without waiting for its device.
        """
        for report in self._mailbox.collect():
            if report.batch.several or report.batch.weights.device.type != "cpu":
                report.batch.check_finite(report.losses)
            for found in report.scored:
                self.look(found.update.score)
                self._untold.append(found)
            if self._record_due:
                self._write_step(report)
        self._tell()
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
        if self._policy.learns:
            scores = self._ranks.gather_scores(scores)
        self._policy.see(scores, self._counts.steps)

    def write_news(self) -> None:
        """Writes down what the policy has decided, and says what it has to say."""
        for values in self._policy.news:
            self._setup.log.write("gate", step=self._counts.steps, seconds=self._now(), **values)
        self._policy.news.clear()
        for name, values in self._policy.measured:
            self._setup.log.write(
                "event", step=self._counts.steps, seconds=self._now(), name=name, **values
            )
        self._policy.measured.clear()
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

    def state_dict(self) -> dict[str, Any]:
        """What is left once every report was collected, as plain tensors, numbers and words."""
        kept = None if self._observations is None else self._observations.state_dict()
        return {
            "observations": kept,
            "scores": None if self.scores is None else self.scores.clone(),
            "notices": list(self.notices),
            "steps": self._step_log.state_dict(),
            "start": self._start,
            "last_reported": self._last_reported,
            "untold": [asdict(found) for found in self._untold],
            "versions": self.versions.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Goes on from other feedback; what was said already is not said again.

        Args:
            state: of other feedback.
            device: of the model's outputs.
        """
        if self._observations is not None:
            self._observations.load_state_dict(state["observations"], device)
        self.scores = state["scores"]
        self.notices[:] = state["notices"]
        self._step_log.load_state_dict(state["steps"])
        self._start, self._last_reported = state["start"], state["last_reported"]
        self._untold = [
            Scored(ScoreUpdate(**found["update"]), found["weights"], found["drawn"])
            for found in state["untold"]
        ]
        self.versions.load_state_dict(state["versions"])

    def _tell(self) -> None:
        """Several processes tell each other what they found once in a window of steps."""
        if self._ranks.size == 1:
            due = bool(self._untold)
        else:
            due = self._policy.learns and self._counts.steps % self._policy.window == 0
        if not due:
            return
        untold, self._untold = self._untold, []
        for found in self._ranks.gather(untold):
            self._policy.learn(found.update, found.weights.cpu().double(), drawn=found.drawn)

    def _say_if_silent(self) -> None:
        told = self._observations is not None or self._watch is not None
        waits = self._policy.learns and told
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
