"""Exact norms out of the training step itself: looked on at from its hand-out to its backward pass.

They are settled before ``backward()`` returns: some rules read the parameters again, and an
optimiser changes those. What the step divided by is not asked for. The gradient that arrives at the
losses says it, example by example: weights, nominal size, accumulation and a gradient scaler.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradsift.errors import UsageError
from gradsift.scores.gradient_norm import GradientNorm
from gradsift.scores.gradient_norm.watch import Watch

Told = Callable[[Tensor], None]
"""Takes the norms of a step's examples."""


class StepWatch:
    """Watches one training step at a time.

    Args:
        score: whose norms are wanted.
        model: that is trained.

    Raises:
        UsageError: for a model that cannot be watched: no module, compiled, or with batch
            statistics in train mode.

    Example:
        >>> model, told = nn.Linear(2, 1, bias=False), []
        >>> watch = StepWatch(GradientNorm(), model)
        >>> watch.begin(1)
        >>> losses = model(torch.tensor([[3.0, 4.0]]))[:, 0]
        >>> watch.expect(losses, told.append)
        >>> (losses.mean() / 8).backward()
        >>> told
        [tensor([5.])]
    """

    def __init__(self, score: GradientNorm, model: object) -> None:
        if not isinstance(model, nn.Module):
            raise UsageError(
                "the score GradientNorm watches training steps and received a "
                f"{type(model).__name__} as the model, expected a torch.nn.Module: use "
                "OutputGradient() for other callables"
            )
        score.watch(model, 1)
        self._score = score
        self._model = model
        self._watch: Watch | None = None

    @property
    def looks(self) -> bool:
        """Whether a step is being looked at."""
        return self._watch is not None

    def begin(self, count: int) -> None:
        """A batch of ``count`` examples is about to be handed out."""
        self._watch = self._score.watch(self._model, count)
        self._watch.__enter__()

    def expect(self, losses: Tensor, told: Told) -> None:
        """These are the losses of the examples; ``told`` gets their norms after the backward pass.

        An example whose loss counted nothing has no norm: nan.
        """
        if not losses.requires_grad:
            return

        def arrived(factors: Tensor) -> None:
            if self._watch is not None:
                after = torch.autograd.Variable._execution_engine.queue_callback  # pyright: ignore[reportAttributeAccessIssue]
                after(lambda: self._settle(factors.detach(), told))

        losses.register_hook(arrived)

    def end(self) -> None:
        """The step is over, or was never taken: nothing of the watch is left behind."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()

    def _settle(self, factors: Tensor, told: Told) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.__exit__(None)
            told(watch.norms(factors, size=1))
