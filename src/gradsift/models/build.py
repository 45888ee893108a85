"""From the word after ``--model`` to a model, made from a generator alone."""

import torch
from torch import nn

from gradsift.errors import UsageError
from gradsift.models.convolutional import cnn
from gradsift.models.dense import linear, mlp
from gradsift.models.initialise import initialise
from gradsift.models.normalisation import find_norm
from gradsift.models.recurrent import Lstm
from gradsift.models.wide_resnet import parse_wide, wide_resnet

FAMILIES = ("linear", "mlp", "cnn", "wrn-D-K", "lstm")
"""The names that `build_model` understands; D and K are numbers."""

DEFAULT_NORM = "group"


def build_model(
    name: str,
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    generator: torch.Generator,
    norm: str | None = None,
) -> nn.Module:
    """A model with fresh parameters, on the CPU, that takes ``[batch, *input_shape]``.

    Args:
        name: one of `FAMILIES`.
        input_shape: of one input, without the batch.
        outputs: numbers per example; the model returns ``[batch, outputs]``.
        generator: where the initial parameters come from.
        norm: ``group`` or ``batch``, for the model that normalises (wrn); None means
            ``group`` there.

    Raises:
        UsageError: for an unknown name, a shape that the model cannot take, or a ``norm`` for a
            model without normalisation.

    Example:
        >>> model = build_model(
        ...     "wrn-10-1", (3, 32, 32), 10, generator=torch.Generator().manual_seed(0)
        ... )
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    with torch.device("meta"):
        model = describe(name, input_shape, outputs, norm)
    model.to_empty(device="cpu")
    initialise(model, generator)
    return model


def describe(
    name: str, input_shape: tuple[int, ...], outputs: int, norm: str | None = None
) -> nn.Module:
    """The layers of a model, on PyTorch's current default device.

    Under ``torch.device("meta")`` this costs nothing and reads no random state.

    Raises:
        UsageError: as `build_model`.

    Example:
        >>> with torch.device("meta"):
        ...     model = describe("linear", (4,), 2)
        >>> model[1].weight.is_meta
        True
    """
    chosen = norm_in_use(name, norm)
    if name.startswith("wrn"):
        depth, factor = parse_wide(name)
        return wide_resnet(input_shape, outputs, depth, factor, find_norm(str(chosen)))
    plain = {"linear": linear, "mlp": mlp, "cnn": cnn, "lstm": Lstm}
    if name not in plain:
        raise UsageError(f"model {name!r} is unknown: choose one of {', '.join(FAMILIES)}")
    if norm is not None:
        raise UsageError(f"model {name!r} has no normalisation to choose: leave norm {norm!r} out")
    return plain[name](input_shape, outputs)


def norm_in_use(name: str, norm: str | None) -> str | None:
    """What ``norm`` means for a model: the default where there is a choice and none was made.

    Example:
        >>> norm_in_use("wrn-16-4", None), norm_in_use("mlp", None)
        ('group', None)
    """
    return DEFAULT_NORM if norm is None and name.startswith("wrn") else norm
