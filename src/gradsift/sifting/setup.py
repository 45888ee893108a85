"""What a sifted loader works on, and what it counts."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradsift.clock import AbstractClock
from gradsift.data.split import Split
from gradsift.engine.interface import AbstractEngine
from gradsift.monitors.log import AbstractLog
from gradsift.recipes.recipe import Recipe
from gradsift.records import LossFunction, Spend
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
