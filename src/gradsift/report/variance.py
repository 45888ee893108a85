"""What `gradsift compare --variance` found: the noise of every score and draw along one run."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gradsift.report.summary import plain_json, write_whole

FILE = "variance.json"

Source = Literal["uniform", "pool", "table", "fresh"]
"""Independent uniform ids; a pool scored now; stale scores of all examples; fresh ones of all."""


@dataclass(frozen=True)
class Noise:
    """One way to take examples, at one moment of the run.

    Attributes:
        name: in words.
        source: where the examples come from.
        score: "none", "loss", "output gradient" or "exact norm".
        draw: name of the draw.
        age: of the scores, in steps; None for fresh ones.
        measured: ``E‖ĝ − μ‖²`` of the gradient of one batch, the mean over all repeats.
        low: of its 95 % t interval over the repeats.
        high: likewise.
        formula: the same by the formula of the draw.
        seconds: to train one example, the scoring of its share of a pool included; None where
            the scoring of the whole data set would have to be counted.
        trace: of the proposal in independent draws from all examples; None for a pool.
    """

    name: str
    source: Source
    score: str
    draw: str
    age: int | None
    measured: float
    low: float
    high: float
    formula: float
    seconds: float | None
    trace: float | None

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Against:
    """A score beside the exact norm, for the same examples.

    Attributes:
        name: of the score, in words.
        rank: Spearman's correlation; nan where a side is constant.
        linear: Pearson's.
        scores: of some examples, over the mean of all.
        norms: likewise, of the same examples.
    """

    name: str
    rank: float
    linear: float
    scores: tuple[float, ...]
    norms: tuple[float, ...]


@dataclass(frozen=True)
class Checkpoint:
    """One moment of the run.

    Attributes:
        step: steps taken.
        loss: mean over the examples looked at.
        uniform: covariance trace of one uniform draw.
        ideal: of one draw by the exact norms, the smallest there is.
        mean_square: ``‖μ‖²`` of the mean gradient over the examples looked at.
        arms: the first one is uniform.
        against: scores beside exact norms.
    """

    step: int
    loss: float
    uniform: float
    ideal: float
    mean_square: float
    arms: tuple[Noise, ...]
    against: tuple[Against, ...]

    def relative(self, noise: Noise, size: int) -> float:
        """Variance over that of a uniform batch of the same size, by the formula of the latter."""
        trace = self.uniform / size
        return noise.measured / trace if trace > 0 else math.nan

    def at_equal_seconds(self, noise: Noise, size: int) -> float | None:
        """The same for batches that cost the same: variance times seconds, over that of uniform."""
        plain = self.arms[0].seconds
        if noise.seconds is None or not plain:
            return None
        return self.relative(noise, size) * noise.seconds / plain


@dataclass(frozen=True)
class Recovered:
    """How much of what ideal probabilities would gain a proposal gains, over the run.

    Attributes:
        name: of the arm.
        share: `monitors.RecoveredShare`.
        standard_error: over checkpoints.
        checkpoints: that count.
    """

    name: str
    share: float
    standard_error: float
    checkpoints: int


@dataclass(frozen=True)
class VarianceFound:
    """Everything the page shows.

    Attributes:
        title: model and data.
        flags: of ``gradsift train``, as typed.
        batch_size: ``b``.
        examples: looked at; they stand for the data.
        repeats: measurements of every variance.
        draws: batches in each of them.
        pool_ratio: candidates per trained example.
        steps: of the whole run.
        steps_per_epoch: of the data set.
        seconds: to train one example, and to score one by each score.
        virtual: whether seconds are counted cost.
        foreign_cpu: share of the machine that other processes used; None where unknown, or where
            cost is counted.
        checkpoints: along the run.
        recovered: of each proposal over all examples.
        interrupted: whether Ctrl-C ended it early.
        versions: of gradsift, torch and python.
        command: the command line.
    """

    title: str
    flags: str
    batch_size: int
    examples: int
    repeats: int
    draws: int
    pool_ratio: float
    steps: int
    steps_per_epoch: int
    seconds: dict[str, float]
    virtual: bool
    foreign_cpu: float | None
    checkpoints: tuple[Checkpoint, ...]
    recovered: tuple[Recovered, ...]
    interrupted: bool
    versions: dict[str, str]
    command: str

    def listed(self) -> dict[str, Any]:
        """As plain values; every arm with its two ratios to uniform."""
        content = asdict(self)
        for checkpoint, plain in zip(self.checkpoints, content["checkpoints"], strict=True):
            for noise, values in zip(checkpoint.arms, plain["arms"], strict=True):
                values["relative"] = checkpoint.relative(noise, self.batch_size)
                values["at_equal_seconds"] = checkpoint.at_equal_seconds(noise, self.batch_size)
        return content


def write_variance(folder: Path, found: VarianceFound) -> Path:
    """Writes ``FOLDER/variance.json`` whole or not at all, and returns its path."""
    return write_whole(folder / FILE, plain_json(found.listed()))
