"""Looking on during a forward and a backward pass, and turning what passes by into norms.

Forward hooks note the inputs of a layer; hooks on its outputs receive their gradients. A layer
whose parameters are used once is finished as soon as its gradient arrives, so nothing piles up.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradsift.errors import UsageError
from gradsift.nested import per_leaf, tensors
from gradsift.scores.gradient_norm.attention_standin import AttentionStandin
from gradsift.scores.gradient_norm.contributions import AbstractContribution, combine
from gradsift.scores.gradient_norm.graph import Passage, edges, parameters_outside
from gradsift.scores.gradient_norm.lstm_stack import LstmStandin
from gradsift.scores.gradient_norm.rules import Use, as_read, rule_of, widened
from gradsift.scores.gradient_norm.units import Unit

Scales = Mapping[nn.Parameter, Tensor]
"""The diagonal of a preconditioner: a factor for every number of a parameter."""


STANDINS: dict[type[nn.Module], Callable[[Any], Any]] = {
    nn.LSTM: LstmStandin,
    nn.MultiheadAttention: AttentionStandin,
}
"""Layers that show too little, and what may run in their place while gradsift scores."""


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a unit, on its way to becoming a `Use`."""

    unit: Unit
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    passage: Passage
    versions: tuple[tuple[Tensor, int], ...]
    random_state: Tensor | None
    record: Any
    gradients: list[Tensor | None] = field(default_factory=list)


