"""One training run whose gradients are looked at on the way: how good would old scores be by now?

At some steps the exact gradient norms of a fixed sample of the training examples are taken, with
parameters as they are. A checkpoint compares those of its own step with those of earlier ones.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradsift import engines, recipes, sift
from gradsift.data.problem import Problem
from gradsift.loader import SiftedLoader
from gradsift.monitors.sampled import mean_square_of_draws
from gradsift.monitors.traces import population_traces
from gradsift.scores import GradientNorm

INPUTS, WIDTH, HIDDEN, DEVIATION = 3072, 2048, 4, 0.01
"""As published: 3072-4x2048-10, weights normal with this deviation, biases zero."""

FLOOR = 0.2
"""Share of uniform draws in the proposals whose weights are bounded."""


@dataclass(frozen=True)
class Plan:
    """How one run trains, and when it is looked at.

    Attributes:
        method: "uniform", shuffled, or "issgd", by the scores of an inline engine.
        sweeps: of the engine over the data, for each of the trainer's passes.
        lr: constant.
        steps: of the run.
        checkpoints: steps after which everything is measured.
        ages: in steps, of scores that are tried at each checkpoint.
        batch: examples per step.
        every: steps between publications.
        momentum: of Nesterov.
        width: of the hidden layers.
        sample: training examples whose gradients are looked at.
        tests: examples of the test error.
        seed: of parameters, orders and draws.
        smoothing: share of the old score that ISSGD keeps.
    """

    method: str
    lr: float
    steps: int
    checkpoints: tuple[int, ...]
    ages: tuple[int, ...]
    sweeps: float = 1.0
    batch: int = 128
    every: int = 32
    momentum: float = 0.95
    width: int = 256
    sample: int = 1500
    tests: int = 2000
    seed: int = 0
    smoothing: float = recipes["issgd"].smoothing

    @property
    def looks(self) -> set[int]:
        """Steps at which norms are needed."""
        return {step - age for step in self.checkpoints for age in self.ages if step >= age}


@dataclass(frozen=True)
class Checkpoint:
    """Covariance traces of one example's weighted gradient, and where the run is.

    Attributes:
        step: of the run.
        loss: mean over the sample.
        test_error: share of wrong classes.
        mean_square: squared norm of the mean gradient, without bias.
        uniform: of uniform draws.
        ideal: of draws by the norms of this very step.
        drawn: of what the table would draw now; None without a table.
        pure: by age, of draws in proportion to norms so old, where the run is old enough.
        floored: by age, of the same with a share `FLOOR` of uniform draws.
        age: median age of the table's scores, in steps; None without a table.
        law: exponent and uniform share of the table; None without a table.
    """

    step: int
    loss: float
    test_error: float
    mean_square: float
    uniform: float
    ideal: float
    drawn: float | None
    pure: Mapping[int, float]
    floored: Mapping[int, float]
    age: float | None
    law: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Sample:
    """Training examples that stand for all.

    Attributes:
        ids: of the training set.
        inputs: of these.
        targets: of these.
    """

    ids: Tensor
    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Look:
    """What the sample says at one step.

    Attributes:
        norms: float64, of every example's gradient.
        mean_square: as in `Checkpoint`.
        loss: the mean.
    """

    norms: Tensor
    mean_square: float
    loss: float


@dataclass(eq=False)
class Run:
    """A run under way.

    Attributes:
        plan: of it.
        model: trained.
        sample: looked at.
        looks: by step.
        score: of the sample.
    """

    plan: Plan
    model: nn.Module
    sample: Sample
    loss_fn: Any
    looks: dict[int, Look] = field(default_factory=dict)
    score: GradientNorm = field(default_factory=lambda: GradientNorm(precision="float32"))

    def look(self, step: int) -> None:
        """Takes the norms, where some checkpoint will want them."""
        if step in self.plan.looks:
            self.looks[step] = look(self.model, self.loss_fn, self.sample, self.score)


def network(shape: tuple[int, ...], outputs: int, width: int, seed: int) -> nn.Module:
    """Four hidden layers, the published initialisation at another width.

    A layer's weights have the deviation that keeps its gain: ``0.01·√(published inputs/inputs)``.
    """
    sizes = [math.prod(shape), *[width] * HIDDEN, outputs]
    published = [INPUTS, *[WIDTH] * HIDDEN]
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, wanted, known in zip(sizes, sizes[1:], published, strict=False):
        with torch.device("meta"):
            layer = nn.Linear(inputs, wanted)
        layer.to_empty(device="cpu")
        nn.init.normal_(
            layer.weight, std=DEVIATION * math.sqrt(known / inputs), generator=generator
        )
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sample_of(data: Any, count: int, seed: int) -> Sample:
    """So many examples without copies, in ascending order."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(len(data), generator=generator)[:count].sort().values
    return Sample(ids, *stacked(data, ids.tolist()))


