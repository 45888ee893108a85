"""Batches of any nesting: dictionaries, tuples and lists of tensors, moved, cut and joined.

A batch is whatever a ``collate_fn`` returns. Its leaves are tensors whose first dimension counts
the examples, or plain lists with one entry per example (strings, file names). PyTorch's own tree
functions do the walking, so a class that registered itself there (as Hugging Face outputs do)
keeps its type.
"""

from collections.abc import Callable, Sequence, Sized
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gradsift.errors import UsageError


def _is_leaf(node: Any) -> bool:
    """A list of anything but tensors and containers holds one entry per example.

    So does a tuple of strings, which is what PyTorch's own collation makes of them.
    """
    if not isinstance(node, list | tuple) or not node:
        return False
    if isinstance(node, tuple):
        return type(node) is tuple and all(isinstance(item, str | bytes) for item in node)
    return not any(isinstance(item, Tensor | list | tuple | dict) for item in node)


def _is_flat(tree: Any) -> bool:
    """Whether a list or tuple holds tensors alone; that is the common case, and quicker to walk."""
    return type(tree) in (list, tuple) and all(isinstance(leaf, Tensor) for leaf in tree)


def move(tree: Any, device: torch.device | str, *, non_blocking: bool = False) -> Any:
    """The same nesting with every tensor on ``device``; other leaves are kept.

    Anything with a ``to`` of its own, such as a packed sequence, is moved by it.

    Example:
        >>> import torch
        >>> move({"x": torch.ones(2), "name": "a"}, "cpu")
        {'x': tensor([1., 1.]), 'name': 'a'}
    """
    if _is_flat(tree):
        return type(tree)([leaf.to(device, non_blocking=non_blocking) for leaf in tree])
    send = partial(_sent, device=device, non_blocking=non_blocking)
    return pytree.tree_map(send, tree, is_leaf=_moves_itself)


def tensors(tree: Any) -> list[Tensor]:
    """Every tensor of a nesting, in the order of its leaves.

    Example:
        >>> import torch
        >>> [leaf.shape[0] for leaf in tensors((torch.ones(2), [torch.ones(3)]))]
        [2, 3]
    """
    if isinstance(tree, Tensor):
        return [tree]
    if _is_flat(tree):
        return list(tree)
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
        UsageError: naming the first leaf that does not hold ``count`` examples, or that cannot be
            cut by example.

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
            chosen = positions.to(leaf.device)
            if leaf.is_contiguous():
                return leaf.index_select(0, chosen)
            return leaf[chosen]  # which keeps channels_last
        if isinstance(leaf, list | tuple):
            if len(leaf) != count:
                raise _ragged(path, f"a {type(leaf).__name__} of {len(leaf)} entries", count)
            places = range(count)[positions] if isinstance(positions, slice) else positions.tolist()
            return type(leaf)(leaf[place] for place in places)
        _refuse_opaque(path, leaf)
        return leaf

    if isinstance(tree, Tensor):
        return pick((), tree)
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
    try:
        columns = [structure.flatten_up_to(tree) for tree in trees]
    except ValueError as error:
        raise UsageError(
            "batches of one loader differ in their nesting and cannot be joined into a pool: "
            f"{error}"
        ) from error
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
    if isinstance(tree, Tensor):
        return function(tree)
    if _is_flat(tree):
        return type(tree)(map(function, tree))
    return pytree.tree_map_only(Tensor, function, tree)


def _join(path: tuple[Any, ...], leaves: list[Any]) -> Any:
    first = leaves[0]
    kind = next(kind for kind in (Tensor, list, tuple, object) if isinstance(first, kind))
    if not all(isinstance(leaf, kind) for leaf in leaves) or (
        kind is object and any(isinstance(leaf, Tensor | list | tuple) for leaf in leaves)
    ):
        kinds = " and ".join(sorted({type(leaf).__name__ for leaf in leaves}))
        raise UsageError(
            f"leaf {_name(path)} of successive batches is of the types {kinds}, which cannot be "
            "joined into a pool: return one type from collate_fn"
        )
    if kind is Tensor:
        if len({leaf.shape[1:] for leaf in leaves}) > 1 or any(leaf.dim() == 0 for leaf in leaves):
            raise _unjoinable(path, leaves)
        return torch.cat(leaves)
    if kind in (list, tuple):
        return kind(entry for leaf in leaves for entry in leaf)
    _refuse_opaque(path, first)
    return first


def _sent(leaf: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.to(device, non_blocking=non_blocking)
    return leaf.to(device) if _moves_itself(leaf) else leaf


def _moves_itself(leaf: Any) -> bool:
    return callable(getattr(leaf, "to", None))


def _refuse_opaque(path: tuple[Any, ...], leaf: Any) -> None:
    """An array or a mapping unknown to PyTorch would silently keep the examples not chosen."""
    if isinstance(leaf, Sized) and not isinstance(leaf, str | bytes):
        raise UsageError(
            f"leaf {_name(path)} of the batch is a {type(leaf).__name__}, whose examples cannot "
            "be picked: return tensors in dictionaries, tuples or lists from collate_fn"
        )


def _name(path: tuple[Any, ...]) -> str:
    return pytree.keystr(path) or "(the batch itself)"


def _ragged(path: tuple[Any, ...], found: str, count: int) -> UsageError:
    return UsageError(
        f"leaf {_name(path)} of the batch is {found}, expected "
        f"{count} examples along its first dimension: pad or restructure it in collate_fn"
    )


def _unjoinable(path: tuple[Any, ...], leaves: list[Any]) -> UsageError:
    shapes = sorted({str(list(leaf.shape)) for leaf in leaves})
    return UsageError(
        f"leaf {_name(path)} is ragged: shapes "
        f"{' and '.join(shapes)} of successive batches cannot be joined into a pool; pad it to "
        "one shape in collate_fn"
    )
