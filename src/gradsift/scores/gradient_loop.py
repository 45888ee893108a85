"""Exact per-example gradient norms, one example at a time: slow, and right for any model.

For probes and tests. A loop costs a forward and a backward pass for every example.
"""

from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsift.errors import UsageError
from gradsift.nested import length, take
from gradsift.records import LossFunction, check_per_example
from gradsift.scores.base import Forward, call_model
from gradsift.scores.precision import autocast
from gradsift.scores.untouched import Mode, check_mode, untouched


def gradient_norms(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    forward: Forward = call_model,
    mode: Mode = "eval",
) -> Float[Tensor, " batch"]:
    """``‖∂ℓ_i/∂θ‖`` over all parameters ``θ`` that require a gradient, for each example ``i``.

    Each example is a batch of its own, in full precision. Nothing of the model changes, neither
    gradients nor statistics nor random states. An example whose loss depends on no parameter has
    norm zero.

    Args:
        model: the model as it is now.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example.
        inputs: what ``forward`` takes.
        targets: what ``loss_fn`` takes.
        forward: how the model is called.
        mode: "eval"; "train" keeps dropout on, and BatchNorm sees a single example.

    Returns:
        One norm per example, in the unit of the loss over that of the parameters, in float32 or
        better, on the device of the parameters.

    Raises:
        UsageError: when no parameter requires a gradient, when ``loss_fn`` does not return one
            loss per example, or for an unknown mode.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> def squares(outputs, targets):
        ...     return (outputs[:, 0] - targets) ** 2 / 2
        >>> with torch.no_grad():
        ...     _ = model.weight.zero_()
        >>> gradient_norms(model, squares, torch.tensor([[3.0, 4.0]]), torch.tensor([2.0]))
        tensor([10.])
    """
    check_mode(mode)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UsageError(
            "received a model without a parameter that requires a gradient, expected at least "
            "one: gradient norms are those of the parameters that are trained"
        )
    count = length(inputs)
    norms: list[Tensor] = []
    with untouched(model, mode), torch.enable_grad(), autocast(inputs, "float32"):
        for place in range(count):
            x, y = (take(side, slice(place, place + 1), count) for side in (inputs, targets))
            losses = loss_fn(forward(model, x), y)
            check_per_example(losses, 1, "loss_fn returned")
            norms.append(_norm(losses, parameters))
    return torch.stack(norms)


def _norm(losses: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    device = parameters[0].device
    kind = reduce(torch.promote_types, (value.dtype for value in parameters), torch.float32)
    found: tuple[Tensor | None, ...] = ()
    if losses.requires_grad:
        found = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
    dense = [part.to_dense() if part.is_sparse else part for part in found if part is not None]
    if not dense:
        return torch.zeros((), dtype=kind, device=device)
    norms = [torch.linalg.vector_norm(part.to(device, kind)) for part in dense]
    return torch.linalg.vector_norm(torch.stack(norms))
