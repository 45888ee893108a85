"""The diagonal by which an adaptive optimiser multiplies a gradient, read from its state.

Adam's step is ``P m`` with ``P = 1/(sqrt(v̂) + ε)``. While P changes slowly, the variance of the
step is that of ``P g``, so the best proposal is proportional to ``‖P g_i‖``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.errors import UsageError


def diagonal(
    optimizer: torch.optim.Optimizer | None, parameters: Iterable[nn.Parameter]
) -> dict[nn.Parameter, Tensor]:
    """A factor for every number of every parameter; empty without an optimiser or any state.

    Where parameter groups have different learning rates, their ratio to the largest one is part
    of the diagonal. A common factor is left out. Parameters without state yet have the factor one.

    Args:
        optimizer: Adam, AdamW, RMSprop or Adagrad; None means no preconditioner.
        parameters: those that count.

    Raises:
        UsageError: for another optimiser.

    Example:
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> adam = torch.optim.Adam([weight], eps=0.0)
        >>> weight.grad = torch.tensor([4.0])
        >>> adam.step()
        >>> diagonal(adam, [weight])[weight]
        tensor([0.2500])
    """
    if optimizer is None:
        return {}
    formula = next(
        (found for kind, found in _FORMULAS.items() if isinstance(optimizer, kind)), None
    )
    if formula is None:
        raise UsageError(
            f"precondition received {type(optimizer).__name__}, expected one of "
            f"{', '.join(sorted({kind.__name__ for kind in _FORMULAS}))}: plain SGD has no diagonal"
        )
    largest = max((float(group["lr"]) for group in optimizer.param_groups), default=0.0)
    wanted = {id(parameter): parameter for parameter in parameters}
    found: dict[nn.Parameter, Tensor] = {}
    for group in optimizer.param_groups:
        ratio = float(group["lr"]) / largest if largest > 0 else 1.0
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if id(parameter) in wanted and state:
                found[parameter] = ratio * formula(group, state).detach()
    return found


def _adam(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    squares = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    correction = 1 - group["betas"][1] ** float(state["step"])
    return 1 / ((squares / correction).sqrt() + group["eps"])


def _rmsprop(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    squares = state["square_avg"]
    if group["centered"]:
        squares = squares.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
    return 1 / (squares.sqrt() + group["eps"])


def _adagrad(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    return 1 / (state["sum"].sqrt() + group["eps"])


_FORMULAS = {
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
}
