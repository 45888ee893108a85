"""Is a proposal healthy? What was drawn how often, with which weights, by scores of which age.

Nothing here steers: every number is for people. Small effective samples and uneven picks are what
importance sampling is for; they are worth a look where the efficiency is low as well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.monitors.moments import effective_sample_size, second_moments
from gradsift.sampling.table import ScoreTable

TOP = 0.01
"""Share of the examples that counts as the top."""

LOOKED_AT = 100_000
"""Examples whose age is read, at most, at even distances."""


@dataclass(frozen=True)
class Health:
    """What a proposal does, at one moment; nan where nothing is known.

    Attributes:
        picks: examples drawn so far, with repetitions.
        coverage: share of all examples drawn at least once.
        top_share: share of the picks that went to the 1 % of examples picked most: 0.01 where all
            are drawn equally often, and more by chance while each has been drawn a few times only.
        entropy: of the picks over the entropy of equal ones, ``−Σ q log q / log N``, in [0, 1].
        effective_sample: ``(Σ w)²/Σ w²`` over the batch size, mean over the batches since the last
            reading. Report it, never steer by it: it is small exactly at a good proposal.
        largest_weight: since the last reading.
        efficiency: ``κ = (E[w g])²/E[w² g²]`` since the last reading, from the scores that were
            given; one at the ideal proposal.
        scored: share of all examples that have a score in the table.
        age_median: steps since the scores in the table were computed, of the examples that have
            one.
        age_90: of nine in ten at most.
        age_largest: of all of them.

    Example:
        >>> monitor = HealthMonitor(examples=4)
        >>> monitor.add(torch.tensor([0, 1]), torch.tensor([1.0, 1.0]))
        >>> found = monitor.read()
        >>> found.coverage, found.effective_sample, round(found.entropy, 2)
        (0.5, 1.0, 0.5)
    """

    picks: int
    coverage: float
    top_share: float
    entropy: float
    effective_sample: float
    largest_weight: float
    efficiency: float
    scored: float
    age_median: float
    age_90: float
    age_largest: float


class HealthMonitor:
    """Looks at every trained batch, and says how the proposal does when it is asked.

    It reads ids and weights, and the table when it is asked; without it no number of a run changes.

    Args:
        examples: in the training set, N.

    Attributes:
        draws: int64, how often each example was drawn so far.

    Raises:
        UsageError: for no example.

    Example:
        >>> import torch, gradsift
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
        >>> train = gradsift.sift(loader, torch.nn.Linear(5, 3), loss_fn, recipe="uniform")
        >>> monitor = HealthMonitor(len(data))
        >>> for batch in train:
        ...     monitor.add(batch.indices, batch.weights)
        >>> monitor.read().coverage
        1.0
    """

    def __init__(self, examples: int) -> None:
        if examples < 1:
            raise UsageError(f"received {examples} examples, expected at least one")
        self.draws = torch.zeros(examples, dtype=torch.int64)
        self._forget()

    def add(
        self,
        indices: Int64[Tensor, " drawn"],
        weights: Float[Tensor, " drawn"],
        scores: Float[Tensor, " drawn"] | None = None,
    ) -> None:
        """Takes one trained batch in.

        Args:
            indices: example ids, with repetitions.
            weights: those they were drawn with.
            scores: fresh scores of the same examples, for the efficiency.
        """
        count = len(indices)
        self.draws.index_add_(0, indices.cpu(), torch.ones(count, dtype=torch.int64))
        if not count:
            return
        self._batches += 1
        self._effective += effective_sample_size(weights) / count
        self._largest = max(self._largest, float(weights.max()))
        if scores is not None:
            moments = second_moments(scores, weights, count)
            self._first += math.sqrt(moments.ideal)
            self._second += moments.drawn
            self._scored += 1

    def read(self, table: ScoreTable | None = None, version: int = 0) -> Health:
        """The state of things; what is said to be since the last reading begins anew.

        Args:
            table: of the scores that are drawn by.
            version: steps that the parameters have taken, for the ages.
        """
        known = self._batches > 0
        second = self._second / self._scored if self._scored else math.nan
        first = self._first / self._scored if self._scored else math.nan
        scored, ages = (math.nan, (math.nan,) * 3) if table is None else _of_table(table, version)
        found = Health(
            picks=int(self.draws.sum()),
            coverage=float((self.draws > 0).double().mean()),
            top_share=top_share(self.draws),
            entropy=relative_entropy(self.draws),
            effective_sample=self._effective / self._batches if known else math.nan,
            largest_weight=self._largest if known else math.nan,
            efficiency=first**2 / second if second else math.nan,
            scored=scored,
            age_median=ages[0],
            age_90=ages[1],
            age_largest=ages[2],
        )
        self._forget()
        return found

    def state_dict(self) -> dict[str, Any]:
        """The draws so far, and what was added since the last reading."""
        return {
            "draws": self.draws.clone(),
            "counts": [self._batches, self._scored],
            "sums": [self._effective, self._largest, self._first, self._second],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another monitor's state.

        Raises:
            UsageError: for one of another number of examples.
        """
        if len(state["draws"]) != len(self.draws):
            raise UsageError(
                f"received the draws of {len(state['draws'])} examples, expected those of "
                f"{len(self.draws)}: load them for the same data"
            )
        self.draws.copy_(state["draws"])
        self._batches, self._scored = state["counts"]
        self._effective, self._largest, self._first, self._second = state["sums"]

    def _forget(self) -> None:
        self._batches = self._scored = 0
        self._effective = self._largest = self._first = self._second = 0.0


