"""Normalisation: the gradient of the scale is ``Σ δ ⊙ x̂``, that of the shift ``Σ δ``."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.scores.gradient_norm.contributions import AbstractContribution, Whole
from gradsift.scores.gradient_norm.rules import Use, register_rule


@register_rule(nn.LayerNorm, nn.RMSNorm, reads_outputs=False)
def over_features(use: Use) -> Mapping[str, AbstractContribution]:
    """A scale for every feature, over the last dimensions; positions add up."""
    layer, inputs, gradient = use.layer, use.input, use.gradient
    last = -len(layer.normalized_shape)
    found: dict[str, AbstractContribution] = {}
    if "weight" in use.wanted:
        if isinstance(layer, nn.RMSNorm):
            normal = F.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
        else:
            normal = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        found["weight"] = _positions_added(use, gradient * normal.to(gradient.dtype), last)
    if "bias" in use.wanted:
        found["bias"] = _positions_added(use, gradient, last)
    return found


def _positions_added(use: Use, values: Tensor, last: int) -> Whole:
    flat = use.by_example(values.flatten(last))
    return Whole(flat.reshape(use.count, -1, flat.shape[-1]).sum(1))


@register_rule(nn.GroupNorm, reads_outputs=False)
def by_group(use: Use) -> Mapping[str, AbstractContribution]:
    """A scale for every channel."""
    return _by_channel(use, F.group_norm(use.input, use.layer.num_groups, eps=use.layer.eps))


@register_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, reads_outputs=False)
def by_instance(use: Use) -> Mapping[str, AbstractContribution]:
    """A scale for every channel; statistics of the example, or running ones in eval mode."""
    layer = use.layer
    own = layer.training or not layer.track_running_stats
    mean, variance = (None, None) if own else (layer.running_mean, layer.running_var)
    return _by_channel(
        use, F.instance_norm(use.input, mean, variance, use_input_stats=own, eps=layer.eps)
    )


@register_rule(
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, reads_outputs=False
)
def by_running_statistics(use: Use) -> Mapping[str, AbstractContribution]:
    """Frozen statistics; those of a batch are refused before (`units`)."""
    layer, inputs = use.layer, use.input
    mean, variance = layer.running_mean.to(inputs), layer.running_var.to(inputs)
    return _by_channel(use, F.batch_norm(inputs, mean, variance, eps=layer.eps))


def _by_channel(use: Use, normal: Tensor) -> Mapping[str, AbstractContribution]:
    gradient = use.by_example(use.gradient)
    found: dict[str, AbstractContribution] = {}
    if "weight" in use.wanted:
        found["weight"] = Whole(_added(gradient, normal.to(gradient.dtype)))
    if "bias" in use.wanted:
        found["bias"] = Whole(gradient.flatten(2).sum(2) if gradient.dim() > 2 else gradient)
    return found


def _added(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).flatten(2).sum(2) if one.dim() > 2 else one * other
