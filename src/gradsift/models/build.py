"""From the word after ``--model`` to a model, made from a generator alone."""

import math

import torch
from torch import nn

from gradsift.errors import UsageError
from gradsift.models.convolutional import cnn
from gradsift.models.dense import linear, mlp
from gradsift.models.initialise import initialise
from gradsift.models.normalisation import find_norm
from gradsift.models.recurrent import Lstm, TokenLstm
from gradsift.models.sparse import Densify
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
    vocabulary: int | None = None,
    sparse: bool = False,
) -> nn.Module:
    """A model with fresh parameters, on the CPU, that takes ``[batch, *input_shape]``.

    Args:
        name: one of `FAMILIES`.
        input_shape: of one input, without the batch.
        outputs: numbers per example; the model returns ``[batch, outputs]``.
        generator: where the initial parameters come from.
        norm: ``group`` or ``batch``, for the model that normalises (wrn); None means
            ``group`` there.
        vocabulary: how many tokens there are, where an input is int64 tokens; None where it is
            float32 numbers.
        sparse: whether inputs are pairs ``(column, value)``, ``[batch, pairs, 2]``, of rows of
            ``input_shape``.

    Raises:
        UsageError: for an unknown name, inputs that the model cannot take, or a ``norm`` for a
            model without normalisation.

    Example:
        >>> model = build_model(
        ...     "wrn-10-1", (3, 32, 32), 10, generator=torch.Generator().manual_seed(0)
        ... )
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    with torch.device("meta"):
        model = describe(name, input_shape, outputs, norm, vocabulary=vocabulary, sparse=sparse)
    model.to_empty(device="cpu")
    initialise(model, generator)
    return model


def describe(
    name: str,
    input_shape: tuple[int, ...],
    outputs: int,
    norm: str | None = None,
    *,
    vocabulary: int | None = None,
    sparse: bool = False,
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
    if vocabulary is not None:
        return _of_tokens(name, vocabulary, outputs, norm)
    if sparse and name in ("linear", "mlp"):
        _refuse_norm(name, norm)
        return {"linear": linear, "mlp": mlp}[name](input_shape, outputs, sparse=True)
    if sparse:
        dense = describe(name, input_shape, outputs, norm)
        return nn.Sequential(Densify(math.prod(input_shape)), dense)
    if name.startswith("wrn"):
        depth, factor = parse_wide(name)
        chosen = find_norm(str(norm_in_use(name, norm)))
        return wide_resnet(input_shape, outputs, depth, factor, chosen)
    plain = {"linear": linear, "mlp": mlp, "cnn": cnn, "lstm": Lstm}
    if name not in plain:
        raise UsageError(f"model {name!r} is unknown: choose one of {', '.join(FAMILIES)}")
    _refuse_norm(name, norm)
    return plain[name](input_shape, outputs)


def _of_tokens(name: str, vocabulary: int, outputs: int, norm: str | None) -> nn.Module:
    if name != "lstm":
        raise UsageError(
            f"model {name!r} received tokens, whose numbers mean nothing by themselves: choose "
            "lstm, which looks them up"
        )
    _refuse_norm(name, norm)
    return TokenLstm(vocabulary, outputs)


def _refuse_norm(name: str, norm: str | None) -> None:
    if norm is not None:
        raise UsageError(f"model {name!r} has no normalisation to choose: leave norm {norm!r} out")


def norm_in_use(name: str, norm: str | None) -> str | None:
    """What ``norm`` means for a model: the default where there is a choice and none was made.

    Example:
        >>> norm_in_use("wrn-16-4", None), norm_in_use("mlp", None)
        ('group', None)
    """
    return DEFAULT_NORM if norm is None and name.startswith("wrn") else norm
