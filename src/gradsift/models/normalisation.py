"""The normalisation layer of the image models: by groups of channels, or by the batch.

Batch normalisation makes the loss of one example depend on the others of its batch. The loss is
then no sum over examples, and no importance weights make its gradient unbiased. So groups are the
default.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from gradsift.errors import UsageError

Normalise = Callable[[int], nn.Module]
"""From a number of channels to a layer that keeps their shape."""

GROUPS = 8


def by_group(channels: int) -> nn.GroupNorm:
    """Group normalisation with 8 groups (Wu & He 2018); ``channels`` is a multiple of 8.

    Example:
        >>> by_group(16).num_groups
        8
    """
    return nn.GroupNorm(GROUPS, channels)


def by_batch(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation (Ioffe & Szegedy 2015), as the published networks have it.

    Example:
        >>> by_batch(16).num_features
        16
    """
    return nn.BatchNorm2d(channels)


NORMS: Mapping[str, Normalise] = MappingProxyType({"group": by_group, "batch": by_batch})
"""Both by name."""


def find_norm(name: str) -> Normalise:
    """The normalisation of a name.

    Raises:
        UsageError: naming the choices.

    Example:
        >>> find_norm("batch") is by_batch
        True
    """
    if name not in NORMS:
        raise UsageError(f"norm {name!r} is unknown: choose one of {', '.join(NORMS)}")
    return NORMS[name]
