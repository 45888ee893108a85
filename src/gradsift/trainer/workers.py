"""What the command line says about parallel SGD, checked, and put together.

A step of such a run is a batch that a worker computed; corrections come on top.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.parallel import (
    AbstractCompensation,
    AbstractDelay,
    AbstractGuide,
    AbstractScoredObjective,
    AdaptiveDelayCompensated,
    Arrival,
    ConstantDelay,
    DelayCompensated,
    DrawnBatches,
    GapAware,
    LearningRateByAge,
    ParameterServer,
    Replay,
    RotatingVerification,
    RoundGuide,
    SharedTable,
    Uncompensated,
    WindowGuide,
    arrivals_by_age,
    arrivals_by_race,
    asgd,
    parse_delay,
    sampled_asgd,
    ssgd,
)
from gradsift.parallel.tickets import AbstractTickets
from gradsift.sampling.table import ScoreTable
from gradsift.trainer.backends import MEASURED, check_backend, is_schedule, recorded, tickets_for

PARALLEL: Mapping[str, str] = MappingProxyType(
    {
        "ssgd": "synchronous: one update by the mean gradient of all workers",
        "ssgd-last": "synchronous, by the last gradient only, as in the public code of guided SGD",
        "asgd": "asynchronous: each gradient is an update, at the weights of some updates ago",
        "ssp": "stale synchronous parallel: no worker is ahead of another by more than a bound",
        "gsgd": "guided, one worker without delay",
        "gssgd": "guided synchronous",
        "gasgd": "guided asynchronous",
    }
)
"""Recipes of parallel SGD, in words."""

COMPENSATIONS: Mapping[str, Callable[[], AbstractCompensation]] = MappingProxyType(
    {
        "none": Uncompensated,
        "age": LearningRateByAge,
        "dc": DelayCompensated,
        "dc-adaptive": AdaptiveDelayCompensated,
        "gap": GapAware,
        "replay": Uncompensated,
        "age+replay": LearningRateByAge,
        "gap+replay": GapAware,
    }
)
"""Rules by the word of the command line; replay corrects after updates, alone or with a rule."""

REPLAYING = ("replay", "age+replay", "gap+replay")
SAMPLERS = ("uniform", "table")
DRAWING = ("asgd", "ssp")
DELAYED = ("asgd", "gasgd", "ssp")
GUIDED = ("gsgd", "gssgd", "gasgd")
SYNCHRONOUS = ("ssgd", "ssgd-last", "gssgd")
SETS = 4
"""Batches set aside for verification, as in the published code."""


@dataclass(frozen=True)
class Workers:
    """Who computes gradients, and how late they arrive.

    Attributes:
        recipe: a name out of `PARALLEL`.
        count: workers.
        delay: in the words of `parse_delay`: the age of gradients in updates, for ssp the seconds
            that each takes; ``arrivals:FILE`` plays what a run on real workers recorded, and
            ``measured`` is as late as real workers are. None takes ``measured`` on ray, otherwise
            ``constant:count−1``, for ssp 1 to 2.5 seconds.
        backend: simulate, or ray for processes on a cluster.
        compensation: a name out of `COMPENSATIONS`.
        rho: batches in the window that is replayed from.
        bound: for ssp, how many gradients a worker may be ahead.
        address: of the Ray cluster to join; None starts Ray on this machine.
        sampler: uniform, for shuffled batches, or table, for batches that each worker draws by
            score, with weights, from a table that all workers share.
        average: share of the run, at its end, whose weights are averaged; 0 keeps the last ones.

    Raises:
        UsageError: for a value that cannot work or means nothing for the recipe.

    Example:
        >>> Workers("gasgd", count=4, delay="constant:9").schedule()
        ConstantDelay(delay=9.0)
        >>> Workers("ssgd", delay="constant:9")
        Traceback (most recent call last):
        gradsift.errors.UsageError: delay 'constant:9' received, but 'ssgd' has none: leave it out
    """

    recipe: str
    count: int = 4
    delay: str | None = None
    backend: str = "simulate"
    compensation: str = "none"
    rho: int = 10
    bound: int = 3
    address: str | None = None
    sampler: str = "uniform"
    average: float = 0.0

    def __post_init__(self) -> None:
        if self.recipe not in PARALLEL:
            raise UsageError(f"recipe {self.recipe!r} is none of {', '.join(PARALLEL)}")
        if self.count < 1:
            raise UsageError(f"{self.count} workers received, expected at least 1")
        if self.compensation not in COMPENSATIONS:
            raise UsageError(
                f"compensation {self.compensation!r} is unknown: choose one of "
                f"{', '.join(COMPENSATIONS)}"
            )
        if self.rho < 2:
            raise UsageError(f"rho {self.rho} received, expected at least 2: a window of batches")
        if self.bound < 0:
            raise UsageError(f"bound {self.bound} received, expected at least 0")
        self._check_meaning()
        self._check_batches()
        words, synchronous = self.delay_in_words(), self.recipe in SYNCHRONOUS
        check_backend(self.backend, self.recipe, words, self.address, synchronous=synchronous)
        if is_schedule(words):
            self.schedule()

    def _check_meaning(self) -> None:
        if self.delay is not None and self.recipe not in DELAYED:
            raise UsageError(
                f"delay {self.delay!r} received, but {self.recipe!r} has none: leave it out"
            )
        if self.compensation not in ("none", "replay") and self.recipe not in DELAYED:
            raise UsageError(
                f"compensation {self.compensation!r} received, but in {self.recipe!r} no gradient "
                "is late: leave it out"
            )
        if self.compensation in REPLAYING and self.recipe in GUIDED:
            raise UsageError(
                f"compensation {self.compensation!r} received, but {self.recipe!r} replays "
                "already: use asgd or ssgd with it"
            )
        if self.recipe == "gsgd" and self.count != 1:
            raise UsageError(
                f"{self.count} workers received, but 'gsgd' has one: use gasgd or gssgd for more"
            )
        if self.recipe == "gssgd" and self.count < 2:
            raise UsageError(
                "1 worker received, but 'gssgd' replays what the others computed: use 2 or more"
            )

    def tickets(self, count: int, arrivals: Sequence[Arrival]) -> AbstractTickets:
        """What real workers are asked for."""
        bound = self.bound if self.recipe == "ssp" else None
        return tickets_for(self.delay_in_words(), arrivals, count, self.count, bound)

    def _check_batches(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UsageError(
                f"sampler {self.sampler!r} is unknown: choose one of {', '.join(SAMPLERS)}"
            )
        if self.sampler == "table" and self.recipe not in DRAWING:
            raise UsageError(
                f"sampler 'table' received, but the workers of {self.recipe!r} share shuffled "
                f"batches: use one of {', '.join(DRAWING)}"
            )
        if self.sampler == "table" and self.compensation in REPLAYING:
            raise UsageError(
                f"compensation {self.compensation!r} received, but batches drawn from the table "
                "are not replayed: use another one, or the uniform sampler"
            )
        if self.backend == "ray" and self.sampler == "table":
            raise UsageError(
                "sampler 'table' received, but workers on Ray share shuffled batches: use "
                "--backend simulate"
            )
        if not 0 <= self.average <= 1:
            raise UsageError(
                f"average {self.average} received, expected a share of the run from 0 to 1"
            )

    def schedule(self) -> AbstractDelay:
        """The delays that were asked for."""
        words = self.delay_in_words()
        return ConstantDelay(0) if words == "none" else parse_delay(words)

    def arrivals(self, count: int, generator: torch.Generator) -> list[Arrival]:
        """The order of so many gradients; none where it is not known before."""
        delay = self.delay_in_words()
        if self.recipe in SYNCHRONOUS or delay == MEASURED:
            return []
        if (recording := recorded(delay, count)) is not None:
            return list(recording.arrivals)
        if self.recipe == "ssp":
            return arrivals_by_race(self.schedule(), self.count, count, generator, self.bound)
        return arrivals_by_age(self.schedule(), self.count, count, generator)

    def set_aside(self, batch_size: int, examples: int) -> int:
        """Training examples that are kept for verification.

        Raises:
            UsageError: when too few would be left to train on.
        """
        aside = SETS * batch_size if self.recipe in GUIDED else 0
        batches = (examples - aside) // batch_size
        if batches < 1:
            raise UsageError(
                f"the verification set is empty: {examples} training examples are not enough for "
                f"{SETS} batches of {batch_size} beside the training; use smaller batches"
            )
        if batches < self.count:
            raise UsageError(
                f"{self.count} workers received, but an epoch has {batches} batches of "
                f"{batch_size}: use fewer workers or smaller batches"
            )
        return aside

    def guide(self, verification: Tensor, generator: torch.Generator) -> AbstractGuide | None:
        """Who replays; None where nobody does."""
        if self.compensation in REPLAYING:
            return Replay(generator, self.rho, count=self.rho // 2)
        if self.recipe not in GUIDED:
            return None
        policy = RotatingVerification(verification, SETS)
        kind = RoundGuide if self.recipe == "gssgd" else WindowGuide
        return kind(policy, rho=self.rho)

    def drawn(self, examples: int, batch_size: int, seed: int) -> DrawnBatches | None:
        """Batches that workers draw from a table of theirs; None where batches are shuffled."""
        if self.sampler == "uniform":
            return None
        return DrawnBatches(SharedTable(ScoreTable(examples, seed=seed)), batch_size)

    def rounds(
        self,
        server: ParameterServer,
        objective: AbstractScoredObjective,
        arrivals: Sequence[Arrival],
        batches: Iterable[Tensor],
        guide: AbstractGuide | None,
        drawn: DrawnBatches | None = None,
    ) -> Iterator[int]:
        """The algorithm itself, a round at a time."""
        if self.recipe in SYNCHRONOUS:
            combine = "last" if self.recipe == "ssgd-last" else "average"
            return ssgd(server, objective, self.count, batches, guide, combine)
        if drawn is not None:
            return sampled_asgd(server, objective, arrivals, drawn)
        return asgd(server, objective, arrivals, batches, guide)

    def delay_in_words(self) -> str:
        """As it was asked for, or what stands for it."""
        if self.delay is not None:
            return self.delay
        if self.backend == "ray":
            return MEASURED
        if self.recipe not in DELAYED:
            return "none"
        return "uniform:1.0:2.5" if self.recipe == "ssp" else f"constant:{self.count - 1}"

    def listed(self) -> dict[str, Any]:
        """Every setting as plain values."""
        return {**asdict(self), "delay": self.delay_in_words()}

    @property
    def batches_per_round(self) -> int:
        """Batches that make one update."""
        return self.count if self.recipe in SYNCHRONOUS else 1
