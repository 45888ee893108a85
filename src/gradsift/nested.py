"""Batches of any nesting: dictionaries, tuples and lists of tensors, moved, cut and joined.

A batch is whatever a ``collate_fn`` returns. Its leaves are tensors whose first dimension counts
the examples, or plain lists with one entry per example (strings, file names). PyTorch's own tree
functions do the walking, so a class that registered itself there (as Hugging Face outputs do)
keeps its type.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gradsift.errors import UsageError


def _is_leaf(node: Any) -> bool:
    """A list of anything but tensors and containers holds one entry per example."""
    if not isinstance(node, list) or not node:
        return False
    return not any(isinstance(item, Tensor | list | tuple | dict) for item in node)


def move(tree: Any, device: torch.device | str, *, non_blocking: bool = False) -> Any:
    """The same nesting with every tensor on ``device``; other leaves are kept.

    Example:
        >>> import torch
        >>> move({"x": torch.ones(2), "name": "a"}, "cpu")
        {'x': tensor([1., 1.]), 'name': 'a'}
    """
    return pytree.tree_map_only(
        Tensor, lambda leaf: leaf.to(device, non_blocking=non_blocking), tree
    )


def tensors(tree: Any) -> list[Tensor]:
    """Every tensor of a nesting, in the order of its leaves.

    Example:
        >>> import torch
        >>> [leaf.shape[0] for leaf in tensors((torch.ones(2), [torch.ones(3)]))]
        [2, 3]
    """
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def length(tree: Any) -> int:
    """How many examples a batch holds: the first dimension of its first tensor.

    Raises:
        UsageError: when there is no tensor with a first dimension.

    Example:
        >>> import torch
        >>> length({"ids": torch.zeros(5, 7), "labels": torch.zeros(5)})
        5
    """
    for leaf in tensors(tree):
        if leaf.dim() > 0:
            return leaf.shape[0]
    raise UsageError(
        f"the batch is a {type(tree).__name__} without any tensor that has a batch dimension: "
        "return tensors from collate_fn"
    )


def take(tree: Any, positions: Tensor | slice, count: int) -> Any:
    """The examples at ``positions`` of a batch of ``count`` examples.

    Args:
        tree: the batch.
        positions: int64 positions on any device, of which repeated ones repeat the example, or a
            slice, which copies nothing.
        count: how many examples the batch holds; every leaf is checked against it.

    Raises:
        UsageError: naming the first leaf that does not hold ``count`` examples.

    Example:
        >>> import torch
        >>> take({"x": torch.arange(4.0), "name": list("abcd")}, torch.tensor([3, 0]), 4)
        {'x': tensor([3., 0.]), 'name': ['d', 'a']}
    """

    def pick(path: tuple[Any, ...], leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            if leaf.dim() == 0 or leaf.shape[0] != count:
                raise _ragged(path, f"a tensor of shape {list(leaf.shape)}", count)
            if isinstance(positions, slice):
                return leaf[positions]
            return leaf.index_select(0, positions.to(leaf.device))
        if isinstance(leaf, list):
            if len(leaf) != count:
                raise _ragged(path, f"a list of {len(leaf)} entries", count)
            chosen = range(count)[positions] if isinstance(positions, slice) else positions.tolist()
            return [leaf[position] for position in chosen]
        return leaf

    return pytree.tree_map_with_path(pick, tree, is_leaf=_is_leaf)


def concatenate(trees: Sequence[Any]) -> Any:
    """Several batches of the same nesting as one, joined along the first dimension.

    Raises:
        UsageError: when the nestings differ, or naming the leaf whose shapes cannot be joined.

    Example:
        >>> import torch
        >>> concatenate([(torch.zeros(1), ["a"]), (torch.ones(2), ["b", "c"])])
        (tensor([0., 1., 1.]), ['a', 'b', 'c'])
    """
    if len(trees) == 1:
        return trees[0]
    paths, structure = pytree.tree_flatten_with_path(trees[0], is_leaf=_is_leaf)
    columns = [pytree.tree_leaves(tree, is_leaf=_is_leaf) for tree in trees]
    if any(len(column) != len(paths) for column in columns):
        raise UsageError(
            "batches of one loader differ in their nesting and cannot be joined into a pool: "
            f"{[len(column) for column in columns]} leaves were found"
        )
    joined = [
        _join(path, [column[place] for column in columns]) for place, (path, _) in enumerate(paths)
    ]
    return pytree.tree_unflatten(joined, structure)


def per_leaf(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``function`` of every tensor, in the same nesting.

    Example:
        >>> import torch
        >>> per_leaf([torch.ones(2)], lambda leaf: 2 * leaf)
        [tensor([2., 2.])]
    """
    return pytree.tree_map_only(Tensor, function, tree)


def _join(path: tuple[Any, ...], leaves: list[Any]) -> Any:
    first = leaves[0]
    if isinstance(first, Tensor):
        if first.dim() == 0:
            raise _unjoinable(path, leaves)
        shapes = {tuple(leaf.shape[1:]) for leaf in leaves}
        if len(shapes) > 1:
            raise _unjoinable(path, leaves)
        return torch.cat(leaves)
    if isinstance(first, list):
        return [entry for leaf in leaves for entry in leaf]
    return first


def _ragged(path: tuple[Any, ...], found: str, count: int) -> UsageError:
    return UsageError(
        f"leaf {pytree.keystr(path) or '(the batch itself)'} of the batch is {found}, expected "
        f"{count} examples along its first dimension: pad or restructure it in collate_fn"
    )


def _unjoinable(path: tuple[Any, ...], leaves: list[Any]) -> UsageError:
    shapes = sorted({str(list(leaf.shape)) for leaf in leaves})
    return UsageError(
        f"leaf {pytree.keystr(path) or '(the batch itself)'} is ragged: shapes "
        f"{' and '.join(shapes)} of successive batches cannot be joined into a pool; pad it to "
        "one shape in collate_fn"
    )
