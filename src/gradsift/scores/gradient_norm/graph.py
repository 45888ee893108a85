"""What the autograd graph says: where a backward pass may stop, and which parameters escaped.

The graph is walked from the outputs of the model. A layer that was seen is a shortcut from its
outputs to its inputs; a parameter that is met elsewhere was used without its layer.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

Node = Any
"""A node of PyTorch's autograd graph."""


def edges(values: Iterable[Tensor]) -> tuple[GradientEdge, ...]:
    """Where the gradients of some tensors arrive, as the tensors are now.

    Example:
        >>> import torch
        >>> edges([torch.ones(1), torch.ones(1, requires_grad=True) * 2])[0].node.name()
        'MulBackward0'
    """
    return tuple(get_gradient_edge(value) for value in values if value.requires_grad)


class Passage:
    """A layer in the graph: from the nodes of its outputs straight to those of its inputs.

    Args:
        inputs: edges of what the layer read.
        outputs: edges of what it returned.
        inside: edges in between that a backward pass has to reach too.
    """

    def __init__(
        self,
        inputs: tuple[GradientEdge, ...],
        outputs: tuple[GradientEdge, ...],
        inside: tuple[GradientEdge, ...] = (),
    ) -> None:
        self.outputs = outputs
        self.inside = inside
        self.ends = [edge.node for edge in outputs]
        own = set(self.ends)
        self.starts: list[Node] = []
        for edge in inputs:
            # A layer may return its input as it is: the way on is then behind that node.
            self.starts += following(edge.node) if edge.node in own else [edge.node]


def following(node: Node) -> list[Node]:
    """The nodes that a node hands its gradients to."""
    return [found for found, _ in node.next_functions if found is not None]


def parameters_outside(roots: Iterable[Node], passages: list[Passage]) -> set[nn.Parameter]:
    """Leaves that are reached from the roots without going through a layer that was seen.

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.ones(1))
        >>> parameters_outside([(weight * 2).grad_fn], []) == {weight}
        True
    """
    shortcuts: dict[Node, list[Node]] = {}
    for passage in passages:
        for node in passage.ends:
            shortcuts.setdefault(node, []).extend(passage.starts)
    found: set[nn.Parameter] = set()
    waiting, visited = list(roots), set()
    while waiting:
        node = waiting.pop()
        if node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(leaf)
        waiting += shortcuts[node] if node in shortcuts else following(node)
    return found


def stops(passages: list[Passage]) -> list[GradientEdge]:
    """Edges that a backward pass must reach so that it passes the outputs of every layer.

    Those are the layers behind which there is no other one; the rest lie on the way.
    """
    ends = {node for passage in passages for node in passage.ends}
    found: list[GradientEdge] = []
    for passage in passages:
        found += passage.inside
        if len(passage.ends) > 1 or not _meets(passage.starts, ends):
            found += passage.outputs
    return found


def _meets(starts: list[Node], ends: set[Node]) -> bool:
    waiting, visited = list(starts), set()
    while waiting:
        node = waiting.pop()
        if node in ends:
            return True
        if node not in visited:
            visited.add(node)
            waiting += following(node)
    return False
