"""What was measured about each source of examples, turned into the offers that a gate compares."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median, stdev
from typing import Any

import torch
from torch import Tensor

from gradsift.gate import Offer
from gradsift.monitors.averages import Estimate
from gradsift.monitors.calibration import Calibration, Noise
from gradsift.monitors.moments import tau
from gradsift.monitors.spending import kept_step_gain
from gradsift.monitors.timing import StepTimes
from gradsift.monitors.variance import pool_ratio_capped
from gradsift.records import Source
from gradsift.sampling.positions import stratified_positions
from gradsift.sampling.two_stage import two_stage_ratio_capped

RATIOS = (1.5, 2.0, 3.0, 5.0)
"""Candidates per trained example, of the pools that are considered."""

SAMPLE = 8
"""Windows of training steps whose fresh scores a pool's ratio is solved on."""

PARTS = 4
"""Parts of that sample whose spread says how sure the ratio is."""

LATEST = 128
"""Times of a piece of work that its mean is taken of."""

PAIRS = 4
"""Pairs of gradients before the noise scale is believed."""

PRIOR = 0.25
"""How far a calibration factor is expected from one, before it is measured."""


class Costs:
    """Seconds of a piece of work, as the mean of the latest times that it was done.

    A mean, because work that is done for a window of steps at once falls on one of them. Where each
    time is the same work, the median forgets hiccups, which would have struck any other work too.

    Example:
        >>> costs = Costs()
        >>> costs.known, costs.mean
        (False, 0.0)
        >>> for seconds in (9.0, 1.0, 2.0):
        ...     costs.add(seconds)
        >>> costs.mean, costs.median
        (4.0, 2.0)
    """

    def __init__(self) -> None:
        self._latest: deque[tuple[float, int]] = deque(maxlen=LATEST)

    def add(self, seconds: float, times: int = 1) -> None:
        """Notes one more time; none for work that belongs to the times noted already."""
        self._latest.append((seconds, times))

    @property
    def known(self) -> bool:
        """Whether it was done at all."""
        return bool(self._latest)

    @property
    def mean(self) -> float:
        """In seconds; zero before the first time."""
        times = sum(times for _, times in self._latest)
        return sum(seconds for seconds, _ in self._latest) / times if times else 0.0

    @property
    def median(self) -> float:
        """In seconds, of the notes as they came; zero before the first time."""
        return median(seconds for seconds, _ in self._latest) if self._latest else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, from which `load_state_dict` goes on to the bit."""
        return {"latest": [[seconds, times] for seconds, times in self._latest]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another object's state."""
        self._latest.clear()
        self._latest.extend((seconds, times) for seconds, times in state["latest"])


