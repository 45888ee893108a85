"""Averaged weights: where a run has been lately, instead of where its last step happened to end.

Noise makes the weights jump at every step, and delay at a high learning rate makes them swing.
Jumps mostly cancel in a mean over steps, swings do where the loss is quadratic around the minimum.
A mean costs one addition per step and changes no step.
"""

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor

from gradsift.errors import UsageError
from gradsift.parallel.objective import Weights


@final
class TailAverage:
    """``(1/n) Σ w_t`` over the updates that it was shown: usually those of the last half of a run.

    The mean is a running one, in the weights' own precision. Where the loss is convex between the
    weights averaged, its loss is at most the mean of their losses. For a network with BatchNorm the
    statistics belong to no average: take them anew (`gradsift.recalibrate_batch_norm`).

    Reference:
        Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"; over the
        tail only, Jain et al. 2018, https://arxiv.org/abs/1610.03774; for networks, Izmailov et
        al. 2018, https://arxiv.org/abs/1803.05407.

    Example:
        >>> import torch
        >>> average = TailAverage()
        >>> for value in (1.0, 2.0, 6.0):
        ...     average.add([torch.tensor([value])])
        >>> average.weights, average.count
        ([tensor([3.])], 3)
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: list[Tensor] = []

    @property
    def weights(self) -> list[Tensor]:
        """The mean, one tensor per parameter.

        Raises:
            UsageError: when nothing was added.
        """
        if not self.count:
            raise UsageError("an average of no weights asked for: add those of some updates first")
        return [tensor.clone() for tensor in self._mean]

    def add(self, weights: Weights) -> None:
        """The weights after one more update; copied, as they go on changing."""
        self.count += 1
        fresh = [weight.detach() for weight in weights]
        if self.count == 1:
            self._mean = [tensor.clone() for tensor in fresh]
            return
        for mean, tensor in zip(self._mean, fresh, strict=True):
            mean += (tensor - mean) / self.count

    def state_dict(self) -> dict[str, Any]:
        """The mean and how many weights it holds."""
        return {"count": self.count, "mean": [tensor.clone() for tensor in self._mean]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another average."""
        self.count = int(state["count"])
        self._mean = [tensor.clone() for tensor in state["mean"]]
