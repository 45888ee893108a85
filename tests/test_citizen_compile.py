"""Compiled models: nothing is compiled again after warm-up, by dynamo's own counters.

Exceptions: a source that opens later has its first batches then. `auto` with ``spend="batch"``
changes the batch size when it opens, and so compiles once more, for any size, and once for a batch
of one example, which dynamo always treats apart.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

import gradsift
from citizens import FAMILIES, Feature, Loop, decide
from test_citizen_steps import network, probe_now_and_then

WARM = 14


@pytest.fixture(autouse=True)
def _fresh_counters() -> Iterator[None]:
    environment = dict(os.environ)  # inductor adds to it at its first use
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]


def compiled(model: nn.Module, backend: str = "eager") -> Any:
    return torch.compile(model, backend=backend)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


class Watched(Loop):
    """Notes how many graphs there are after each update."""

    def __init__(self, family: str, feature: Feature) -> None:
        self.graphs: list[int] = []
        super().__init__(family, feature)

    def _update(self, group: list[gradsift.WeightedBatch], *, check: bool) -> None:
        super()._update(group, check=check)
        self.graphs.append(graphs())


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_compiled_after_warm_up(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes run at steps 20, 30 and 40, on batches of other sizes, and compile nothing."""
    probe_now_and_then(monkeypatch)
    loop = Watched(family, Feature(network, wrap=compiled))
    loop.run(60, every=0)
    gate = loop.train.gate or {}
    opened = 24 if family == "two-stage" else gate.get("opened_at_step") or 0
    later = loop.graphs[max(WARM, opened + 2) :]
    assert loop.graphs[0] > 0
    assert len(set(later)) == 1
    assert later[-1] <= 4
    assert sum(counters["graph_break"].values()) == 0


def test_a_new_batch_size_compiles_once_for_all() -> None:
    loop = Watched("auto", Feature(network, wrap=compiled))
    loop.train.policy.deciding.spending._spend = "batch"
    loop.run(420, every=0)
    assert loop.train.gate["state"] == "on"
    assert 1 <= max(loop.graphs) - loop.graphs[WARM] <= 2


def test_a_module_compiled_in_place() -> None:
    def in_place(model: nn.Module) -> nn.Module:
        model.compile(backend="eager")
        return model

    loop = Watched("pool", Feature(network, wrap=in_place))
    loop.run(36, every=5)
    assert loop.compared > 3
    assert len(set(loop.graphs[WARM:])) == 1


@pytest.mark.parametrize("family", ["pool", "table"])
def test_compiled_gradients_are_the_direct_ones(family: str) -> None:
    loop = Loop(family, Feature(network, wrap=partial(compiled, backend="aot_eager")))
    loop.run(36, every=6)
    assert loop.compared >= 6
    assert any(loop.drawn)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_trains_on_a_pool() -> None:
    """The one compilation by inductor, in this thread: forward and backward of two sizes."""
    loop = Watched("pool", Feature(network, wrap=partial(compiled, backend="inductor")))
    with inductor_config.patch(compile_threads=1):
        loop.run(36, every=6)
    assert loop.compared >= 6
    assert len(set(loop.graphs[WARM:])) == 1


def test_two_stages_can_be_decided_on() -> None:
    """What `decide` does in these suites is what the gate's own decision would do."""
    loop = Loop("auto", Feature(network))
    loop.run(14, every=0)
    decide(loop.train.policy)
    assert loop.train.policy.plan(8).source == "two-stage"
