"""One example by plain autograd, beside the norm that it had in its batch.

Nothing in a module says which dimension counts the examples, or that examples do not mix. One
example tells.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.errors import UsageError
from gradsift.nested import length, take
from gradsift.records import LossFunction
from gradsift.scores.base import Forward
from gradsift.scores.gradient_norm.heads import output_gradients

TOLERANCE = {torch.float64: 1e-6, torch.float32: 0.01}
"""Relative difference that counts as one; 0.2 where the passes are in low precision."""


def check_first_example(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    forward: Forward,
    asked: tuple[Mapping[str, nn.Parameter], Mapping[nn.Parameter, Tensor]],
    norms: Tensor,
) -> None:
    """Raises a `UsageError` where the norm of the first example is not the one it has alone."""
    count = length(inputs)
    if count != len(norms) or count < 2:
        return
    x, y = (take(side, slice(0, 1), count) for side in (inputs, targets))
    outputs = forward(model, x)
    low = torch.is_autocast_enabled(norms.device.type) or any(
        value.itemsize < 4 for value in asked[0].values()
    )
    alone = float(_norm(output_gradients(loss_fn, outputs, y)[0], *asked))
    batched = float(norms[0])
    allowed = 0.2 if low else TOLERANCE.get(norms.dtype, 0.01)
    if abs(alone - batched) > allowed * max(alone, batched) + torch.finfo(norms.dtype).tiny:
        raise UsageError(
            f"example 0 has the gradient norm {alone:.4g} by itself and {batched:.4g} in a batch "
            f"of {count}, expected the same: the model mixes examples, or a layer's first "
            "dimension counts something else than examples (a batch of another size tells)"
        )


def _norm(
    pairs: list[tuple[Tensor, Tensor]],
    trained: Mapping[str, nn.Parameter],
    scales: Mapping[nn.Parameter, Tensor],
) -> Tensor:
    if not pairs:
        return torch.zeros(())
    outputs = [output for output, _ in pairs]
    gradients = [gradient.to(output.dtype) for output, gradient in pairs]
    parameters = list(trained.values())
    found = torch.autograd.grad(outputs, parameters, gradients, allow_unused=True)
    norms = [
        torch.linalg.vector_norm((part.to_dense() if part.is_sparse else part).double() * scale)
        for part, scale in zip(found, (scales.get(p, 1.0) for p in parameters), strict=True)
        if part is not None
    ]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
