"""The exact per-example gradient norm, in one forward and one backward pass to the outputs.

Per-example gradients are never kept: a layer's inputs and the gradients with respect to its
outputs determine the norm, in the cheapest form of `contributions`.
"""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsift.errors import UsageError
from gradsift.nested import length
from gradsift.records import LossFunction
from gradsift.scores.base import AbstractScore, Forward, call_model
from gradsift.scores.gradient_norm.capture import Capture, Scales
from gradsift.scores.gradient_norm.check import check_first_example
from gradsift.scores.gradient_norm.graph import stops
from gradsift.scores.gradient_norm.heads import output_gradients, scaled_to_one
from gradsift.scores.gradient_norm.precondition import diagonal
from gradsift.scores.gradient_norm.units import (
    Selection,
    Unit,
    is_compiled,
    notice,
    selected,
    units_of,
)
from gradsift.scores.gradient_norm.watch import Watch
from gradsift.scores.precision import Precision, autocast, check_precision
from gradsift.scores.untouched import Mode, check_mode, untouched


@final
@dataclass(frozen=True, eq=False)
class GradientNorm(AbstractScore):
    """``s_i = ‖P ∂ℓ_i/∂θ‖₂``, exactly, over the parameters θ that require a gradient.

    One forward pass, and one backward pass to the layers' outputs in which no gradient of a
    parameter is computed. A layer's inputs x and output gradients δ then give the norm: for a
    linear map of vectors ``‖x‖·‖δ‖``; for sequences and convolutions a sum over positions, in Gram
    form or written out, whichever counts fewer operations and numbers moved (`costs`). Parameters
    that are used several times, or by several layers, count once, with the sum of their gradients.
    Layers without a rule are taken by `torch.func`, by themselves, with a notice in the log
    "gradsift".

    The score scales with ``loss_fn``: twice the loss is twice the score. It depends on no
    reduction, since ``loss_fn`` returns one loss for each example. Fitted examples keep their
    small norms, also in low precision: the backward pass carries gradients of norm one.

    Args:
        params: "all", "last" for the last layer alone (a cheap proxy), or names of parameters or
            modules.
        mode: "eval", or "train" to score with dropout on.
        precision: of both passes; "auto" takes bfloat16 where the device computes in it. Sums are
            in float32 or better.
        precondition: an Adam, AdamW, RMSprop or Adagrad optimiser, whose diagonal is P: its steps
            vary least when examples are drawn by ``‖P g_i‖``. None means P = 1.
        check: compare one example with plain autograd the first time a model is scored in eval
            mode.

    Raises:
        UsageError: for batch statistics (BatchNorm in train mode), no parameter that requires a
            gradient, an unknown name, a loss that is not one number per example, or a layer that
            mixes examples.

    Deviations from the papers: Alain et al. have the norm of fully connected networks only.

    Reference:
        Alain, Lamb, Sankar, Courville & Bengio, *Variance Reduction in SGD by Distributed
        Importance Sampling*, 2015, https://arxiv.org/abs/1511.06481; Goodfellow, *Efficient
        Per-Example Gradient Computations*, 2015, https://arxiv.org/abs/1510.01799.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> def squares(outputs, targets):
        ...     return (outputs[:, 0] - targets) ** 2 / 2
        >>> with torch.no_grad():
        ...     _ = model.weight.zero_()
        >>> GradientNorm()(model, squares, torch.tensor([[3.0, 4.0]]), torch.tensor([2.0]))
        tensor([10.])
    """

    params: Selection = "all"
    mode: Mode = "eval"
    precision: Precision = "auto"
    precondition: torch.optim.Optimizer | None = None
    check: bool = True
    _whole: WeakKeyDictionary[nn.Module, frozenset[str]] = field(
        default_factory=WeakKeyDictionary, repr=False, init=False
    )
    """Models that were scored before, and their modules that have to be taken as a whole."""

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_precision(self.precision)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it knows no model yet."""
        settings = (self.params, self.mode, self.precision, self.precondition, self.check)
        return GradientNorm, settings

    def __call__(
        self, model: Any, loss_fn: LossFunction, inputs: Any, targets: Any
    ) -> Float[Tensor, " batch"]:
        """One norm for each example, in the unit of the loss over that of the parameters."""
        return self.norms(model, loss_fn, inputs, targets)

    def norms(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Any,
        targets: Any,
        forward: Forward = call_model,
    ) -> Float[Tensor, " batch"]:
        """The same for a model that is called as ``forward(model, inputs)``."""
        trained = selected(model, self.params)
        scales = diagonal(self.precondition, trained.values())
        known = model in self._whole
        with untouched(model, self.mode), torch.enable_grad(), _uncompiled():
            found = self._norms(model, loss_fn, (inputs, targets), forward, (trained, scales))
            if self.check and not known and self.mode == "eval":
                with autocast(inputs, self.precision):
                    check_first_example(
                        model, loss_fn, inputs, targets, forward, (trained, scales), found
                    )
        self._whole.setdefault(model, frozenset())
        return found

    def watch(self, model: nn.Module, count: int) -> Watch:
        """Looks on at one training step, and tells the norms of its examples.

        The step's own forward and backward pass give what the norms need, so they cost little
        more than the step does, and are exact for what it computed: its mode, its dropout, its
        precision. No number of the step changes.

        Args:
            model: the model that is trained.
            count: how many examples the batch holds.

        Example:
            >>> model = nn.Linear(2, 1, bias=False)
            >>> x, weights = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([0.5, 2.0])
            >>> with GradientNorm().watch(model, 2) as seen:
            ...     loss = (weights * model(x)[:, 0]).sum() / 2
            ...     loss.backward()
            >>> seen.norms(weights, size=2)
            tensor([5., 1.])
        """
        if any(is_compiled(part) or part._compiled_call_impl for part in model.modules()):
            raise UsageError(
                "watch received a compiled model, whose step shows no layer, expected one that "
                "runs as written: score it with GradientNorm, which runs it so, or watch it "
                "without torch.compile"
            )
        trained = selected(model, self.params)
        units = units_of(model, trained, self._whole.get(model, frozenset()))
        notice(units)
        return Watch(model, units, trained, count, diagonal(self.precondition, trained.values()))

    def _norms(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: tuple[Any, Any],
        forward: Forward,
        asked: tuple[Mapping[str, nn.Parameter], Scales],
    ) -> Tensor:
        inputs, targets = data
        trained, scales = asked
        while True:
            whole = self._whole.get(model, frozenset())
            units = units_of(model, trained, whole)
            with Capture(units, length(inputs), scales, standins=True) as capture:
                with autocast(inputs, self.precision):
                    outputs = forward(model, inputs)
                capture.stop_listening()
                escaped = capture.escaped(outputs, trained)
                if not escaped:
                    notice(units)
                    return _backward(capture, loss_fn, outputs, targets, trained)
            self._whole[model] = whole | {_around(units, name, whole) for name in escaped}


def _backward(
    capture: Capture,
    loss_fn: LossFunction,
    outputs: Any,
    targets: Any,
    trained: Mapping[str, nn.Parameter],
) -> Tensor:
    """From outputs to norms; the backward pass starts with gradients of norm one."""
    pairs, count, kind = output_gradients(loss_fn, outputs, targets)
    first = next(iter(trained.values()))
    kind = torch.promote_types(kind, first.dtype if first.is_floating_point() else kind)
    capture.count = count
    ends = stops(capture.passages) + [
        edge for call in capture.calls if not call.unit.whole for edge in call.passage.outputs
    ]
    try:
        if not (pairs and ends):
            return torch.zeros(count, dtype=kind, device=first.device)
        cotangents, sizes = scaled_to_one(pairs, count)
        sources = [output for output, _ in pairs]
        with autocast(sources, "float32"):
            torch.autograd.grad(sources, ends, cotangents, allow_unused=True)
        squares = capture.squared_norms()
    finally:
        capture.forget()
    if squares is None:
        return torch.zeros(count, dtype=kind, device=first.device)
    return squares.sqrt() * sizes.to(squares)


def _around(units: list[Unit], name: str, whole: frozenset[str]) -> str:
    """The smallest module around a parameter that is larger than the one that missed it."""
    place = name.rpartition(".")[0]
    tried = {*whole, *(unit.name for unit in units if unit.whole)}
    while place and place in tried:
        place = place.rpartition(".")[0]
    if "" in whole:
        raise UsageError(
            f"parameter {name!r} is used outside of the model's own forward pass: score the "
            "module that uses it"
        )
    return place


def _uncompiled() -> AbstractContextManager[Any]:
    """A compiled model runs as it was written: a compiled region shows no layer."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
