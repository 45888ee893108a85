"""The nouns that flow: a draw, a batch with its weights, scores on their way to a table.

Every record is immutable. A weight is fixed when its example is drawn and travels with it, so
neither prefetching nor a stale score can attach it to another example.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradsift.errors import TrainingError, UsageError
from gradsift.nested import move

Source = Literal["off", "table", "pool", "two-stage"]
"""Where the examples of a step come from; "off" is the user's own order."""

Spend = Literal["noise", "batch", "lr"]
"""What lower variance is spent on: less noise per step, a smaller batch, or a larger step."""

LossFunction = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets)``: one loss per example."""


@dataclass(frozen=True, eq=False)
class Draw:
    """What a draw chose out of a set of candidates, and what each choice weighs.

    The estimator is ``(1/size) Σ_j weights[j] · v(positions[j])`` and its expectation is the mean
    of ``v`` over all candidates, for every ``v``, unless the draw is declared biased.

    Attributes:
        positions: int64, which candidates were chosen.
        weights: float64, dimensionless; their expectation under the draw is one.
        size: the nominal number of examples: the divisor. Only a Poisson draw returns another
            number of positions.
        quarantined: how many candidates had a score that was not finite.

    Example:
        >>> import torch
        >>> weights = torch.tensor([0.5, 1.5], dtype=torch.float64)
        >>> draw = Draw(torch.tensor([3, 0]), weights, size=2)
        >>> values = torch.tensor([10.0, 20.0, 30.0, 40.0])
        >>> float((draw.weights * values[draw.positions]).sum() / draw.size)
        17.5
    """

    positions: Int64[Tensor, " drawn"]
    weights: Float64[Tensor, " drawn"]
    size: int
    quarantined: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, for `from_state_dict`."""
        return {
            "positions": self.positions.clone(),
            "weights": self.weights.clone(),
            "size": self.size,
            "quarantined": self.quarantined,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Draw":
        """The draw that was saved."""
        return cls(state["positions"], state["weights"], state["size"], state["quarantined"])


@dataclass(frozen=True, eq=False)
class ScoreUpdate:
    """Scores by value, on their way to whoever keeps them.

    Attributes:
        index: int64 example ids.
        score: one score per id, on the device where it was computed.
        version: how many training steps the parameters had taken.
        label: class of each example, where targets are classes.
    """

    index: Int64[Tensor, " drawn"]
    score: Float[Tensor, " drawn"]
    version: int
    label: Int64[Tensor, " drawn"] | None = None


@dataclass(frozen=True)
class Plan:
    """What the next step will do, decided when its example ids are requested.

    The default is the next batch of the user's own order, every example with weight one.

    Attributes:
        candidates: how many examples to fetch as a pool.
        size: how many of the pool, or of the drawn ids, to train on.
        draw: ids drawn from the whole data set already, with their weights, in place of a pool.
    """

    candidates: int | None = None
    size: int | None = None
    draw: Draw | None = None

    @property
    def source(self) -> Source:
        """Where the examples of the step come from; "off" is the user's own order.

        Example:
            >>> Plan().source, Plan(candidates=192, size=64).source
            ('off', 'pool')
        """
        if self.draw is None:
            return "off" if self.candidates is None else "pool"
        return "table" if self.size is None else "two-stage"

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, for `from_state_dict`."""
        draw = None if self.draw is None else self.draw.state_dict()
        return {"candidates": self.candidates, "size": self.size, "draw": draw}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Plan":
        """The plan that was saved."""
        draw = None if state["draw"] is None else Draw.from_state_dict(state["draw"])
        return cls(state["candidates"], state["size"], draw)


PLAIN = Plan()
"""The next batch of the user's own order."""


@dataclass(frozen=True)
class StepRecord:
    """One step as the monitors see it. They read it and never steer.

    Attributes:
        drawn: whether its examples were drawn, rather than taken in the user's own order.
        loss: the weighted mean loss, or None where the loop did not call `WeightedBatch.loss`.
        tau: the gate's moving average of τ, or None without a gate.
        kappa: efficiency of the proposal in this batch, ``(E[w g])²/E[w² g²]``, or None.
        largest_weight: of this batch.
        trained: examples handed out for training so far.
        scored: examples scored by an extra forward pass so far.
        quarantined: candidates whose score was not finite so far.
    """

    drawn: bool
    loss: float | None
    tau: float | None
    kappa: float | None
    largest_weight: float
    trained: int
    scored: int
    quarantined: int


@dataclass(frozen=True, eq=False)
class WeightedBatch:
    """A batch to train on. Unpacks as ``inputs, targets, weights``.

    Attributes:
        inputs: what the model takes.
        targets: what the loss takes.
        weights: one importance weight per example, in PyTorch's default floating type.
        ids: of the examples, stable over the run, as a tensor or a list; `indices` is for reading.
        size: the nominal batch size, which divides every weighted sum.
        drawn: False where the examples come in the user's own order, each with weight one.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example.
        report: called by `loss` with the batch, the outputs and the losses.
        several: whether other processes train on batches of the same step.

    Example:
        >>> import torch, gradsift
        >>> batches = [(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))]
        >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
        >>> train = gradsift.sift(batches, torch.nn.Linear(2, 2), loss_fn, recipe="uniform")
        >>> for batch in train:
        ...     inputs, targets, weights = batch
        ...     right = batch.mean(targets == 1)
        >>> right, weights
        (tensor(0.5000), tensor([1., 1., 1., 1.]))
    """

    inputs: Any
    targets: Any
    weights: Float[Tensor, " drawn"]
    ids: Int64[Tensor, " drawn"] | list[Any]
    size: int
    drawn: bool
    loss_fn: LossFunction
    report: Callable[["WeightedBatch", Any, Tensor], None]
    several: bool = False

    def __iter__(self) -> Iterator[Any]:
        yield self.inputs
        yield self.targets
        yield self.weights

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def indices(self) -> Int64[Tensor, " drawn"]:
        """int64 ids of the examples, stable over the run, on the device of the weights."""
        return torch.as_tensor(self.ids, dtype=torch.int64, device=self.weights.device)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "WeightedBatch":
        """The same batch on another device. Ids move along with the rest."""
        return replace(
            self,
            inputs=move(self.inputs, device, non_blocking=non_blocking),
            targets=move(self.targets, device, non_blocking=non_blocking),
            weights=self.weights.to(device, non_blocking=non_blocking),
            ids=self.indices.to(device, non_blocking=non_blocking),
        )

    def among(self, sizes: Sequence[int]) -> "WeightedBatch":
        """The same batch as one of several processes' batches of these sizes.

        The mean over K processes of weighted means is the mean over all examples when rank k
        weighs its own by ``K·b_k / Σ b``: one, unless sizes differ, as in a last batch.
        """
        if len(sizes) == 1:
            return self
        batch = replace(self, several=True)
        factor = len(sizes) * self.size / sum(sizes)
        return batch if factor == 1 else replace(batch, weights=factor * self.weights, drawn=True)

    def mean(self, values: Tensor) -> Tensor:
        """The unbiased mean of any per-example number: ``(1/size) Σ_j w_j · values_j``.

        In the user's own order this is ``values.mean()``, to the bit.

        Args:
            values: one number per example, shape ``[batch]``; booleans count as 0 and 1.

        Raises:
            UsageError: for any other shape.
        """
        check_per_example(values, len(self), "batch.mean received values")
        return self._mean(values)

    def _mean(self, values: Tensor) -> Tensor:
        if not values.is_floating_point():
            values = values.to(self.weights.dtype)
        if not self.drawn:
            return values.mean()
        return (self.weights.to(values.device) * values).sum() / self.size

    def loss(self, outputs: Any) -> Tensor:
        """The weighted mean of the losses of ``outputs``; hands the examples' scores on.

        Raises:
            UsageError: when ``loss_fn`` does not return one loss per example.
            TrainingError: before any update, naming the examples whose loss is not finite. On a
                CUDA device, where looking would stall the step, and in one of several processes,
                where the others would wait for this one, it comes with the next batch instead;
                `check_finite` may be called before the update.
        """
        values = self.loss_fn(outputs, self.targets)
        check_per_example(values, len(self), "loss_fn returned")
        mean = self._mean(values)
        later = self.several or values.device.type != "cpu"
        if not later and not math.isfinite(mean.item()):
            self.check_finite(values)
        self.report(self, outputs, values)
        return mean

    def check_finite(self, values: Tensor) -> None:
        """Raises a `TrainingError` that names the examples whose value is not finite."""
        bad = ~torch.isfinite(values.detach())
        if bool(bad.any()):
            ids = self.indices[bad].tolist()
            named = ", ".join(map(str, ids[:10])) + (", …" if len(ids) > 10 else "")
            stopped = "" if self.several else "the step was stopped before the update; "
            raise TrainingError(
                f"the loss of {len(ids)} of {len(values)} examples is not finite (ids {named}): "
                f"{stopped}lower the learning rate or look at these examples"
            )


def check_per_example(values: Tensor, count: int, what: str) -> None:
    """Raises a `UsageError` unless ``values`` holds one number for each of ``count`` examples.

    Example:
        >>> import torch
        >>> check_per_example(torch.tensor(0.5), 64, "loss_fn returned")
        Traceback (most recent call last):
        gradsift.errors.UsageError: loss_fn returned a scalar, expected [64]: use reduction='none'
    """
    if tuple(values.shape) == (count,):
        return
    if values.dim() == 0:
        raise UsageError(f"{what} a scalar, expected [{count}]: use reduction='none'")
    raise UsageError(
        f"{what} shape {list(values.shape)}, expected [{count}]: reduce every other dimension to "
        "one number per example, with a denominator that does not depend on the rest of the batch"
    )
