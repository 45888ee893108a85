"""Would it pay? A short training of a copy, in the user's own order, that measures every source."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, cast

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from gradsift.clock import AbstractClock, WallClock
from gradsift.data.split import Split, split_batch
from gradsift.errors import UsageError
from gradsift.gate import MeasuredGate, Offer, gain
from gradsift.monitors.log import NullLog
from gradsift.recipes import Recipe
from gradsift.records import LossFunction, Source
from gradsift.scores.base import Forward, call_model
from gradsift.scores.untouched import random_states
from gradsift.sifting.auto import Auto
from gradsift.sifting.loop import SiftedLoader
from gradsift.sifting.setup import Setup
from gradsift.sifting.wrapped import bare

LOOKING = Recipe(source="auto", gate=MeasuredGate(margin=math.inf, allowance=1.0), name="probe")
"""Measures without an allowance, and never draws by what it finds."""


@dataclass(frozen=True)
class Prospect:
    """What one source of examples would give on this model, data and machine.

    Attributes:
        source: "table", "pool" or "two-stage".
        candidates: scored examples per trained one; 1 where none is scored.
        variance_ratio: second moment of the gradient, uniform over drawn, as estimated.
        lower: the lower end of its interval, two standard errors below.
        seconds: of a step, over those of a plain one.
        gain: progress per second over that of the plain order, at an unchanged step size.
        gain_lower: the same at the lower end.
    """

    source: Source
    candidates: float
    variance_ratio: float
    lower: float
    seconds: float
    gain: float
    gain_lower: float

    @property
    def name(self) -> str:
        """In words, with the candidates per trained example where any are scored."""
        return self.source if self.candidates == 1 else f"{self.source} of {self.candidates:g}"


@dataclass(frozen=True)
class Prospects:
    """What a probe found.

    Attributes:
        steps: that the copy was trained for.
        passes: over the data, in those steps.
        step_seconds: of a plain step.
        loading_share: of a plain step, spent on loading.
        scoring_share: seconds to score one example over the seconds to train one; nan if unknown.
        tau: how uneven fresh scores are.
        noise_scale: B_n, examples in a batch whose noise is as large as the signal.
        sources: what each source would give, best first.
        recommendation: in one sentence.

    Example:
        >>> table = Prospect("table", 1.0, 2.0, 1.8, seconds=1.01, gain=1.4, gain_lower=1.3)
        >>> print(Prospects(99, 1.5, 0.01, 0.1, 0.3, 2.0, 128.0, (table,), "Use recipe='auto'."))
        plain step 10 ms, 10% of it loading; scoring an example costs 0.30 of training it
        ...
        table               2.00 (>= 1.80)     1.01x           1.40 (>= 1.30)
        ...
    """

    steps: int
    passes: float
    step_seconds: float
    loading_share: float
    scoring_share: float
    tau: float
    noise_scale: float
    sources: tuple[Prospect, ...]
    recommendation: str

    def __str__(self) -> str:
        lines = [
            f"plain step {1e3 * self.step_seconds:.3g} ms, {self.loading_share:.0%} of it loading; "
            f"scoring an example costs {self.scoring_share:.2f} of training it",
            f"tau {self.tau:.2f}, noise scale {self.noise_scale:.3g} examples, "
            f"{self.steps:,} steps, {self.passes:.2f} passes",
            "",
            f"{'source':16} {'variance ratio':>20} {'seconds':>9} {'progress per second':>24}",
        ]
        for found in self.sources:
            ratio = f"{found.variance_ratio:.2f} (>= {found.lower:.2f})"
            gain = f"{found.gain:.2f} (>= {found.gain_lower:.2f})"
            lines.append(f"{found.name:16} {ratio:>20} {found.seconds:8.2f}x {gain:>24}")
        return "\n".join([*lines, "", self.recommendation])


def probe(
    loader: Any,
    model: Any,
    loss_fn: LossFunction,
    *,
    optimizer: Optimizer | None = None,
    seconds: float = 30.0,
    split: Split | None = None,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    clock: AbstractClock | None = None,
) -> Prospects:
    """Trains a copy for a short while and says whether sampling by score would pay.

    The copy takes the loader's own order. Its steps give their scores away; some batches are also
    scored in an extra pass, and differentiated in two halves. After one pass over the data the
    proposals of the score table are priced. The user's model, optimiser, loader and random states
    are left as they were.

    Args:
        loader: as for `gradsift.sift`.
        model: a module; copied.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example.
        optimizer: the user's own, copied together with the model; None takes SGD with a learning
            rate of 0.01 and momentum 0.9.
        seconds: how long to train. The table can be judged only after a whole pass.
        split: as for `gradsift.sift`.
        forward: as for `gradsift.sift`.
        device: as for `gradsift.sift`.
        seed: of what is random here.
        clock: where seconds come from; real ones by default.

    Raises:
        UsageError: for a model that is no module, seconds that are none, an optimiser of another
            model, or anything that `gradsift.sift` refuses.

    Example:
        >>> import torch, gradsift
        >>> data = torch.utils.data.TensorDataset(torch.randn(256, 5), torch.randint(3, (256,)))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
        >>> found = gradsift.probe(loader, torch.nn.Linear(5, 3), loss_fn, seconds=2.0)
        >>> "variance ratio" in found.recommendation
        True
    """
    _check(model, optimizer, seconds)
    clock = clock or WallClock()
    with _untouched_randomness(loader):
        twin, stepper = copy.deepcopy((bare(model), optimizer))
        setup = Setup(
            model=twin,
            loss_fn=loss_fn,
            recipe=LOOKING,
            split=split or split_batch,
            forward=forward or call_model,
            device=None if device is None else torch.device(device),
            spend="noise",
            seed=seed,
            rank=0,
            world_size=1,
            per_example_seed=False,
            clock=clock,
            log=NullLog(),
        )
        train = SiftedLoader(loader, setup)
        _train(train, setup, stepper or SGD(twin.parameters(), lr=0.01, momentum=0.9), seconds)
    return _prospects(train, cast(Auto, train.policy))


def _train(train: SiftedLoader, setup: Setup, optimizer: Optimizer, seconds: float) -> None:
    start = setup.clock.now()
    for batch in chain.from_iterable(repeat(train)):
        loss = batch.loss(setup.forward(setup.model, batch.inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        setup.clock.charge(trained=len(batch))
        if setup.clock.now() - start >= seconds:
            return


def _prospects(train: SiftedLoader, policy: Auto) -> Prospects:
    evidence, b = policy.evidence, policy.batch_size
    scale = evidence.noise_scale(b)
    offers = policy.deciding.offers(b)
    if not offers:
        raise UsageError(
            f"a probe of {train.steps} steps is too short to measure anything, expected at least "
            "twenty: give it more seconds"
        )
    plain = offers[0]
    found = [_prospect(offer, plain, scale, b) for offer in offers[1:]]
    loading = evidence.loading.median("off") or 0.0
    scoring = evidence.scoring.mean * b / plain.seconds if evidence.scoring.known else math.nan
    return Prospects(
        steps=train.steps,
        passes=train.examples_trained / policy.memory.table.size if policy.memory else math.nan,
        step_seconds=plain.seconds,
        loading_share=loading / plain.seconds,
        scoring_share=scoring,
        tau=evidence.tau,
        noise_scale=scale,
        sources=tuple(sorted(found, key=lambda prospect: -prospect.gain)),
        recommendation=_recommendation(offers, scale, b),
    )


def _prospect(offer: Offer, plain: Offer, scale: float, batch_size: int) -> Prospect:
    return Prospect(
        offer.source,
        offer.candidates,
        offer.variance_ratio,
        offer.lower,
        offer.seconds / plain.seconds,
        gain(offer, plain, scale, batch_size),
        gain(offer, plain, scale, batch_size, lower=True),
    )


def _recommendation(offers: list[Offer], scale: float, batch_size: int) -> str:
    decision = MeasuredGate().decide(offers, in_use="off", noise_scale=scale, batch_size=batch_size)
    if decision.offer.source != "off":
        return f"Use recipe='auto': it would draw from the {decision.reason}."
    if all(offer.source != "table" for offer in offers):
        return (
            "No judgement on the table: it takes more than one pass over the data, so probe for "
            f"longer; of what was measured, {decision.reason}."
        )
    return f"Leave sampling off: {decision.reason}."


@contextmanager
def _untouched_randomness(loader: Any) -> Iterator[None]:
    """Global generators, and those of the loader and its sampler, are as before."""
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = [getattr(owner, "generator", None) for owner in owners]
    kept = [(each, each.get_state()) for each in generators if isinstance(each, torch.Generator)]
    with random_states(list(range(torch.cuda.device_count()))):
        try:
            yield
        finally:
            for generator, state in kept:
                generator.set_state(state)


def _check(model: Any, optimizer: Any, seconds: float) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}, expected a torch.nn.Module to copy")
    if not 0 < seconds < math.inf:
        raise UsageError(f"seconds {seconds} received, expected a finite number above 0")
    own = {id(parameter) for parameter in model.parameters()}
    groups = [] if optimizer is None else optimizer.param_groups
    if any(id(parameter) not in own for group in groups for parameter in group["params"]):
        raise UsageError("the optimizer trains other parameters than the model's: pass its own")