def stacked(data: Any, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of some examples."""
    inputs, targets = zip(*(data[place] for place in ids), strict=True)
    return torch.stack(inputs), torch.as_tensor(targets)


def look(model: nn.Module, loss_fn: Any, sample: Sample, score: GradientNorm) -> Look:
    """Norms and mean gradient of the sample, by exact rules; the model is as before."""
    norms = score(model, loss_fn, sample.inputs, sample.targets).double()
    loss = loss_fn(model(sample.inputs), sample.targets).mean()
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    square = sum(float(part.double().square().sum()) for part in gradient)
    mean_square = mean_square_of_draws(norms, torch.ones_like(norms), square)
    return Look(norms, mean_square, float(loss.detach()))


def floored(norms: Tensor, mean_square: float, masses: Tensor) -> float:
    """``E[g²/(N p)] − ‖μ‖²`` for proposals with these ``N p``."""
    return float((norms.square() / masses).mean()) - mean_square


def masses_of(scores: Tensor) -> Tensor:
    """``N p`` of a proposal by scores with a share `FLOOR` of uniform draws."""
    return (1 - FLOOR) * scores / scores.mean() + FLOOR


def assess(run: Run, step: int, test_error: float, train: SiftedLoader) -> Checkpoint:
    """All traces at one step, out of the looks so far."""
    now = run.looks[step]
    old = {age: run.looks[step - age].norms for age in run.plan.ages if age <= step}
    pure = {age: population_traces(now.norms, s, now.mean_square) for age, s in old.items()}
    table, status = train.table, train.engine_status
    drawn, law = None, None
    if table is not None:
        masses = table.size * table.probabilities(run.sample.ids)
        drawn = floored(now.norms, now.mean_square, masses)
        inner = table.distribution.inner
        law = float(getattr(inner, "exponent", 1.0)), table.distribution.uniform
    return Checkpoint(
        step=step,
        loss=now.loss,
        test_error=test_error,
        mean_square=now.mean_square,
        uniform=pure[0].uniform,
        ideal=pure[0].ideal,
        drawn=drawn,
        pure={age: traces.drawn for age, traces in pure.items()},
        floored={age: floored(now.norms, now.mean_square, masses_of(s)) for age, s in old.items()},
        age=None if status is None else status["age"],
        law=law,
    )


def sifted(problem: Problem, data: Any, model: nn.Module, plan: Plan) -> SiftedLoader:
    """The loader of a method. Its engine scores ``sweeps · batch`` examples at every step."""
    generator = torch.Generator().manual_seed(plan.seed)
    loader = DataLoader(data, plan.batch, shuffle=True, drop_last=True, generator=generator)
    if plan.method == "uniform":
        return sift(loader, model, problem.loss_fn, recipe="uniform", seed=plan.seed)
    engine = engines.inline(block=max(1, round(plan.sweeps * plan.batch)), every=plan.every)
    recipe = replace(recipes["issgd"], smoothing=plan.smoothing)
    return sift(loader, model, problem.loss_fn, recipe=recipe, engine=engine, seed=plan.seed)


def train(problem: Problem, plan: Plan) -> Iterator[Checkpoint]:
    """One run; its checkpoints as they come. Age 0 must be among the ages."""
    model = network(problem.input_shape, problem.outputs, plan.width, plan.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), plan.lr, momentum=plan.momentum, nesterov=plan.momentum > 0
    )
    data: Any = problem.train
    run = Run(plan, model, sample_of(data, plan.sample, plan.seed), problem.loss_fn)
    test: Any = problem.test
    held_out = stacked(test, list(range(min(plan.tests, len(test)))))
    batches = sifted(problem, data, model, plan)
    run.look(0)
    for step, batch in enumerate(chain.from_iterable(repeat(batches)), 1):
        optimizer.zero_grad()
        batch.loss(model(batch.inputs)).backward()
        optimizer.step()
        run.look(step)
        if step in plan.checkpoints:
            batches.settle()
            with torch.no_grad():
                error = float(problem.error_fn(model(held_out[0]), held_out[1]).mean())
            yield assess(run, step, error, batches)
        if step == plan.steps:
            break
    batches.close()
