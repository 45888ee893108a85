"""Any module: `torch.func` on that module alone; where that fails, one example at a time.

The module is called again with the inputs that it had, as a batch of one. It must compute the same
again: a module that draws random numbers is refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradsift.errors import UsageError
from gradsift.nested import tensors
from gradsift.scores.gradient_norm.contributions import AbstractContribution, Whole
from gradsift.scores.gradient_norm.rules import Use


def fallback(use: Use) -> Mapping[str, AbstractContribution]:
    """Per-example gradients of ``use.wanted`` by `torch.func`, or by a loop."""
    known = dict(use.layer.named_parameters())
    values = {name: known[name].detach() for name in use.wanted}
    _refuse_dropout(use)
    state = torch.get_rng_state()
    try:
        found = _by_vmap(use, values)
    except (RuntimeError, ValueError, TypeError):
        torch.set_rng_state(state)
        found = _by_loop(use, values)
        if not torch.equal(torch.get_rng_state(), state):
            torch.set_rng_state(state)
            raise _random(use) from None
    return {name: Whole(part.reshape(use.count, -1)) for name, part in found.items()}


def _random(use: Use) -> UsageError:
    return UsageError(
        f"module {use.name!r} ({type(use.layer).__name__}) has no rule and draws random numbers, "
        "so its step cannot be repeated: score with mode='eval', or register a rule for it"
    )


def _refuse_dropout(use: Use) -> None:
    for module in use.layer.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise _random(use)


def _dimension(use: Use, value: Tensor) -> int | None:
    """Which dimension counts the examples."""
    for place in (0, 1):
        if value.dim() > place and value.shape[place] == use.count:
            return place
    return None


def _output_gradients(use: Use) -> list[tuple[int, Tensor]]:
    pairs = [(place, part) for place, part in enumerate(use.gradients) if part is not None]
    for _, part in pairs:
        if _dimension(use, part) is None:
            use.by_example(part)
    return pairs


def _weighted_sum(
    use: Use, parameters: dict[str, Tensor], call: Any, cotangents: list[Tensor]
) -> Tensor:
    args, kwargs = call
    outputs = tensors(torch.func.functional_call(use.layer, parameters, args, kwargs))
    places = [place for place, _ in _output_gradients(use)]
    parts = [
        (outputs[place] * cotangent).sum()
        for place, cotangent in zip(places, cotangents, strict=True)
    ]
    return torch.stack(parts).sum()


def _by_vmap(use: Use, values: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves, structure = pytree.tree_flatten((use.args, use.kwargs))
    moved = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    gradients = [part for _, part in _output_gradients(use)]
    placed = [_dimension(use, value) for value in moved]
    out = [_dimension(use, part) for part in gradients]

    def one(inputs: list[Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
        rows = iter(
            row if place is None else row.unsqueeze(place)
            for row, place in zip(inputs, placed, strict=True)
        )
        filled = [next(rows) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        call = pytree.tree_unflatten(filled, structure)
        weights = [part.unsqueeze(place or 0) for part, place in zip(cotangents, out, strict=True)]
        return torch.func.grad(lambda inner: _weighted_sum(use, inner, call, weights))(values)

    return torch.func.vmap(one, in_dims=(placed, out), randomness="error")(moved, gradients)


def _by_loop(use: Use, values: dict[str, Tensor]) -> dict[str, Tensor]:
    rows: list[tuple[Tensor, ...]] = []
    inner = {name: value.clone().requires_grad_() for name, value in values.items()}
    for example in range(use.count):

        def row(value: Any, example: int = example) -> Any:
            place = _dimension(use, value) if isinstance(value, Tensor) else None
            return value if place is None else value.narrow(place, example, 1)

        call = pytree.tree_map(row, (use.args, use.kwargs))
        cotangents = [row(part) for _, part in _output_gradients(use)]
        with torch.enable_grad():
            total = _weighted_sum(use, inner, call, cotangents)
        found = torch.autograd.grad(total, list(inner.values()), allow_unused=True)
        parts = zip(found, inner.values(), strict=True)
        rows.append(tuple(torch.zeros_like(v) if g is None else g for g, v in parts))
    return {
        name: torch.stack(found) for name, found in zip(inner, zip(*rows, strict=True), strict=True)
    }