class Capture(AbstractContextManager["Capture"]):
    """Looks on while it is open, as a context manager; changes nothing of what it sees.

    Args:
        units: what to look at.
        count: how many examples a batch holds.
        scales: factors of a preconditioner, empty for none.
        standins: whether layers may be run by stand-ins that compute the same and keep more.
    """

    def __init__(
        self, units: list[Unit], count: int, scales: Scales, standins: bool = False
    ) -> None:
        self.count = count
        self.calls: list[Call] = []
        self._units = units
        self._scales = scales
        self._handles: list[Any] = []
        self._standins = {
            unit.module: kind(unit.module)
            for unit in units
            for layer, kind in STANDINS.items()
            if standins and isinstance(unit.module, layer) and unit.rule is rule_of(layer)
        }
        self._states: dict[nn.Module, Tensor] = {}
        self._listening = False
        self._again = False
        self._waiting: set[int] = set()
        self._uses: Counter[int] = Counter()
        self._shared: dict[nn.Parameter, list[AbstractContribution]] = {}
        self._total: Tensor | None = None

    def __enter__(self) -> "Capture":
        for unit in self._units:
            module = unit.module
            if _draws(module):
                self._handles.append(module.register_forward_pre_hook(self._before))
            hook = partial(self._seen, unit)
            self._handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
        for module, standin in self._standins.items():
            module.forward = standin
        self._listening = True
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes every hook. What was seen stays until `squared_norms` or `forget`."""
        self.stop_listening()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forget(self) -> None:
        """Lets go of everything that was seen."""
        self.calls.clear()
        self._waiting.clear()
        self._shared.clear()
        self._total = None

    def stop_listening(self) -> None:
        """No call is noted from here on; gradients still arrive."""
        self._listening = False
        for module in self._standins:
            vars(module).pop("forward", None)
        self._standins.clear()

    @property
    def passages(self) -> list[Passage]:
        """The layers that were called, as shortcuts through the graph."""
        return [call.passage for call in self.calls if call.unit.whole]

    def escaped(self, outputs: Any, trained: Mapping[str, nn.Parameter]) -> list[str]:
        """Names of parameters that the outputs depend on other than through a call seen."""
        roots = [edge.node for edge in edges(tensors(outputs))]
        outside = parameters_outside(roots, self.passages)
        called = {id(call.unit) for call in self.calls}
        own = {
            id(value)
            for unit in self._units
            if not unit.whole and id(unit) in called
            for value in unit.wanted.values()
        }
        met = {id(value) for value in outside} - own
        return [name for name, value in trained.items() if id(value) in met]

    @property
    def listening(self) -> bool:
        """Whether a call counts: not one that repeats another during a backward pass."""
        return self._listening and torch._C._current_graph_task_id() == -1

    def _before(self, module: nn.Module, args: Any) -> None:
        del args
        if self.listening:
            self._states[module] = torch.get_rng_state()

    def _seen(self, unit: Unit, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if not self.listening:
            return None
        found = tensors(output)
        if not any(value.requires_grad for value in found):
            return None
        if sum(value.requires_grad for value in found) > 1:
            # One output may be computed from another one; the gradients that count are those
            # from outside, which are the gradients of views.
            output = pytree.tree_map_only(Tensor, _view, output)
            found = tensors(output)
        if self._total is not None or self._waiting:
            self._again = True
        given = tensors(args) + (tensors(kwargs) if kwargs else [])
        standin = self._standins.get(module)
        record = None if standin is None else standin.taken()
        call = Call(
            unit=unit,
            args=_detached(args),
            kwargs=_detached(kwargs) if kwargs else kwargs,
            outputs=tuple(as_read(unit.rule, value) for value in found),
            passage=Passage(edges(given), edges(found), () if record is None else record.edges),
            versions=tuple((value, value._version) for value in map(torch.detach, given)),
            random_state=self._states.pop(module, None),
            record=record,
            gradients=[None] * len(found),
        )
        place = len(self.calls)
        self.calls.append(call)
        self._uses.update(id(value) for value in unit.wanted.values())
        for number, value in enumerate(found):
            if value.requires_grad:
                self._handles.append(value.register_hook(partial(self._arrived, place, number)))
        return output

    def _arrived(self, place: int, number: int, gradient: Tensor) -> None:
        if place >= len(self.calls):
            return
        call = self.calls[place]
        if call.gradients[number] is not None:
            self._again = True
            return
        call.gradients[number] = gradient.detach()
        alone = all(self._uses[id(value)] == 1 for value in call.unit.wanted.values())
        if alone and call.unit.whole and call.record is None and len(call.passage.ends) == 1:
            self._take(call)
            call.gradients[number] = gradient.new_empty(0)
            self.calls[place] = replace(
                call, args=(), kwargs={}, outputs=(), versions=(), record=None
            )
        else:
            self._waiting.add(place)

    def _take(self, call: Call) -> None:
        """From a call to squared norms, or to contributions that wait for others."""
        listening, self._listening = self._listening, False
        for value, version in call.versions:
            if value._version != version:
                raise UsageError(
                    f"an input of layer {call.unit.name!r} was changed in place after the layer "
                    "had read it: use the operation that makes a new tensor"
                )
        use = Use(
            name=call.unit.name,
            layer=call.unit.module,
            wanted=frozenset(call.unit.wanted),
            args=call.args,
            kwargs=call.kwargs,
            outputs=call.outputs,
            gradients=tuple(call.gradients),
            count=self.count,
            random_state=call.random_state,
            record=call.record,
        )
        with torch.no_grad(), _as_it_is(call.outputs[0].device.type):
            found = call.unit.rule(use)
            for name, parameter in call.unit.wanted.items():
                if name not in found:
                    raise UsageError(
                        f"the rule of layer {call.unit.name!r} returned {sorted(found)}, expected "
                        f"a contribution for {name!r} too"
                    )
                if self._uses[id(parameter)] == 1:
                    self._add(parameter, found[name])
                else:
                    self._shared.setdefault(parameter, []).append(found[name])
        self._listening = listening

    def _add(self, parameter: nn.Parameter, contribution: AbstractContribution) -> None:
        scale = self._scales.get(parameter)
        if scale is None:
            squares = contribution.squared_norms()
        else:
            squares = contribution.scaled_squared_norms(widened(scale.flatten()))
        self._total = squares if self._total is None else self._total + squares.to(self._total)

    def squared_norms(self) -> Float[Tensor, " batch"] | None:
        """``‖g_i‖²`` over all units, of what the backward pass brought; None if it brought nothing.

        Raises:
            UsageError: when more than one forward and backward pass went by.
        """
        if self._again:
            raise UsageError(
                "more than one forward or backward pass went by, expected one of each: open a new "
                "watch for every step"
            )
        self._listening = False
        for place in sorted(self._waiting):
            self._take(self.calls[place])
        self._waiting.clear()
        with torch.no_grad():
            for parameter, uses in self._shared.items():
                self._add(parameter, combine(uses))
        self._shared.clear()
        return self._total


def _view(value: Tensor) -> Tensor:
    return value.view_as(value) if value.requires_grad else value


def _draws(module: nn.Module) -> bool:
    return module.training and float(getattr(module, "dropout", 0.0) or 0.0) > 0.0


def _detached(tree: Any) -> Any:
    return per_leaf(tree, torch.detach)


def _as_it_is(device_type: str) -> AbstractContextManager[Any]:
    """No autocast; nothing is entered where there is none, which is cheaper."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
