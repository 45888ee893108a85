"""The engine as a sifted loader has it: one process talks to it, all learn the same from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradsift.engine.curves import Curves
from gradsift.engine.interface import AbstractEngine, EngineState, Scored
from gradsift.engine.sweep import Sweep
from gradsift.engine.task import Task
from gradsift.errors import UsageError
from gradsift.sifting.ranks import AbstractRanks, Alone

WAIT = 0.5
"""Seconds of one look at an engine that is waited for, in exact mode."""

PATIENCE = 120
"""Looks without a worker or a result after which an exact sweep is given up."""


@dataclass(frozen=True, eq=False)
class Delivery:
    """What the leading process passes on to the others.

    Attributes:
        found: scores, in the order in which they are taken.
        old: numbers of blocks whose scores are forgotten after that.
        state: of the engine.
    """

    found: Sequence[Scored]
    old: Sequence[int]
    state: EngineState


class Station:
    """Publishes, asks and collects where this process leads; elsewhere it knows what it is told.

    Args:
        engine: not started yet.
        sweep: which says what to ask for.
        curves: likewise, of data sets to evaluate.
    """

    def __init__(self, engine: AbstractEngine, sweep: Sweep, curves: Curves) -> None:
        self._said: list[str] = []
        self._engine = engine
        self._sweep = sweep
        self._curves = curves
        self._ranks: AbstractRanks = Alone()
        self._told = engine.state
        self._found: list[Scored] = []
        self._started = False

    @property
    def state(self) -> EngineState:
        """Of the engine; where another process leads, as it was last told."""
        return self._engine.state if self._ranks.leads else self._told

    @property
    def exact(self) -> bool:
        """Whether every publication waits for all scores."""
        return self._engine.options.mode == "exact"

    def join(self, ranks: AbstractRanks, model: nn.Module, make_task: Callable[[], Task]) -> None:
        """Starts the engine in the process that leads; the others wait until it runs.

        Args:
            ranks: the processes that sift together.
            model: without wrappers.
            make_task: called where the engine is started.

        Raises:
            UsageError: for parameters that are spread over processes, or an engine that cannot
                be started.
        """
        if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
            raise UsageError(
                "an engine received a model whose parameters are spread over processes, as by "
                "fully_shard, expected whole ones: use DistributedDataParallel or recipe='table'"
            )
        self._ranks = ranks
        if ranks.leads:
            self._engine.start(make_task())
        self._told = ranks.lead(self._engine.state)
        self._started = True

    def publish(self, parameters: Mapping[str, Tensor], version: int) -> None:
        """Sends parameters to the workers; in exact mode waits for all scores by them."""
        if not (self._started and self._ranks.leads):
            return
        self._engine.publish(parameters, version)
        if self.exact:
            self._sweep_exactly(version)

    def ask(self) -> None:
        """Asks for as many blocks as there is room for, with a slice now and then."""
        if self._started and self._ranks.leads and not self.exact:
            blocks = self._sweep.next(self._engine.room, self.state.set_aside)
            self._engine.request(self._curves.among(blocks))

    def collect(self) -> None:
        """Takes what has come, to be passed on."""
        if self._ranks.leads:
            self._found += self._engine.collect()
            self._said += self._engine.news()

    def empty(self) -> list[Scored]:
        """What was collected since the last call; blocks of one version follow each other."""
        found, self._found = self._found, []
        return sorted(found, key=lambda scored: scored.version)

    def pass_on(self, found: Sequence[Scored], old: Sequence[int]) -> Delivery:
        """The same delivery in every process: that of the one that leads."""
        delivery = self._ranks.lead(Delivery(found, old, self._engine.state))
        self._told = delivery.state
        return delivery

    def news(self) -> list[str]:
        """What was said since the last call."""
        said, self._said = self._said, []
        return said

    def state_dict(self) -> list[dict[str, Any]]:
        """What was collected and not passed on, as plain values."""
        return [
            {
                "number": scored.block.number,
                "scores": scored.scores.clone(),
                "version": scored.version,
                "seconds": scored.seconds,
            }
            for scored in self._found
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Goes on with what another station had collected."""
        blocks = {block.number: block for block in (*self._sweep.blocks, *self._curves.slices)}
        self._found = [
            Scored(blocks[kept["number"]], kept["scores"], kept["version"], kept["seconds"])
            for kept in state
            if kept["number"] in blocks
        ]

    def _sweep_exactly(self, version: int) -> None:
        """Waits until every block was measured with these parameters, or nobody is left."""
        missing = {block.number: block for block in (*self._sweep.blocks, *self._curves.slices)}
        found: dict[int, Scored] = {}
        idle = 0
        while missing and idle < PATIENCE:
            self._engine.request(list(missing.values()))
            came = self._engine.collect(wait=WAIT)
            for scored in came:
                number = scored.block.number
                if scored.version >= version and missing.pop(number, None) is not None:
                    found[number] = scored
            for number in self._engine.state.set_aside:
                missing.pop(number, None)
            idle = 0 if came else idle + 1
        if missing:
            self._said.append(
                f"an exact sweep was given up with {len(missing)} blocks missing: "
                "training goes on with older scores"
            )
        self._found += [found[number] for number in sorted(found)]
