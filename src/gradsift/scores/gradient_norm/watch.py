"""Exact norms as a by-product of a training step."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsift.errors import UsageError
from gradsift.scores.gradient_norm.capture import Capture, Scales
from gradsift.scores.gradient_norm.units import Unit


class Watch:
    """Looks on at one forward and one backward pass: a context manager from `GradientNorm.watch`.

    What it notes of the step is let go of layer by layer during the backward pass, and for good
    when the norms are read.

    Args:
        model: the model that is trained.
        units: its modules to look at.
        trained: its parameters that count.
        count: examples in the batch.
        scales: of a preconditioner, as before the step.
    """

    def __init__(
        self,
        model: nn.Module,
        units: list[Unit],
        trained: Mapping[str, nn.Parameter],
        count: int,
        scales: Scales,
    ) -> None:
        self._model = model
        self._trained = trained
        self._count = count
        self._capture = Capture(units, count, scales)
        self._root: Any = None
        self._found: Tensor | None = None

    def __enter__(self) -> "Watch":
        self._capture.__enter__()
        self._root = self._model.register_forward_hook(self._returned)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._found = self._capture.squared_norms()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stops looking on, without norms; nothing is left behind."""
        self._root.remove()
        self._capture.close()
        self._capture.forget()

    def _returned(self, module: nn.Module, args: Any, outputs: Any) -> None:
        del module, args
        if not self._capture.listening:
            return
        escaped = self._capture.escaped(outputs, self._trained)
        if escaped:
            raise UsageError(
                f"parameter {escaped[0]!r} was used without a call of its own module, so the step "
                "does not show its gradient by example: score with GradientNorm itself, or "
                "register a rule for the module around it"
            )

    def norms(
        self, weights: Float[Tensor, " batch"] | None = None, size: float | None = None
    ) -> Float[Tensor, " batch"]:
        """``‖P ∂ℓ_i/∂θ‖`` of the examples of the step, after the block.

        The step trained on ``(1/size) Σ_i w_i ℓ_i``, so what came back for example i is divided by
        ``w_i/size``. An example of weight zero told nothing about itself: its norm is nan, which
        the score table counts as unseen.

        Args:
            weights: the importance weights of the step; None means one for each.
            size: what divided the sum: the nominal batch size, times the number of accumulated
                batches, over the factor of a gradient scaler. None means the number of examples,
                as in a mean; 1 a sum.

        Raises:
            UsageError: before the block has ended with a backward pass in it, or for another
                number of weights.
        """
        if self._found is None:
            raise UsageError(
                "the watch has seen no backward pass, expected loss.backward() inside the block: "
                "read the norms after it"
            )
        found = self._found.sqrt()
        divisor = float(self._count if size is None else size)
        if weights is None:
            return found * divisor
        if tuple(weights.shape) != (self._count,):
            raise UsageError(
                f"norms received weights of shape {list(weights.shape)}, expected "
                f"[{self._count}]: one for each example of the batch"
            )
        factor = weights.detach().abs().to(found)
        return torch.where(factor > 0, found * divisor / factor, torch.nan)