def top_share(draws: Int64[Tensor, " n"], top: float = TOP) -> float:
    """Share of all picks that went to the ``top`` share of examples picked most; nan without any.

    At least one example counts as the top.

    Example:
        >>> top_share(torch.tensor([6, 2, 1, 1]), top=0.25)
        0.6
    """
    total = int(draws.sum())
    count = max(1, math.ceil(top * len(draws) - 1e-9))
    return float(draws.topk(count).values.sum()) / total if total else math.nan


def relative_entropy(draws: Int64[Tensor, " n"]) -> float:
    """``−Σ q log q / log N`` of the shares ``q`` of the picks, in [0, 1]; nan without any.

    One where all are picked equally often, zero where all picks are the same example. Arazo et
    al., "How important is importance sampling for deep budgeted training?" (2021), watch it: tuned
    curricula drift back to one.

    Example:
        >>> relative_entropy(torch.tensor([2, 2, 0, 0]))
        0.5
    """
    total = float(draws.sum())
    if not total:
        return math.nan
    if len(draws) == 1:
        return 1.0
    shares = draws.double() / total
    return float(torch.special.entr(shares).sum()) / math.log(len(draws))


@dataclass(frozen=True)
class Correlation:
    """How well scores follow exact gradient norms; nan where either side is constant.

    A rank correlation does not measure a proposal: a score may rank well and still put the
    probabilities in wrong proportion. `traces.population_traces` measures it.

    Attributes:
        rank: Spearman's, from −1 to 1; ties share their mean rank.
        linear: Pearson's, from −1 to 1.
        examples: how many were compared.

    Example:
        >>> correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, 9.0])).rank
        1.0
    """

    rank: float
    linear: float
    examples: int


def correlation(scores: Float[Tensor, " n"], norms: Float[Tensor, " m"]) -> Correlation:
    """Of scores with fresh exact norms of the same examples.

    Raises:
        UsageError: for different numbers of them.

    Example:
        >>> correlation(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 4.0]))
        Correlation(rank=1.0, linear=1.0, examples=3)
    """
    if len(scores) != len(norms):
        raise UsageError(
            f"received {len(scores)} scores and {len(norms)} norms, expected as many of each"
        )
    s, g = (side.detach().double().cpu().numpy() for side in (scores, norms))
    return Correlation(_pearson(_ranks(s), _ranks(g)), _pearson(s, g), len(s))


def _of_table(table: ScoreTable, version: int) -> tuple[float, tuple[float, ...]]:
    step = math.ceil(table.size / LOOKED_AT)
    ages = table.ages(torch.arange(0, table.size, step), version)
    ages = ages[ages >= 0].double()
    scored = table.seen / table.size
    if not len(ages):
        return scored, (math.nan,) * 3
    levels = torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64)
    return scored, tuple(ages.quantile(levels, interpolation="lower").tolist())


def _ranks(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """From 0; ties share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[place]


def _pearson(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float:
    if len(x) < 2:
        return math.nan
    a, b = _centred(x), _centred(y)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return min(1.0, max(-1.0, float(a @ b) / scale)) if scale > 0 else math.nan


def _centred(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Around zero and at most one, so that no square overflows or vanishes."""
    deviations = values - values.mean()
    largest = np.abs(deviations).max()
    return deviations / largest if largest > 0 else deviations
