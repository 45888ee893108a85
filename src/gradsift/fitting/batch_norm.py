"""BatchNorm's statistics of the data, where training saw examples in other proportions."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.data.split import Split, split_batch
from gradsift.errors import UsageError
from gradsift.nested import length, move
from gradsift.scores.base import Forward, call_model
from gradsift.scores.untouched import random_states

BATCHES = 64
"""Batches that statistics are taken over by default."""


class _Moments:
    """Mean and variance of each channel over all positions of all batches, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Takes the input of a layer: the channels are dimension 1, or the last of two."""
        values = inputs.detach().double().transpose(0, 1).flatten(1)
        count, mean = values.shape[1], values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        distance = mean - self.mean
        self.squares = self.squares + squares + distance.square() * (self.count * count / total)
        self.mean = self.mean + distance * (count / total)
        self.count = total

    def write(self, layer: Any) -> None:
        """As the layer's running statistics; the variance is divided by n − 1, as PyTorch does."""
        if self.mean is None or self.squares is None or self.count < 2:
            return
        layer.running_mean.copy_(self.mean)
        layer.running_var.copy_(self.squares / (self.count - 1))


def recalibrate_batch_norm(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int = BATCHES,
    split: Split = split_batch,
    forward: Forward = call_model,
) -> int:
    """Sets the running statistics of every BatchNorm layer to those of the data.

    While examples are chosen by score, running statistics follow the examples picked: a drawn batch
    has more hard ones than the data. Before evaluation the model is run over batches of the
    user's own loader in train mode, without a gradient, and each layer's statistics become the
    mean and the (unbiased) variance of each channel over all of these batches, in float64: what
    BatchNorm with ``momentum=None`` approaches, without its bias by batches of different sizes.
    Each batch is normalised by its own statistics meanwhile, as in training. Dropout stays off.

    Args:
        model: of which nothing else changes: neither parameters, nor training flags, nor gradients,
            nor random states. A model without BatchNorm is left alone.
        loader: batches in the data's own proportions, such as the plain training loader, not a
            sifted one.
        batches: how many to take at most.
        split: a batch into ``(inputs, targets)``, as in `gradsift.sift`; by default pairs, and
            mappings with ``labels``.
        forward: how the model is called, as in `gradsift.sift`.

    Returns:
        The number of layers that were set.

    Raises:
        UsageError: for fewer than one batch, or a loader without any.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> data = [(torch.tensor([[1.0], [2.0]]), None), (torch.tensor([[3.0], [6.0]]), None)]
        >>> recalibrate_batch_norm(model, data)
        1
        >>> model[0].running_mean, model[0].running_var
        (tensor([3.]), tensor([4.6667]))

    Reference:
        Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm" (precise BatchNorm). Where they average
        the variances of batches, the variance here is that over all batches together.
    """
    if batches < 1:
        raise UsageError(f"batches={batches} received, expected at least 1")
    layers = [layer for layer in _layers(model) if layer.track_running_stats]
    if not layers:
        return 0
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    cuda = [device.index or 0] if device.type == "cuda" else []
    with random_states(cuda), torch.no_grad(), _watched(model, layers) as moments:
        seen = 0
        for batch in islice(loader, batches):
            inputs, _ = split(batch)
            if length(inputs) > 1:
                forward(model, move(inputs, device))
                seen += 1
        if not seen:
            raise UsageError(
                "the loader gave no batch of two or more examples, which statistics need: pass the "
                "plain training loader"
            )
        for layer in layers:
            moments[layer].write(layer)
    return len(layers)


def _layers(model: nn.Module) -> list[Any]:
    kind = nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kind)]


def _take(moments: dict[Any, _Moments], layer: Any, given: Any, named: dict[str, Any]) -> None:
    moments[layer].add(given[0] if given else named["input"])


@contextmanager
def _watched(model: nn.Module, layers: list[Any]) -> Iterator[dict[Any, _Moments]]:
    """BatchNorm normalises by its batch and writes nothing; all else is in eval mode."""
    moments = {layer: _Moments() for layer in layers}
    flags = [(module, module.training) for module in model.modules()]
    hooks = [
        layer.register_forward_pre_hook(partial(_take, moments), with_kwargs=True)
        for layer in layers
    ]
    try:
        model.eval()
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield moments
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.track_running_stats = True
        for module, training in flags:
            module.training = training
