"""A learning problem: two data sets of (input tensor, target), a loss and an error.

The task is read off the targets: whole numbers are classes, floating numbers are a regression.
Everything that would fail hours later (a label out of range, an input that is not a number) is
looked for first, in one pass over the data.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from gradsift.errors import DataError

Task = Literal["classification", "regression"]


@dataclass(frozen=True, eq=False)
class Problem:
    """What to learn, and how well it is learnt.

    Attributes:
        name: for tables and reports.
        train: map-style data set of ``(input, target)``, to train on.
        test: the same kind of data set, never trained on.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example.
        error_fn: ``error_fn(outputs, targets)``, one error per example: 0 or 1 for classes, the
            squared error for a regression. Its mean is what the reports call the error.
        input_shape: of one input, without the batch.
        outputs: how many numbers the model returns per example.
        task: classification or regression.
        vocabulary: the tokens, where inputs are int64 numbers of tokens; None where they are
            float32 numbers.
        sparse: whether an input is a list of ``(column, value)`` pairs, ``[pairs, 2]``, padded
            with ``(0, 0)``, instead of the row of ``input_shape`` that it stands for.
    """

    name: str
    train: Dataset[Any]
    test: Dataset[Any]
    loss_fn: Callable[[Any, Any], Tensor]
    error_fn: Callable[[Any, Any], Tensor]
    input_shape: tuple[int, ...]
    outputs: int
    task: Task
    vocabulary: tuple[str, ...] | None = None
    sparse: bool = False


def wrong_class(
    outputs: Float[Tensor, "batch classes"], targets: Tensor
) -> Float[Tensor, " batch"]:
    """1 where the largest output is not the target's class, else 0. Shape ``[batch]``.

    Example:
        >>> wrong_class(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        tensor([0., 1.])
    """
    return (outputs.argmax(dim=1) != targets).to(outputs.dtype)


def squared_error(
    outputs: Float[Tensor, "batch outputs"], targets: Tensor
) -> Float[Tensor, " batch"]:
    """The squared error of each example, averaged over its outputs. Shape ``[batch]``.

    Example:
        >>> squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 3.0]))
        tensor([1., 0.])
    """
    difference = outputs - targets.to(outputs.dtype).reshape(outputs.shape)
    return difference.square().mean(dim=1)


def from_datasets(name: str, train: Dataset[Any], test: Dataset[Any]) -> Problem:
    """The problem that two data sets pose, with every example looked at once.

    Classes run from 0 to the largest label of either set; their loss is the cross-entropy. The
    loss of a regression is the squared error, averaged over the outputs of an example.

    Args:
        name: for tables and reports.
        train: map-style data set of ``(float32 tensor, target)``. A target is an int or int64
            scalar (a class), or a float or floating tensor of at most one dimension.
        test: likewise, of the same shapes.

    Raises:
        DataError: naming the set, and the example where there is one.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
        >>> problem = from_datasets("toy", data, data)
        >>> problem.task, problem.input_shape, problem.outputs
        ('classification', (3,), 3)
    """
    found = _look(f"the training set of {name!r}", train)
    held_out = _look(f"the test set of {name!r}", test)
    if (found.input_shape, found.task) != (held_out.input_shape, held_out.task) or (
        found.task == "regression" and found.outputs != held_out.outputs
    ):
        raise DataError(
            f"the training and test set of {name!r} differ: {found} against {held_out}; "
            "both need the same shape and kind of target"
        )
    outputs = max(found.outputs, held_out.outputs)
    return pose(name, train, test, found.input_shape, outputs, found.task)


def pose(
    name: str,
    train: Dataset[Any],
    test: Dataset[Any],
    input_shape: tuple[int, ...],
    outputs: int,
    task: Task,
    *,
    vocabulary: tuple[str, ...] | None = None,
    sparse: bool = False,
) -> Problem:
    """The problem of two data sets that are known to be sound: its task decides loss and error.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.zeros(4, 3), torch.zeros(4))
        >>> pose("toy", data, data, (3,), 1, "regression").loss_fn is squared_error
        True
    """
    classes = task == "classification"
    return Problem(
        name=name,
        train=train,
        test=test,
        loss_fn=nn.CrossEntropyLoss(reduction="none") if classes else squared_error,
        error_fn=wrong_class if classes else squared_error,
        input_shape=input_shape,
        outputs=outputs,
        task=task,
        vocabulary=vocabulary,
        sparse=sparse,
    )


@dataclass(frozen=True)
class _Found:
    """What one example says about its set: for a whole set, ``outputs`` is the largest."""

    input_shape: tuple[int, ...]
    task: Task
    outputs: int

    def __str__(self) -> str:
        kind = "classes" if self.task == "classification" else f"targets of {self.outputs} numbers"
        return f"inputs of shape {list(self.input_shape)} with {kind}"


def _look(what: str, dataset: Dataset[Any]) -> _Found:
    first: _Found | None = None
    outputs = 0
    for index, (inputs, target) in enumerate(_examples(what, dataset)):
        where = f"example {index} of {what}"
        task, count = _read_target(where, target)
        found = _Found(_read_input(where, inputs), task, count)
        first = found if first is None else first
        same = found.input_shape == first.input_shape and found.task == first.task
        if not same or (task == "regression" and count != first.outputs):
            raise DataError(f"{where} has {found}, example 0 has {first}: all must be alike")
        outputs = max(outputs, count)
    if first is None:
        raise DataError(f"{what} is empty: it needs at least one example")
    return _Found(first.input_shape, first.task, outputs)


def _examples(what: str, dataset: Dataset[Any]) -> Iterator[tuple[Any, Any]]:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{what} is a {type(dataset).__name__} without a length or without indexing: "
            "give a map-style data set"
        )
    for index in range(len(dataset)):  # pyright: ignore[reportArgumentType]
        try:
            example = dataset[index]
        except Exception as error:
            raise DataError(
                f"example {index} of {what} cannot be read ({type(error).__name__}: {error}): "
                "every index below its length must work"
            ) from error
        if not isinstance(example, tuple | list) or len(example) != 2:
            raise DataError(
                f"example {index} of {what} is a {type(example).__name__}, "
                "expected a pair (input, target)"
            )
        yield example[0], example[1]


def _read_input(where: str, inputs: Any) -> tuple[int, ...]:
    if not isinstance(inputs, Tensor) or inputs.dtype != torch.float32:
        kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise DataError(f"the input of {where} is a {kind}, expected a tensor of torch.float32")
    if inputs.dim() == 0 or inputs.numel() == 0:
        raise DataError(f"the input of {where} has shape {list(inputs.shape)}: no features")
    if not bool(torch.isfinite(inputs).all()):
        raise DataError(f"the input of {where} has a NaN or infinite value: clean the data first")
    return tuple(inputs.shape)


def _read_target(where: str, target: Any) -> tuple[Task, int]:
    """The task, and how many outputs the model needs for this target."""
    value = torch.as_tensor(target) if isinstance(target, int | float | Tensor) else None
    if value is None or not (value.is_floating_point() or value.dtype == torch.int64):
        kind = type(target).__name__ if value is None else value.dtype
        raise DataError(f"the target of {where} is a {kind}, expected an int64 class or a float")
    if value.dtype == torch.int64:
        if value.dim() > 0 or int(value) < 0:
            raise DataError(
                f"the label of {where} is {value.tolist()}, expected one whole number from 0 up"
            )
        return "classification", int(value) + 1
    if value.dim() > 1 or value.numel() == 0 or not bool(torch.isfinite(value).all()):
        raise DataError(
            f"the target of {where} is not finite, or not a number or row of numbers "
            f"(shape {list(value.shape)})"
        )
    return "regression", value.numel()
