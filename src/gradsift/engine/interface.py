"""What an engine promises: it scores blocks of examples with parameters that it was given.

An engine is hardware that searches the data set for examples that matter, while the trainer
trains. It knows no sampler: blocks go in, scores come out, by value. `AbstractEngine` says what
may be late, lost or out of order; every engine passes the same contract suite.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradsift.engine.evaluate import NUMBERS, ErrorFunction
from gradsift.engine.outbox import Precision
from gradsift.engine.task import Task
from gradsift.errors import UsageError

Mode = Literal["relaxed", "exact"]
Order = Literal["round-robin", "adaptive"]


@dataclass(frozen=True, order=True)
class Block:
    """Successive example ids, scored together; or a slice of a data set that is evaluated.

    Attributes:
        number: of the block, different for all blocks and slices of a run.
        start: its first id; of a slice its place among the slices.
        stop: the id after its last.
        part: 0 to be scored; k for a slice of the k-th data set that is evaluated.
        name: of that data set.

    Example:
        >>> Block(1, 4, 7).ids.tolist(), str(Block(1, 4, 7))
        ([4, 5, 6], 'block 1 (examples 4 to 6)')
        >>> str(Block(9, 2, 3, part=1, name="test"))
        "slice 2 of 'test'"
    """

    number: int
    start: int
    stop: int
    part: int = 0
    name: str = ""

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        if self.part:
            return f"slice {self.start} of {self.name!r}"
        return f"block {self.number} (examples {self.start} to {self.stop - 1})"

    @property
    def ids(self) -> Int64[Tensor, " n"]:
        """The ids of its examples."""
        return torch.arange(self.start, self.stop)

    @property
    def numbers(self) -> int:
        """How many numbers come back for it."""
        return NUMBERS if self.part else len(self)


def blocks_of(examples: int, size: int) -> tuple[Block, ...]:
    """The blocks of ``examples`` ids; the last one holds what is left.

    Example:
        >>> [block.stop for block in blocks_of(10, 4)]
        [4, 8, 10]
    """
    starts = range(0, examples, size)
    return tuple(
        Block(number, start, min(start + size, examples)) for number, start in enumerate(starts)
    )


@dataclass(frozen=True, eq=False)
class Scored:
    """What came back for one block.

    Attributes:
        block: which one.
        scores: float32 on the CPU, one per example in the order of the ids. What is not finite
            came so from the score; none is negative. Of a slice: its mean loss, its mean error,
            which is nan where no error is measured, and its number of examples.
        version: how many training steps the parameters had taken that *all* of them were
            measured with.
        seconds: that measuring took, by the worker's clock.
    """

    block: Block
    scores: Float[Tensor, " n"]
    version: int
    seconds: float


@dataclass(frozen=True)
class EngineState:
    """How an engine is.

    Attributes:
        kind: "inline", "local" or "ray".
        workers: that are able to score now.
        workers_lost: that ended, hung or vanished without being asked to.
        restarts: how many were started again in their place.
        delivered: blocks and slices that came back so far.
        set_aside: numbers of blocks that failed too often and are not scored any more.
        published: whole sets of parameters that were sent so far.
        sent: bytes that this took; a tensor that had not changed took none. On a cluster each
            node that has actors gets as many.
    """

    kind: str
    workers: int
    workers_lost: int
    restarts: int
    delivered: int
    set_aside: tuple[int, ...]
    published: int = 0
    sent: int = 0

    def listed(self) -> dict[str, int | str]:
        """What a summary says about it.

        Example:
            >>> EngineState("local", 2, 1, 1, 40, ()).listed()
            {'kind': 'local', 'workers_lost': 1, 'restarts': 1}
        """
        return {
            "kind": self.kind,
            "workers_lost": self.workers_lost,
            "restarts": self.restarts,
        }


@dataclass(frozen=True, eq=False)
class Options:
    """What is asked of any engine.

    Attributes:
        dataset: where workers get the examples from: ``"module:callable"`` or another word after
            ``--data``, a function without arguments, or a map-style data set; None takes the
            loader's own.
        block: examples per block.
        device: where workers score, in PyTorch's notation; None follows the model.
        every: training steps between two publications of the parameters; None follows the recipe.
        mode: "relaxed" never waits. "exact" waits after every publication until the whole data
            set was scored with it: for checks.
        order: in which blocks are scored: "round-robin", or "adaptive", where those whose old
            scores cost most come up to four times as often.
        evaluate: data sets whose mean loss workers measure between two blocks, by name. Each is
            opened like ``dataset``; None takes the part of that name, "train" or "test", of what
            ``dataset`` opens.
        error: ``error(outputs, targets)``, one per example, measured with the loss of those.
        precision: of published parameters. "float32" sends them as they are; "bfloat16" rounds
            float32 tensors of two or more dimensions, which halves the bytes.

    Raises:
        UsageError: for a block or a number of steps below 1; an unknown mode, order or precision;
            rounded parameters in exact mode.
    """

    dataset: Any = None
    block: int = 512
    device: str | None = None
    every: int | None = None
    mode: str = "relaxed"
    order: str = "round-robin"
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    error: ErrorFunction | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.block < 1 or (self.every is not None and self.every < 1):
            raise UsageError(
                f"an engine received blocks of {self.block} examples and a publication every "
                f"{self.every} steps, expected at least one of each"
            )
        words = (
            ("mode", self.mode, Mode),
            ("order", self.order, Order),
            ("precision", self.precision, Precision),
        )
        for name, value, known in words:
            if value not in get_args(known):
                raise UsageError(
                    f"engine {name} {value!r} is unknown: use one of {', '.join(get_args(known))}"
                )
        if self.mode == "exact" and self.precision != "float32":
            raise UsageError(
                f"engine precision {self.precision!r} received with mode 'exact', which compares "
                "to the bit: leave the precision out"
            )


class AbstractEngine(ABC):
    """Scores blocks of examples somewhere.

    **Order.** Blocks come back in any order. Versions of successive results may go down: whoever
    keeps scores must not let an older version overwrite a newer one, as `ScoreTable` does not.

    **Wholeness.** All scores of a block are measured with one published set of parameters, never
    with a mixture of two, and carry its version. Which of the versions published since the
    request it is, is the engine's choice; it takes the newest that it has.

    **Lateness.** `publish`, `request` and ``collect()`` never wait for a worker. A result may come
    any number of steps after its request, or never. Parameters on a CUDA device leave it beside
    the training, and are sent by the first call of any of the three that finds them in memory.

    **Loss.** A request ends in at most one result, whatever dies, hangs or comes back late. What a
    lost worker had is given to another. A block that fails three times is set aside and named
    in `news`. With nobody left to score, `collect` returns nothing, and training goes on.

    Attributes:
        kind: "inline", "local" or "ray".
        pays: whether scoring takes the time of the process that calls `collect`.
        options: what is asked of it.
    """

    kind: ClassVar[str]
    pays: ClassVar[bool] = False
    options: Options

    @abstractmethod
    def start(self, task: Task) -> None:
        """Gets ready to score, and waits until one worker is.

        Raises:
            UsageError: when the workers cannot be started as asked, or have other data.
        """

    @abstractmethod
    def publish(self, parameters: Mapping[str, Tensor], version: int) -> None:
        """Takes a copy of a whole state dictionary, for blocks that are begun from now on.

        Args:
            parameters: as of ``model.state_dict()``, always with the same names, shapes and types.
            version: training steps that they had taken; never smaller than before.
        """

    @abstractmethod
    def request(self, blocks: Sequence[Block]) -> None:
        """Asks for scores. A block that is under way already, or set aside, is not asked twice."""

    @abstractmethod
    def collect(self, wait: float = 0.0) -> list[Scored]:
        """What has come since the last call.

        Args:
            wait: seconds to wait for something, if nothing has come; returns earlier when it does.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends every worker, and waits for that. May be called twice."""

    @property
    @abstractmethod
    def room(self) -> int:
        """How many more blocks may be requested before they only queue up and grow old."""

    @property
    @abstractmethod
    def state(self) -> EngineState:
        """How it is."""

    @abstractmethod
    def news(self) -> list[str]:
        """What went wrong since the last call, in words: one line for each event."""
