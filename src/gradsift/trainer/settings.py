"""The settings of a run, checked when they are made: nothing is trained on a typing mistake."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from gradsift.budget import Budget
from gradsift.errors import UsageError
from gradsift.gate import AbstractGate
from gradsift.models import norm_in_use
from gradsift.recipes import Recipe, recipes
from gradsift.records import Spend
from gradsift.schedule import find_schedule
from gradsift.sifting.spending import choose_spend
from gradsift.trainer.searching import check_engine

Parameters = Iterable[nn.Parameter]


@dataclass(frozen=True)
class Family:
    """A kind of optimiser.

    Attributes:
        make: from parameters, learning rate and weight decay.
        lr: the learning rate where none is given.
        weight_decay: likewise, as PyTorch has it.
    """

    make: Callable[[Parameters, float, float], Optimizer]
    lr: float
    weight_decay: float = 0.0


def _sgd(parameters: Parameters, lr: float, weight_decay: float) -> Optimizer:
    return SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)


def _adam(parameters: Parameters, lr: float, weight_decay: float) -> Optimizer:
    return Adam(parameters, lr=lr, weight_decay=weight_decay)


def _adamw(parameters: Parameters, lr: float, weight_decay: float) -> Optimizer:
    return AdamW(parameters, lr=lr, weight_decay=weight_decay)


OPTIMIZERS: Mapping[str, Family] = MappingProxyType(
    {
        "sgd": Family(_sgd, lr=0.05),
        "adam": Family(_adam, lr=1e-3),
        "adamw": Family(_adamw, lr=1e-3, weight_decay=0.01),
    }
)
"""How each optimiser is made. SGD has momentum 0.9."""


DEFAULT_BUDGET = Budget("seconds", 10)


@dataclass(frozen=True)
class Settings:
    """What a run does, apart from its data.

    Attributes:
        recipe: a name out of `gradsift.recipes`.
        model: a name that `gradsift.models.build_model` understands.
        budget: when the run ends.
        batch_size: examples per step.
        pool_ratio: candidates per trained example; None leaves the recipe's own.
        lr: learning rate at the start; None takes the optimiser's usual one.
        weight_decay: of the optimiser; None takes its usual one.
        schedule: of the learning rate over the budget: constant, cosine, linear or step.
        optimizer: sgd (with momentum 0.9), adam or adamw.
        norm: group or batch, for the model that normalises (wrn); None takes group.
        spend: what lower variance is spent on: noise, batch or lr. None takes lr for recipe auto
            with SGD, as the trainer sets the learning rate, and else what `gradsift.sift` does.
        cap: quantile at which the scores of a table are capped; None for the recipe's own (none).
        finish: last share of the run in the data's own order; None for the recipe's own.
        engine: where scores are searched for: inline, local or ray; None for nowhere.
        scorers: workers of the engine.
        ray_address: of the Ray cluster to join; None starts Ray on this machine.
        seed: of the parameters, the order of the data and the draws.
        device: where to train, in PyTorch's notation.

    Raises:
        UsageError: for a value that cannot work.

    Example:
        >>> Settings(optimizer="adam").learning_rate
        0.001
        >>> Settings(lr=-1.0)
        Traceback (most recent call last):
        gradsift.errors.UsageError: lr -1.0 received, expected a positive finite number
    """

    recipe: str = "auto"
    model: str = "mlp"
    budget: Budget = DEFAULT_BUDGET
    batch_size: int = 64
    pool_ratio: float | None = None
    lr: float | None = None
    weight_decay: float | None = None
    schedule: str = "cosine"
    optimizer: str = "sgd"
    norm: str | None = None
    spend: str | None = None
    cap: float | None = None
    finish: float | None = None
    engine: str | None = None
    scorers: int = 1
    ray_address: str | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size} received, expected at least 1")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr {self.lr} received, expected a positive finite number")
        decay = self.weight_decay
        if decay is not None and not (math.isfinite(decay) and decay >= 0):
            raise UsageError(f"weight decay {decay} received, expected a finite number >= 0")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed {self.seed} received, expected a whole number from 0 to 2^63-1")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(
                f"optimizer {self.optimizer!r} is unknown: choose one of {', '.join(OPTIMIZERS)}"
            )
        check_engine(self.engine, self.scorers, self.ray_address)
        find_schedule(self.schedule)
        check_device(self.device)
        choose_spend(self.spend, self.assembled())

    @property
    def spending(self) -> Spend:
        """What lower variance is spent on."""
        recipe = self.assembled()
        if self.spend is not None:
            return choose_spend(self.spend, recipe)
        if recipe.source == "auto" and self.optimizer == "sgd":
            return "lr"
        keeps_size = norm_in_use(self.model, self.norm) == "batch"
        return "noise" if keeps_size else choose_spend(None, recipe)

    @property
    def learning_rate(self) -> float:
        """The learning rate at the start."""
        return OPTIMIZERS[self.optimizer].lr if self.lr is None else float(self.lr)

    @property
    def decay(self) -> float:
        """The weight decay in use."""
        usual = OPTIMIZERS[self.optimizer].weight_decay
        return usual if self.weight_decay is None else float(self.weight_decay)

    def assembled(self) -> Recipe:
        """The recipe with the cap, finish and pool ratio asked for; issgd for auto on an engine.

        Raises:
            UsageError: for an unknown name, or a cap, finish or pool ratio that it cannot have.
        """
        searched = self.engine is not None and self.recipe == "auto"
        recipe = recipes["issgd" if searched else self.recipe]
        recipe = recipe if self.cap is None else replace(recipe, cap=self.cap)
        recipe = recipe if self.finish is None else replace(recipe, finish=self.finish)
        if self.pool_ratio is None:
            return recipe
        if recipe.source != "pool":
            raise UsageError(
                f"pool ratio {self.pool_ratio} received, but recipe {self.recipe!r} scores no "
                "pool: leave it out"
            )
        if isinstance(recipe.gate, AbstractGate) and not recipe.gate.takes_ratio:
            raise UsageError(
                f"pool ratio {self.pool_ratio} received, but recipe {self.recipe!r} sizes its "
                "pool itself: leave it out"
            )
        return replace(recipe, ratio=float(self.pool_ratio))

    def optimise(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """A fresh optimiser at the learning rate of the start."""
        return OPTIMIZERS[self.optimizer].make(parameters, self.learning_rate, self.decay)

    def listed(self) -> dict[str, Any]:
        """Every setting as plain values, in a stable order, for logs and reports."""
        return {
            **asdict(self),
            "budget": str(self.budget),
            "lr": self.learning_rate,
            "weight_decay": self.decay,
            "spend": self.spending,
            "finish": self.assembled().finish,
            "norm": norm_in_use(self.model, self.norm),
            "pool_ratio": self.assembled().ratio if self.assembled().source == "pool" else None,
        }


def check_device(name: str) -> torch.device:
    """The device of a name, if this machine has it.

    Raises:
        UsageError: naming the devices there are.

    Example:
        >>> check_device("cpu")
        device(type='cpu')
        >>> check_device("cuda:4096")
        Traceback (most recent call last):
        gradsift.errors.UsageError: device 'cuda:4096' is not available here: choose one of cpu...
    """
    available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    named = name if device is None or device.type != "cuda" else f"cuda:{device.index or 0}"
    if device is None or named not in available:
        raise UsageError(
            f"device {name!r} is not available here: choose one of {', '.join(available)}"
        )
    return device
