"""From a recipe and a loader to the policy that decides."""

from gradsift.data.sources import AbstractSource, MapSource
from gradsift.engine.engines import inline
from gradsift.errors import UsageError
from gradsift.gate import MeasuredGate
from gradsift.sifting.auto import Auto
from gradsift.sifting.candidates import Chooser
from gradsift.sifting.memory import Memory
from gradsift.sifting.picked import Picked
from gradsift.sifting.policy import AbstractPolicy, AlwaysPool, SwitchedPool, Unscored
from gradsift.sifting.predicted import Predicted
from gradsift.sifting.reduced import ReducedPool
from gradsift.sifting.searched import Searched
from gradsift.sifting.setup import Setup
from gradsift.sifting.tabled import Tabled


def choose_policy(setup: Setup, source: AbstractSource, chooser: Chooser) -> AbstractPolicy:
    """The policy of a recipe.

    Raises:
        UsageError: when the recipe draws ids and the loader has none, or an order of its own.
    """
    recipe, gate = setup.recipe, setup.recipe.gate
    drawing = ("iid", "table", "engine", "history", "predicted")
    if (recipe.source in drawing or recipe.cap is not None) and not source.plain_order:
        raise UsageError(
            f"recipe {recipe.name!r} draws ids from the whole data set, but this loader has no "
            "ids or an order of its own, which defines another objective: use a map-style "
            "DataLoader with shuffle=True, or another recipe"
        )
    if recipe.search is not None and isinstance(source, MapSource):
        return Searched(chooser, source, setup.engine or inline(), recipe.search)
    if recipe.rule is not None and isinstance(source, MapSource):
        return Picked(recipe.rule, chooser, source)
    if not recipe.scored:
        return Unscored(recipe, source, chooser.generator)
    if recipe.prediction is not None and recipe.resampling is not None:
        return Predicted(
            source.examples or 0,
            recipe.prediction,
            recipe.resampling,
            chooser.generator,
            setup.seed,
        )
    if recipe.source == "table":
        return Tabled(_memory(setup, source, adapts=False), chooser.generator)
    if isinstance(gate, MeasuredGate):
        memory = _memory(setup, source, adapts=True) if source.plain_order else None
        return Auto(chooser, gate, memory)
    if recipe.holdout is not None:
        return ReducedPool(recipe.holdout, chooser, _with_ids(setup, source))
    if gate is None:
        return AlwaysPool(recipe, chooser.resampler)
    return SwitchedPool(recipe, gate, chooser)


def _memory(setup: Setup, source: AbstractSource, *, adapts: bool) -> Memory:
    examples, steps = source.examples or 0, len(source)
    return Memory(setup.recipe, examples, setup.seed, adapts=adapts, steps=steps)


def _with_ids(setup: Setup, source: AbstractSource) -> MapSource:
    if not isinstance(source, MapSource):
        raise UsageError(
            f"recipe {setup.recipe.name!r} knows examples by id, but this loader has no ids: use a "
            "DataLoader over map-style data, or another recipe"
        )
    return source
