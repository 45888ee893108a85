"""What a sifted loader works on, and what it counts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from gradsift.clock import AbstractClock
from gradsift.data.split import Split
from gradsift.engine.interface import AbstractEngine
from gradsift.monitors.log import AbstractLog
from gradsift.recipes.recipe import Recipe
from gradsift.records import LossFunction, Plan, Spend
from gradsift.scores.base import Forward


@dataclass(frozen=True, eq=False)
class Setup:
    """Fixed when a loader is sifted.

    Attributes:
        model: trained by the user, read here.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example.
        recipe: what to do.
        split: a collated batch into inputs and targets.
        forward: how the model is called for scoring.
        device: where batches go; None follows the model.
        spend: what lower variance is spent on.
        seed: of the draws.
        rank: of this process among data-parallel ones; None asks `torch.distributed`.
        world_size: how many there are; likewise.
        per_example_seed: whether every access to an example is seeded by seed, step and id.
        clock: where seconds come from.
        log: where measurements go.
        engine: where scores are searched for; None for nowhere.
    """

    model: Any
    loss_fn: LossFunction
    recipe: Recipe
    split: Split
    forward: Forward
    device: torch.device | None
    spend: Spend
    seed: int
    rank: int | None
    world_size: int | None
    per_example_seed: bool
    clock: AbstractClock
    log: AbstractLog
    engine: AbstractEngine | None = None


def batch_norms(model: Any) -> list[nn.Module]:
    """Its BatchNorm layers. In train mode they make the loss depend on the batch as a whole.

    Example:
        >>> len(batch_norms(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
        1
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def device_of(setup: Setup) -> torch.device:
    """Where batches go: as asked for, or where the model is by now."""
    if setup.device is not None:
        return setup.device
    if isinstance(setup.model, nn.Module):
        for parameter in setup.model.parameters():
            return parameter.device
    return torch.device("cpu")


def described(setup: Setup, examples: int | None) -> str:
    """What has to be the same in every process of a run, in words.

    Args:
        setup: of the sifted loader.
        examples: N, or None for a stream.
    """
    text = f"{examples} examples by recipe {setup.recipe.name!r} with seed {setup.seed}"
    if setup.engine is None:
        return text
    options = setup.engine.options
    return (
        f"{text} and the {options.mode} {setup.engine.kind} engine in blocks of {options.block}, "
        f"publishing every {options.every or 'usual number of'} steps, "
        f"evaluating {', '.join(options.evaluate) or 'nothing'}"
    )


def first_notices(setup: Setup, *, one_pass: bool, plain_order: bool) -> list[str]:
    """What is worth saying before the first batch.

    Args:
        setup: what was asked for.
        one_pass: whether the data can be read only once.
        plain_order: whether ids may be drawn from the whole data set.
    """
    recipe = setup.recipe
    said = []
    if recipe.biased:
        said.append(
            f"recipe {recipe.name!r} is biased on purpose: its weighted mean is not the mean over "
            "the data"
        )
    if recipe.scored and one_pass:
        said.append(
            "the loader is a one-pass stream: a pool uses several of its batches, so there are "
            "fewer steps, and their number is not known beforehand"
        )
    if recipe.source == "auto" and not plain_order:
        said.append(
            "this loader has no ids or an order of its own, which defines another objective: only "
            "pools are considered, no table"
        )
    if recipe.scored and any(layer.training for layer in batch_norms(setup.model)):
        said.append(
            "the model has BatchNorm in train mode: its loss is no sum over examples, so weights "
            "keep no gradient unbiased, and running statistics follow the examples picked: call "
            "gradsift.recalibrate_batch_norm before evaluation, or use GroupNorm"
        )
    return said


@dataclass
class Counts:
    """What has happened so far.

    Attributes:
        steps: batches handed out.
        trained: examples handed out.
        scored: examples scored by an extra forward pass.
        quarantined: scores that were not finite.
    """

    steps: int = 0
    trained: int = 0
    scored: int = 0
    quarantined: int = 0

    def state_dict(self) -> dict[str, int]:
        """All of them by name."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on counting.

        Example:
            >>> counts = Counts()
            >>> counts.load_state_dict(Counts(steps=3, trained=48).state_dict())
            >>> counts.steps, counts.trained
            (3, 48)
        """
        self.steps, self.trained = state["steps"], state["trained"]
        self.scored, self.quarantined = state["scored"], state["quarantined"]


@dataclass(frozen=True)
class OpenStep:
    """A step whose batch was handed out, and whose time nobody has learnt yet.

    Attributes:
        plan: of the step.
        before: when it began, by the clock.
        loading: seconds of it that were spent on loading.
    """

    plan: Plan
    before: float
    loading: float
