"""Today's score of every example, forecast from what is known of it; drawn by if that pays."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gradsift.predictor.duel import ENOUGH, Duel
from gradsift.predictor.fit import Rows, fit
from gradsift.predictor.history import each_once
from gradsift.predictor.known import Known
from gradsift.predictor.settings import Forecasting
from gradsift.records import ScoreUpdate
from gradsift.sampling.distributions import AbstractDistribution
from gradsift.sampling.proposed import ProposedTable
from gradsift.sampling.table import ScoreTable

WINDOWS = 8
"""Updates that the coefficients are fitted on: the latest."""

LARGEST = 2048
"""Examples of an update that are kept for it."""

RIDGE = 0.03
"""How strongly coefficients are held at those of the table's own proposal."""

LIMIT = 10.0
"""Forecasts are between exp(-10) and exp(10) of the level of all scores."""

LARGEST_RELATIVE = 1e30
"""Scores beyond it, relative to the level, count as it: their squares stay finite."""

CHUNK = 2**15
"""Examples that are forecast at once."""


class Forecast:
    """A proposal ``q = exp(x·β)`` of what is known, fitted to its own price (`fit`).

    It begins as the table's proposal and is drawn to it by a ridge. It learns a few times per pass
    from the latest updates; every update is first used to compare the two proposals by their
    prices (`Duel`), with forecasts made before it. While it wins it is drawn from; the weights are
    those of its own draws, so whatever it says costs variance and never bias.

    Args:
        examples: N.
        steps: of a pass over the data.
        forecasting: what else is known.
        distribution: of the table beside it; the forecasts are drawn by the same.
        momentum: of the comparison.

    Attributes:
        table: of the forecasts, to draw from.
        duel: between the two.
        beta: the coefficients in force.
    """

    def __init__(
        self,
        examples: int,
        steps: int,
        forecasting: Forecasting,
        distribution: AbstractDistribution,
        momentum: float,
    ) -> None:
        self.table = ProposedTable(examples, distribution)
        self.duel = Duel(momentum)
        self._known = Known(examples, steps, forecasting.features)
        self.beta = self._known.start
        self._rows: deque[Rows] = deque(maxlen=WINDOWS)
        self._news: list[str] = []

    @property
    def in_use(self) -> bool:
        """Whether forecasts are drawn by."""
        return self.duel.wins

    def news(self) -> list[str]:
        """What was decided since it was last asked, in words."""
        news, self._news = self._news, []
        return news

    def look(self, update: ScoreUpdate, weights: Tensor, table: ScoreTable) -> None:
        """Compares and remembers what an update tells, before anyone learns from it.

        Args:
            update: fresh scores.
            weights: float64, of their draws.
            table: as it was before.
        """
        scores, w = update.score.double().numpy(), weights.numpy()
        kept = np.isfinite(scores)
        if not kept.any() or not table.level > 0:
            return
        ids = update.index.numpy()[kept]
        fresh, w = np.minimum(scores[kept] / table.level, LARGEST_RELATIVE), w[kept]
        before = self.in_use
        index = torch.from_numpy(ids)
        holder = table.size * table.probabilities(index).numpy()
        self.duel.add(fresh, w, holder, self.table.masses(ids))
        self.duel.calibrate(fresh, w, self.table.values(ids))
        if self.in_use != before or self.duel.batches == ENOUGH:
            self._news.append(str(self.duel))
        part = slice(None, None, -(-len(ids) // LARGEST))
        x = self._known.rows(ids[part], table, update.version)
        self._rows.append(Rows(x, w[part] * fresh[part] ** 2, w[part]))

    def learn(self, update: ScoreUpdate, weights: Tensor, table: ScoreTable) -> None:
        """Takes the scores in, once the table has, and forecasts their examples anew."""
        kept = update.score.isfinite()
        if not bool(kept.any()):
            return
        labels = None if update.label is None else update.label[kept].numpy()
        ids, first, scores, means = each_once(
            update.index[kept].numpy(), update.score[kept].double().numpy(), weights[kept].numpy()
        )
        self._known.add(ids, scores, means, None if labels is None else labels[first], table.level)
        self.table.set(ids, self._forecasts(ids, table, update.version))

    def refit(self, table: ScoreTable, version: int) -> None:
        """Fits the coefficients, and forecasts everyone anew; O(N).

        Args:
            table: of the last scores.
            version: of the parameters now.
        """
        if self._rows:
            rows = Rows(
                np.concatenate([rows.x for rows in self._rows]),
                np.concatenate([rows.costs for rows in self._rows]),
                np.concatenate([rows.weights for rows in self._rows]),
            )
            self.beta = fit(rows, self.beta, self._known.start, RIDGE)
        starts = range(0, table.size, CHUNK)
        parts = (np.arange(start, min(start + CHUNK, table.size)) for start in starts)
        everyone = np.concatenate([self._forecasts(ids, table, version) for ids in parts])
        self.table.write(everyone)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, from which `load_state_dict` goes on to the bit."""
        return {
            "table": self.table.state_dict(),
            "duel": self.duel.state_dict(),
            "known": self._known.state_dict(),
            "beta": torch.from_numpy(self.beta.copy()),
            "rows": [
                [torch.from_numpy(part.copy()) for part in (rows.x, rows.costs, rows.weights)]
                for rows in self._rows
            ],
            "news": list(self._news),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another forecast of the same data and settings."""
        self.table.load_state_dict(state["table"])
        self.duel.load_state_dict(state["duel"])
        self._known.load_state_dict(state["known"])
        self.beta = state["beta"].numpy().copy()
        self._rows.clear()
        self._rows.extend(Rows(*(part.numpy().copy() for part in rows)) for rows in state["rows"])
        self._news = list(state["news"])

    def _forecasts(
        self, ids: Int64[np.ndarray, " n"], table: ScoreTable, version: int
    ) -> Float64[np.ndarray, " n"]:
        scores = self._known.rows(ids, table, version) @ self.beta
        return np.exp(np.clip(scores, -LIMIT, LIMIT))
