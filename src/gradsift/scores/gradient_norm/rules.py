"""Which rule knows the per-example gradients of which layer.

A rule is a function from one `Use` of a layer to the contributions of its parameters. PyTorch's
own layers have rules; others are registered in the same way. A class that inherits a rule's layer
and overrides ``forward`` is another layer, and does not inherit the rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradsift.errors import UsageError
from gradsift.scores.gradient_norm.contributions import AbstractContribution


@dataclass(frozen=True, eq=False)
class Use:
    """One call of a layer in a forward pass, and the gradients that came back to it.

    Attributes:
        name: of the layer in the model, for messages.
        layer: the module.
        wanted: names of the parameters whose gradients are asked for, as in
            ``layer.named_parameters()``.
        args: of the call, detached.
        kwargs: of the call, detached.
        outputs: every tensor that the call returned, detached; of a rule that reads none of them,
            shapes, types and devices alone.
        gradients: of the summed losses, one for each output; None where none came back.
        count: how many examples.
        random_state: of the default CPU generator before the call.
        record: what a stand-in kept of the call, for the rule that it belongs to.
    """

    name: str
    layer: Any
    wanted: frozenset[str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor | None, ...]
    count: int
    random_state: Tensor | None = None
    record: Any = None

    @property
    def input(self) -> Any:
        """The first argument, in float32 or better where it is a floating tensor."""
        value = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return widened(value)

    @property
    def gradient(self) -> Tensor:
        """The gradient with respect to the first output, in float32 or better."""
        value = self.gradients[0]
        return widened(self.outputs[0].new_zeros(()) if value is None else value).expand(
            self.outputs[0].shape
        )

    def by_example(self, values: Tensor) -> Tensor:
        """Values with the examples in their first dimension; they may come in the second.

        Raises:
            UsageError: when neither of the first two dimensions counts the examples.
        """
        if values.dim() > 0 and values.shape[0] == self.count:
            return values
        if values.dim() > 2 and values.shape[1] == self.count:
            return values.transpose(0, 1)
        raise UsageError(
            f"layer {self.name!r} ({type(self.layer).__name__}) works on shape "
            f"{list(values.shape)}, expected a first or second dimension of {self.count} examples: "
            "give it one row per example, or register a rule for the module around it"
        )


Rule = Callable[[Use], Mapping[str, AbstractContribution]]
"""From a use to a contribution for each of ``use.wanted``."""

_RULES: dict[type[nn.Module], Rule] = {}
_BLIND: set[Rule] = set()


def register_rule(*layers: type[nn.Module], reads_outputs: bool = True) -> Callable[[Rule], Rule]:
    """Registers a rule for layers: how ``∂ℓ_i/∂p`` follows from one call and its gradients.

    The rule receives a `Use` and returns, for each name in ``use.wanted``, a contribution: `Whole`
    for gradients ``[batch, numbers]`` written out, `Outer` for sums of outer products. The
    gradients are those of the summed losses: row i belongs to example i alone, whatever the
    reduction of the training loss. A later registration replaces an earlier one.

    Args:
        layers: module classes; subclasses are included unless they override ``forward``.
        reads_outputs: whether the rule looks at the numbers of ``use.outputs``. Where it does not,
            they are not kept: PyTorch itself lets go of an output that no later layer saves.

    Raises:
        UsageError: for something that is not a module class.

    Example:
        >>> import torch
        >>> from gradsift.scores.gradient_norm.contributions import Whole
        >>> class Scale(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.factor = nn.Parameter(torch.tensor(2.0))
        ...     def forward(self, x):
        ...         return self.factor * x
        >>> @register_rule(Scale)
        ... def scale(use):
        ...     return {"factor": Whole((use.gradient * use.input).flatten(1).sum(1, keepdim=True))}
        >>> find_rule(Scale()) is scale
        True
    """
    for layer in layers:
        if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            raise UsageError(
                f"register_rule received {layer!r}, expected a module class: write "
                "@register_rule(MyLayer) above the rule"
            )

    def register(rule: Rule) -> Rule:
        for layer in layers:
            _RULES[layer] = rule
        (_BLIND.discard if reads_outputs else _BLIND.add)(rule)
        return rule

    return register


def as_read(rule: Rule, output: Tensor) -> Tensor:
    """An output of a layer as its rule reads it: one number in place of all where it reads none.

    Example:
        >>> import torch
        >>> linear = rule_of(nn.Linear)
        >>> kept = as_read(linear, torch.ones(128, 10))
        >>> kept.shape, kept.untyped_storage().nbytes()
        (torch.Size([128, 10]), 4)
    """
    return output.new_empty(()).expand(output.shape) if rule in _BLIND else output.detach()


def find_rule(layer: nn.Module) -> Rule | None:
    """The rule of a layer; None where it computes something else than the class it is known by.

    Example:
        >>> find_rule(nn.Linear(1, 1)) is not None, find_rule(nn.ReLU())
        (True, None)
    """
    for kind in type(layer).__mro__:
        if kind in _RULES:
            same = type(layer).forward is kind.forward and not is_altered(layer)
            return _RULES[kind] if same else None
    return None


def rule_of(layer: type[nn.Module]) -> Rule | None:
    """The rule that a class is registered with.

    Example:
        >>> rule_of(nn.ReLU) is None
        True
    """
    return _RULES.get(layer)


def is_altered(layer: nn.Module) -> bool:
    """Whether a parameter is computed from others, or ``forward`` is the instance's own."""
    attributes = vars(layer)
    if "forward" in attributes or parametrize.is_parametrized(layer):
        return True
    for value in attributes.values():  # noqa: SIM110  (a generator takes twice as long)
        if isinstance(value, Tensor):
            return True
    return False


def widened(values: Any) -> Any:
    """A tensor of less than 32 bits in float32; anything else as it is.

    Example:
        >>> import torch
        >>> widened(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    low = isinstance(values, Tensor) and values.is_floating_point() and values.itemsize < 4
    return values.float() if low else values
