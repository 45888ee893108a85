"""Which modules are looked at: each owns parameters that count, and has a rule or the fallback."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradsift.errors import UsageError
from gradsift.scores.gradient_norm.fallback import fallback
from gradsift.scores.gradient_norm.rules import Rule, find_rule, is_altered

Selection = Literal["all", "last"] | Sequence[str]
"""All parameters, those of the last layer, or those whose names or modules' names are given."""

LOGGER = logging.getLogger("gradsift")


@dataclass(frozen=True, eq=False)
class Unit:
    """A module that is looked at.

    Attributes:
        name: in the model.
        module: the layer.
        rule: how its parameters' gradients follow from a call.
        wanted: parameters that count, by name in the module.
        whole: whether everything inside the module is the rule's business. A fallback for a
            module's own parameters leaves its children to their own rules.
    """

    name: str
    module: nn.Module
    rule: Rule
    wanted: Mapping[str, nn.Parameter]
    whole: bool


def selected(model: nn.Module, params: Selection) -> dict[str, nn.Parameter]:
    """The parameters that count, by name: of those that require a gradient.

    Raises:
        UsageError: when none is left, or a name is unknown.

    Example:
        >>> sorted(selected(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)), "last"))
        ['1.bias', '1.weight']
    """
    every = dict(model.named_parameters())
    trained = {name: value for name, value in every.items() if value.requires_grad}
    if params == "last" and trained:
        place = next(reversed(trained)).rpartition(".")[0]
        trained = {k: value for k, value in trained.items() if k.rpartition(".")[0] == place}
    elif not isinstance(params, str):
        for name in params:
            if not any(_covers(name, known) for known in every):
                raise UsageError(
                    f"params names {name!r}, expected parameters or modules of the model such as "
                    f"{', '.join(map(repr, list(every)[:4]))}"
                )
        trained = {
            known: value
            for known, value in trained.items()
            if any(_covers(name, known) for name in params)
        }
    elif params not in ("all", "last"):
        raise UsageError(f"params {params!r} is unknown: use 'all', 'last' or a list of names")
    if not trained:
        raise UsageError(
            "received a model without a parameter that requires a gradient, expected at least "
            "one: gradient norms are those of the parameters that are trained"
        )
    return trained


def _covers(name: str, parameter: str) -> bool:
    return parameter == name or parameter.startswith(f"{name}.")


def units_of(
    model: nn.Module, trained: Mapping[str, nn.Parameter], whole: frozenset[str] = frozenset()
) -> list[Unit]:
    """The modules to look at, for parameters that count.

    Args:
        model: the model.
        trained: its parameters that count.
        whole: names of modules that are taken as a whole, because parameters in them are used
            without their own module.

    Raises:
        UsageError: for batch statistics, which make gradients of single examples undefined.
    """
    counted = {id(value) for value in trained.values()}
    found: list[Unit] = []
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name == place or name.startswith(f"{place}.") or not place for place in inside):
            continue
        _refuse_batch_statistics(name, module)
        if is_compiled(module):
            continue
        rule, entire = find_rule(module), True
        if name in whole or (rule is None and is_altered(module)):
            rule = fallback
        elif rule is None:
            rule, entire = fallback, False
        wanted = {
            inner: value
            for inner, value in module.named_parameters(recurse=entire)
            if id(value) in counted
        }
        if entire:
            inside.append(name)
        if wanted:
            found.append(Unit(name or "model", module, rule, wanted, entire))
    return found


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is the wrapper that `torch.compile` puts around another one.

    Example:
        >>> is_compiled(nn.Linear(1, 1))
        False
    """
    return "_orig_mod" in module._modules


def _refuse_batch_statistics(name: str, module: Any) -> None:
    if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
        raise UsageError(
            f"layer {name!r} ({type(module).__name__}) normalises by the statistics of its batch, "
            "so no example has a gradient of its own: score with mode='eval', put that layer in "
            "eval(), or use GroupNorm"
        )


_NOTICED: set[type[nn.Module]] = set()


def notice(units: list[Unit]) -> None:
    """Says once for each kind of module that it takes the slow way."""
    for unit in units:
        kind = type(unit.module)
        if unit.rule is fallback and kind not in _NOTICED:
            _NOTICED.add(kind)
            LOGGER.info(
                "%s (%s) has no rule for per-example gradients: parameters %s are taken by "
                "torch.func, or one example at a time; register_rule makes them cheap",
                unit.name,
                kind.__name__,
                ", ".join(unit.wanted),
            )
