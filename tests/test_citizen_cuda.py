"""On a CUDA device: no synchronisation in a step, low precision, CUDA graphs; skipped elsewhere."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from citizens import FAMILIES, PUBLISHED
from gradsift.sifting.auto import Auto

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

LOSS = nn.CrossEntropyLoss(reduction="none")
N, BATCH = 512, 32


@pytest.fixture(autouse=True)
def _synchronising_is_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def task(family: str, *, wrap: Any = None) -> tuple[Any, Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    y = torch.arange(N) % 2
    x = torch.randn(N, 16)
    x[:, 0] = (2 * y - 1) * 6.0
    x[: N // 10, 0] = 0.0
    inner = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2)).cuda()
    model = inner if wrap is None else wrap(inner)
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True, pin_memory=True)
    recipe = {"published": PUBLISHED, "two-stage": "auto"}.get(family, family)
    train = gradsift.sift(loader, model, LOSS, recipe=recipe)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05)
    return train, model, optimizer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_step_does_not_synchronise(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the batch to the update; between steps scores are collected, one step late."""
    monkeypatch.setattr(Auto, "wishes", property(lambda policy: False))
    train, model, optimizer = task(family)
    for _ in range(4):
        for batch in train:
            torch.cuda.set_sync_debug_mode("error")
            loss = batch.loss(model(batch.inputs))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            torch.cuda.set_sync_debug_mode("default")
            assert batch.weights.is_cuda
    assert train.steps == 4 * N // BATCH


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_low_precision_learns(family: str, dtype: torch.dtype) -> None:
    train, model, optimizer = task(family)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    losses = []
    for _ in range(8):
        for batch in train:
            with torch.autocast("cuda", dtype):
                loss = batch.loss(model(batch.inputs))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach())
    seen = torch.stack(losses).cpu()
    assert bool(seen.isfinite().all())
    assert float(seen[-16:].mean()) < float(seen[:16].mean())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["pool", "table"])
def test_cuda_graphs(family: str) -> None:
    """`reduce-overhead` records graphs of the few sizes there are."""
    train, model, optimizer = task(
        family, wrap=lambda inner: torch.compile(inner, mode="reduce-overhead")
    )
    loss = torch.tensor(torch.nan)
    for _ in range(4):
        for batch in islice(train, 8):
            torch.compiler.cudagraph_mark_step_begin()
            loss = batch.loss(model(batch.inputs))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert bool(loss.isfinite())


def test_losses_that_are_not_finite_are_named_one_step_late() -> None:
    train, model, _ = task("uniform")
    batches = iter(train)
    batch = next(batches)
    batch.inputs[3] = torch.nan
    batch.loss(model(batch.inputs))
    with pytest.raises(gradsift.TrainingError, match="is not finite"):
        next(batches)