class Evidence:
    """Seconds, noise and fresh scores so far.

    Args:
        pools: whether sources are offered that score candidates; a cap bounds the table alone.

    Attributes:
        times: seconds of whole steps, by source.
        loading: of these, of fetching, by source.
        observing: seconds to take and keep the scores of one training step.
        drawing: seconds to draw one batch from the table.
        scoring: seconds to score one example in an extra forward pass.
        noise: of the gradient, against its signal.
        calibration: from scores to gradient norms.
    """

    def __init__(self, *, pools: bool = True) -> None:
        self._pools = pools
        self.times = StepTimes()
        self.loading = StepTimes()
        self.observing = Costs()
        self.drawing = Costs()
        self.scoring = Costs()
        self.noise = Noise()
        self.calibration = Calibration()
        self._fresh: deque[Tensor] = deque(maxlen=SAMPLE)

    def keep(self, scores: Tensor, weights: Tensor, table_weights: Tensor | None = None) -> None:
        """Takes fresh scores of trained examples.

        Args:
            scores: one per example.
            weights: those it was drawn with.
            table_weights: those that the table would have given it; None without a table.
        """
        of_table = weights if table_weights is None else table_weights
        self._fresh.append(torch.stack([scores.double(), weights.double(), of_table.double()]))

    @property
    def tau(self) -> float:
        """τ of the fresh scores, as uniform draws would have brought them; 1 before any."""
        return tau(self._population()) if self._fresh else 1.0

    def noise_scale(self, batch_size: int) -> float:
        """B_n in examples.

        One batch where too few gradients were looked at: half of a step is noise then.
        """
        if self.noise.pairs < PAIRS:
            return float(batch_size)
        return self.noise.scale.value

    def offers(
        self,
        in_use: Source,
        batch_size: int,
        price: Estimate | None,
        *,
        hopeless: bool = True,
    ) -> list[Offer]:
        """Every source that enough is known about; empty before a plain step was timed.

        Args:
            in_use: the source of the steps so far.
            batch_size: b.
            price: the table's ratio of second moments of scores; None while it is not known.
            hopeless: whether to solve the ratio of pools that could not gain anything if theirs
                were the largest possible, r times that of what they are taken out of.
        """
        plain = self._plain_seconds(in_use)
        if not plain:
            return []
        offers = [Offer("off", plain)]
        if price is not None:
            factor = shrunk(self.calibration.factor)
            seconds = plain + self._table_work()
            lower = max(factor * price.lower, 0.0)
            offers.append(Offer("table", seconds, factor * price.value, lower))
        if self._pools and self.scoring.known and self._fresh:
            offers.extend(self._scored(offers, batch_size, hopeless=hopeless))
        return offers

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, from which `load_state_dict` goes on to the bit."""
        return {
            "times": self.times.state_dict(),
            "loading": self.loading.state_dict(),
            "observing": self.observing.state_dict(),
            "drawing": self.drawing.state_dict(),
            "scoring": self.scoring.state_dict(),
            "noise": self.noise.state_dict(),
            "calibration": self.calibration.state_dict(),
            "fresh": list(self._fresh),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another object's state."""
        self.times.load_state_dict(state["times"])
        self.loading.load_state_dict(state["loading"])
        self.observing.load_state_dict(state["observing"])
        self.drawing.load_state_dict(state["drawing"])
        self.scoring.load_state_dict(state["scoring"])
        self.noise.load_state_dict(state["noise"])
        self.calibration.load_state_dict(state["calibration"])
        self._fresh.clear()
        self._fresh.extend(state["fresh"])

    def _plain_seconds(self, in_use: Source) -> float | None:
        """Of a step in the user's own order: as measured, or what the table's own work leaves.

        Machines change over hours, so the present step less its extra work is a better
        measurement than a plain step of long ago.
        """
        if in_use == "table" and (now := self.times.median("table")) is not None:
            return max(now - self._table_work(), 0.0)
        return self.times.median("off")

    def _table_work(self) -> float:
        """Seconds that a step out of the table takes beyond a plain one."""
        table, plain = (self.loading.median(source) for source in ("table", "off"))
        slower = 0.0 if table is None or plain is None else table - plain
        return self.observing.mean + max(slower, self.drawing.mean)

    def _scored(self, offers: list[Offer], batch_size: int, *, hopeless: bool) -> list[Offer]:
        """Pools, and pools of candidates out of the table."""
        plain, tables = offers[0], offers[1:]
        scores, drawn, of_table = torch.cat(list(self._fresh), dim=1)
        population = self._population()
        found = []
        for candidates in RATIOS:
            loading = (candidates - 1) * (self.loading.median("off") or 0.0)
            extra = candidates * batch_size * self.scoring.mean + loading
            seconds = plain.seconds + extra
            if hopeless or not found or _hopes(plain, seconds, candidates):
                value, lower = _with_lower(pool_ratio_capped, (population,), candidates)
                found.append(Offer("pool", seconds, value, lower, candidates))
            for table in tables:
                seconds = table.seconds + extra
                if hopeless or _hopes(plain, seconds, candidates * table.variance_ratio):
                    places = _resampled(drawn / of_table)
                    sample = scores[places], of_table[places]
                    value, lower = _with_lower(two_stage_ratio_capped, sample, candidates)
                    found.append(Offer("two-stage", seconds, value, lower, candidates))
        return found

    def _population(self) -> Tensor:
        scores, drawn, _ = torch.cat(list(self._fresh), dim=1)
        return scores[_resampled(drawn)]


def _hopes(plain: Offer, seconds: float, largest: float) -> bool:
    """Whether an offer gains anything with the largest ratio, where noise is everything."""
    gained = kept_step_gain(max(largest, 1.0), math.inf, 1)
    return gained * plain.seconds > seconds


def _resampled(importance: Tensor) -> Tensor:
    """Positions in proportion to importance, as evenly as can be: nothing here is random."""
    middle = torch.full((len(importance),), 0.5, dtype=torch.float64)
    return stratified_positions(importance / importance.sum(), middle)


def shrunk(factor: Estimate) -> float:
    """A factor as far as it is known: between 1 and its estimate, weighted by precision.

    Example:
        >>> shrunk(Estimate(0.5, math.inf)), round(shrunk(Estimate(0.5, 0.25)), 3)
        (1.0, 0.75)
    """
    if not math.isfinite(factor.standard_error):
        return 1.0
    trust = PRIOR**2 / (PRIOR**2 + factor.standard_error**2)
    return 1.0 + trust * (factor.value - 1.0)


def _with_lower(
    ratio_of: Callable[..., float], sample: tuple[Tensor, ...], candidates: float
) -> tuple[float, float]:
    """A ratio of a sample, and the lower end of its interval by the spread over parts of it."""
    value = ratio_of(*sample, candidates)
    if len(sample[0]) < PARTS**2:
        return value, 1.0
    parts = [
        ratio_of(*(values[start::PARTS] for values in sample), candidates) for start in range(PARTS)
    ]
    return value, value - 2 * stdev(parts) / PARTS**0.5
