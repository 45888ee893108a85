"""From a column of labels to classes or numbers, and from rows to a training and a test part."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from gradsift.data.digits import stratified_part
from gradsift.data.problem import Task
from gradsift.errors import DataError

FEW = 20
"""Whole numbers with at most so many different values are classes, unless the task says so."""

HELD_OUT = 0.2
"""Share of the test part, where the data bring none."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What is learnt.

    Attributes:
        task: classification or regression.
        values: int64 classes from 0, in the order of `names`, or float32 numbers.
        names: of the classes, sorted; empty for a regression.
    """

    task: Task
    values: Tensor
    names: tuple[str | float, ...] = ()

    @property
    def outputs(self) -> int:
        """How many numbers a model returns."""
        return len(self.names) or 1


def read_targets(where: str, column: np.ndarray, asked: str | None) -> Targets:
    """Classes or numbers out of a column of either texts or finite numbers.

    Texts are classes. So are whole numbers of at most 20 different values; all others make a
    regression.

    Args:
        where: the column, for error messages.
        column: of texts (any dtype but numbers) or of numbers.
        asked: the task, where it does not follow this rule.

    Raises:
        DataError: when the column cannot be what was asked, or has one class only.

    Example:
        >>> read_targets("the label", np.array(["b", "a", "b"]), None).values
        tensor([1, 0, 1])
        >>> read_targets("the label", np.array([0.5, 2.0]), None).task
        'regression'
    """
    numeric = np.issubdtype(column.dtype, np.number)
    names, codes = np.unique(column, return_inverse=True)
    whole = numeric and bool(np.all(names == np.round(names)))
    task = asked or ("classification" if not numeric or (whole and len(names) <= FEW) else None)
    if task == "classification":
        if numeric and not whole:
            wrong = names[names != np.round(names)][0]
            raise DataError(
                f"{where} holds {wrong:g}, expected whole numbers or words as classes: "
                "choose --task regression"
            )
        if len(names) < 2:
            raise DataError(f"{where} holds only {names[0]}: expected at least two classes")
        return Targets("classification", torch.from_numpy(codes.ravel()), tuple(names.tolist()))
    if not numeric:
        raise DataError(f"{where} holds {names[0]!r}, expected numbers for a regression")
    values = torch.from_numpy(column.astype(np.float32))
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"{where} holds numbers beyond the range of float32: rescale it")
    return Targets("regression", values)


def held_out_part(where: str, targets: Targets, seed: int) -> Int64[Tensor, " part"]:
    """Positions of the test part: a random fifth, of each class where there are classes.

    Raises:
        DataError: when that leaves nothing to test on, or nothing to train on.

    Example:
        >>> targets = Targets("regression", torch.zeros(10))
        >>> len(held_out_part("toy", targets, seed=0))
        2
    """
    groups = targets.values
    if targets.task == "regression":
        groups = torch.zeros(len(groups), dtype=torch.int64)
    part = stratified_part(groups, HELD_OUT, torch.Generator().manual_seed(seed))
    if len(part) == 0:
        each = " of each class" if targets.task == "classification" else ""
        raise DataError(
            f"{where} has {len(groups)} examples with {targets.outputs} "
            f"{'classes' if targets.names else 'target'}: expected at least 5 examples{each}, a "
            "fifth of which is the test part"
        )
    return part


def complement(count: int, part: Int64[Tensor, " part"]) -> Int64[Tensor, " rest"]:
    """The positions below ``count`` that are not in ``part``, in ascending order.

    Example:
        >>> complement(4, torch.tensor([1, 2]))
        tensor([0, 3])
    """
    rest = torch.ones(count, dtype=torch.bool)
    rest[part] = False
    return rest.nonzero().flatten()


def check_known(
    where: str,
    targets: Targets,
    train: Int64[Tensor, " train"],
    test: Int64[Tensor, " test"],
) -> None:
    """Raises a `DataError` for a class of the test part that the training part does not have.

    Example:
        >>> targets = Targets("classification", torch.tensor([0, 1, 2]), ("a", "b", "c"))
        >>> check_known("a.t", targets, torch.tensor([0, 1]), torch.tensor([2]))
        Traceback (most recent call last):
        gradsift.errors.DataError: a.t has class c, which the training part lacks: is it the ...
    """
    if targets.task == "classification":
        unknown = sorted(set(targets.values[test].tolist()) - set(targets.values[train].tolist()))
        if unknown:
            raise DataError(
                f"{where} has class {targets.names[unknown[0]]}, which the training part lacks: "
                "is it the test part of the same data?"
            )
