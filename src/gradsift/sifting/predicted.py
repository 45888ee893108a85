"""Draws by predicted losses: nothing is looked at before it is trained on.

In each step B uniform candidates are taken out of the whole data set, by id; a small network says
how large their losses should be by now; the batch is drawn from them. Only the batch is fetched.

Processes that sift together tell each other the losses of every step, which keeps their predictors
alike, and take candidates of their own; each of their batches is as it would be alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradsift.predictor.recurrent import LossPredictor
from gradsift.predictor.settings import Prediction
from gradsift.records import PLAIN, Draw, Plan, ScoreUpdate
from gradsift.sampling.relative import fresh_scores
from gradsift.sampling.resampling import Resampler, Resampling
from gradsift.sifting.policy import AbstractPolicy


class Predicted(AbstractPolicy):
    """Predicts, draws, and learns from the losses of each trained batch.

    Args:
        examples: N.
        prediction: how losses are predicted.
        resampling: how candidates are drawn by them.
        generator: of candidates and draws.
        seed: of the network.

    Attributes:
        predictor: of the losses.
        resampler: of the candidates.
    """

    learns = True

    def __init__(
        self,
        examples: int,
        prediction: Prediction,
        resampling: Resampling,
        generator: torch.Generator,
        seed: int,
    ) -> None:
        super().__init__()
        self.predictor = LossPredictor(examples, prediction, seed)
        self.resampler = Resampler(resampling)
        self._examples = examples
        self._prediction = prediction
        self._generator = generator
        self._steps = 0
        self._opened_at: int | None = None
        self._until_survey = 0

    def plan(self, batch_size: int) -> Plan:
        """The warm-up as it comes, then a batch out of fresh candidates."""
        if self._steps < self._prediction.warm_up:
            return PLAIN
        if self._opened_at is None:
            self._opened_at = self._steps + 1
        self._survey(batch_size)
        count = max(self._prediction.candidates, batch_size)
        ids = torch.randint(self._examples, (count,), generator=self._generator)
        predicted = self.predictor.predict(ids)
        draw = self.resampler.draw(predicted, batch_size, self._generator)
        return Plan(draw=Draw(ids[draw.positions], draw.weights, batch_size, draw.quarantined))

    def wants_scores(self, *, drawn: bool) -> bool:
        """Always: they are the histories."""
        del drawn
        return True

    def learn(self, update: ScoreUpdate, weights: Tensor, *, drawn: bool) -> None:
        """Trains the predictor. Losses that are not finite are left out."""
        del weights, drawn
        fresh = fresh_scores(update.index, update.score, None, self._examples)
        kept = update.score.isfinite() & (update.score <= torch.finfo(torch.float32).max)
        labels = None if update.label is None else update.label[kept]
        ids, losses = torch.from_numpy(fresh.ids), torch.from_numpy(fresh.scores)
        self.predictor.learn(ids, losses, labels)

    def timed(self, plan: Plan, seconds: float, loading: float) -> None:
        """Counts the warm-up."""
        del plan, seconds, loading
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Histories, network, normaliser and counts."""
        return {
            **super().state_dict(),
            "predictor": self.predictor.state_dict(),
            "resampler": self.resampler.state_dict(),
            "steps": self._steps,
            "opened_at": self._opened_at,
            "until_survey": self._until_survey,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another policy of the same recipe and data."""
        super().load_state_dict(state)
        self.predictor.load_state_dict(state["predictor"])
        self.resampler.load_state_dict(state["resampler"])
        self._steps, self._opened_at = state["steps"], state["opened_at"]
        self._until_survey = state["until_survey"]

    def summary(self) -> dict[str, Any]:
        """On since the first draw, and how good the predictions are."""
        error = self.predictor.error
        if self._opened_at is None:
            reason = f"the first {self._prediction.warm_up} steps are in your own order"
        else:
            reason = (
                f"draws by predicted losses out of {self._prediction.candidates} candidates; "
                f"predictions are off by {100 * error.value:.0f} % of the mean loss"
            )
        state = "off" if self._opened_at is None else "on"
        return {"state": state, "reason": reason, "opened_at_step": self._opened_at}

    def __str__(self) -> str:
        summary = self.summary()
        return f"{summary['state']}: {summary['reason']}"

    def _survey(self, batch_size: int) -> None:
        """Once per epoch the losses of everyone are predicted, where the normaliser wants them."""
        if self.resampler.resampling.normaliser != "population":
            return
        self._until_survey -= batch_size
        if self._until_survey < 0:
            self._until_survey = self._examples
            self.resampler.survey(self.predictor.predict(torch.arange(self._examples)))
