"""Norms of a training step, of a preconditioned step, and the trace that neither leaves."""

import copy
import gc
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradsift.errors import UsageError
from gradsift.scores import GradientNorm
from gradsift.scores.gradient_loop import gradient_norms
from gradsift.scores.gradient_norm.precondition import diagonal
from norms import LOSS, Mean, filled, normal, squares
from twins import assert_close

X, Y = normal(9, 6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.0, -1.5, 3.0], dtype=torch.float64)


def network() -> Any:
    return filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_both_reductions(reduction: str) -> None:
    model = network()
    with GradientNorm().watch(model, 6) as seen:
        nn.CrossEntropyLoss(reduction=reduction)(model(X), Y).backward()
    found = seen.norms(size=None if reduction == "mean" else 1)
    assert_close(found, gradient_norms(model, LOSS, X, Y))


def test_importance_weights_are_divided_out() -> None:
    model = network()
    with GradientNorm().watch(model, 6) as seen:
        ((WEIGHTS * LOSS(model(X), Y)).sum() / 8).backward()
    expected = gradient_norms(model, LOSS, X, Y)
    expected[2] = torch.nan
    found = seen.norms(WEIGHTS, size=8)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-12, atol=0)
    assert torch.equal(seen.norms(WEIGHTS, size=8).isnan(), WEIGHTS == 0)
    with pytest.raises(UsageError, match=r"norms received weights of shape \[5\], expected \[6\]"):
        seen.norms(WEIGHTS[:5])


def train(watched: bool, steps: int = 4, **options: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Training with dropout, momentum and BatchNorm in eval; and the norms on the way."""
    torch.manual_seed(3)
    model: Any = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(inplace=True), nn.Linear(8, 3)
    )
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    norms: list[Tensor] = []
    for _ in range(steps):
        optimizer.zero_grad()
        with GradientNorm(**options).watch(model, 12) as seen:
            loss = LOSS(model(x), y).mean()
            loss.backward()
        norms.append(seen.norms())
        optimizer.step()
        if not watched:
            norms.clear()
    return copy.deepcopy(model.state_dict()), norms


def test_training_is_bit_identical_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, norms = train(True)
    assert len(norms) == 4
    monkeypatch.setattr(
        "gradsift.scores.gradient_norm.capture.Capture.__enter__", lambda self: self
    )
    monkeypatch.setattr(
        "gradsift.scores.gradient_norm.watch.Watch._returned", lambda self, *rest: None
    )
    monkeypatch.setattr(
        "gradsift.scores.gradient_norm.watch.Watch.norms", lambda self: torch.zeros(12)
    )
    plain, _ = train(False)
    assert all(torch.equal(watched[key], plain[key]) for key in plain)


def test_dropout_is_as_it_was() -> None:
    """The gradient of ``W·(m ⊙ x)`` has the norm ``‖δ‖·‖m ⊙ x‖``, with the mask of the step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3, bias=False)).double()
    with GradientNorm().watch(model, 6) as seen:
        dropped: list[Any] = []
        handle = model[0].register_forward_hook(lambda *call: dropped.append(call[-1]))
        outputs = model(X)
        handle.remove()
        LOSS(outputs, Y).mean().backward()
    residual = outputs.detach().softmax(1) - nn.functional.one_hot(Y, 3)
    assert_close(seen.norms(), residual.norm(dim=1) * dropped[0].norm(dim=1))


class Mixed(nn.Module):
    """Dropout inside of attention and between recurrent layers."""

    def __init__(self, need: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=True)
        self.memory = nn.GRU(4, 3, 2, dropout=0.4, batch_first=True)
        self.need = need

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(self.attention(x, x, x, need_weights=self.need)[0])[0][:, -1]


@pytest.mark.parametrize("need", [False, True])
def test_dropout_inside_of_a_layer_is_repeated(need: bool) -> None:
    model, x = filled(Mixed(need)).train(), normal(1, 6, 3, 4)
    torch.manual_seed(5)
    with GradientNorm().watch(model, 6) as seen:
        losses = LOSS(model(x), Y)
        losses.sum().backward()
    state = torch.get_rng_state()
    found = seen.norms(size=1)
    assert torch.equal(torch.get_rng_state(), state)
    exact = []
    for place in range(6):
        torch.manual_seed(5)
        grads = torch.autograd.grad(LOSS(model(x), Y)[place], list(model.parameters()))
        exact.append(torch.stack([part.norm() for part in grads]).norm())
    assert_close(found, torch.stack(exact), 1e-10)


def test_dropout_that_cannot_be_repeated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = filled(Mixed(True)).train(), normal(1, 6, 3, 4)
    other = torch.Generator().manual_seed(1).get_state()
    monkeypatch.setattr(torch, "get_rng_state", lambda: other)
    with (
        pytest.raises(
            UsageError, match=r"the dropout inside of layer 'attention' .* cannot be rep"
        ),
        GradientNorm().watch(model, 6),
    ):
        LOSS(model(x), Y).mean().backward()


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv1d(2, 3, 3, stride=2), nn.GroupNorm(1, 3), nn.Flatten()],
        [nn.Embedding(4, 3), nn.LayerNorm(3), Mean()],
        [nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, dropout=0.0), Mean()],
    ],
)
def test_every_kind_of_layer(layers: list[nn.Module]) -> None:
    model = filled(nn.Sequential(*layers)).train()
    shape = {nn.Conv1d: (3, 2, 7), nn.Embedding: (3, 5)}.get(type(layers[0]), (3, 5, 4))
    x: Tensor = normal(0, *shape)
    x = torch.arange(15).view(3, 5) % 4 if isinstance(layers[0], nn.Embedding) else x
    y = normal(1, 3)
    with GradientNorm().watch(model, 3) as seen:
        squares(model(x), y).mean().backward()
    assert_close(seen.norms(), gradient_norms(model, squares, x, y), 1e-10)


def test_under_autocast() -> None:
    model, x = network().float(), X.float()
    with GradientNorm().watch(model, 6) as seen:
        with torch.autocast("cpu", torch.bfloat16):
            loss = LOSS(model(x), Y).mean()
        loss.backward()
    exact = gradient_norms(model, LOSS, x, Y)
    torch.testing.assert_close(seen.norms(), exact, rtol=0.05, atol=0)


def test_activation_checkpoints() -> None:
    model = network()
    with GradientNorm().watch(model, 6) as seen:
        hidden = checkpoint(model[:2], X, use_reentrant=False)
        LOSS(model[2](hidden), Y).mean().backward()
    assert_close(seen.norms(), gradient_norms(model, LOSS, X, Y))


def test_what_a_watch_cannot_tell() -> None:
    model = network()
    with GradientNorm().watch(model, 6) as seen:
        model(X)
    with pytest.raises(UsageError, match=r"the watch has seen no backward pass"):
        seen.norms()
    for step in (two_steps, two_backward_passes):
        with pytest.raises(UsageError, match="more than one forward or backward pass went by"):
            step(model)


def two_steps(model: nn.Module) -> None:
    with GradientNorm().watch(model, 6):
        for _ in range(2):
            LOSS(model(X), Y).mean().backward()


def two_backward_passes(model: nn.Module) -> None:
    with GradientNorm().watch(model, 6):
        loss = LOSS(model(X), Y).mean()
        loss.backward(retain_graph=True)
        loss.backward()


class Functional(nn.Module):
    """Uses a layer's weight without the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.layer.weight)


def test_a_parameter_used_without_its_layer() -> None:
    model = filled(Functional())
    message = "parameter 'layer.weight' was used without a call of its own module"
    with pytest.raises(UsageError, match=message), GradientNorm().watch(model, 6):
        model(X)
    assert not hooks(model)
    assert_close(GradientNorm()(model, LOSS, X, Y), gradient_norms(model, LOSS, X, Y))


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def numpy_state() -> list[Any]:
    _, keys, *_ = np.random.get_state()
    return list(keys)


def failing(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ZeroDivisionError


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_no_trace_is_left(mode: Any, fails: bool) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    model.double()[1].eval()
    model(X).sum().backward()
    kept = [parameter.grad for parameter in model.parameters()]
    copies = [grad.clone() for grad in kept if grad is not None]
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    states = torch.get_rng_state(), numpy_state()
    if fails:
        with pytest.raises(ZeroDivisionError):
            GradientNorm(mode=mode)(model, failing, X, Y)
    else:
        assert bool((GradientNorm(mode=mode)(model, LOSS, X, Y) > 0).all())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == numpy_state()
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(
        parameter.grad is grad for parameter, grad in zip(model.parameters(), kept, strict=True)
    )
    assert all(
        torch.equal(one, other) for one, other in zip(kept, copies, strict=True) if one is not None
    )
    assert hooks(model) == 0


def test_nothing_is_kept_alive() -> None:
    model = network()
    score = GradientNorm()
    score(model, LOSS, X, Y)
    with score.watch(model, 6) as seen:
        outputs = model(X)
        LOSS(outputs, Y).mean().backward()
    seen.norms()
    alive = weakref.ref(outputs), weakref.ref(model)
    del outputs, model, seen
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_no_memory_is_held_that_the_step_would_free() -> None:
    """Every number that waits for the backward pass is one that PyTorch has saved for it too."""
    layers = [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)]
    model = filled(nn.Sequential(*layers, nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 3)))
    saved: set[int] = set()

    def save(value: Tensor) -> Tensor:
        saved.add(value.untyped_storage().data_ptr())
        return value

    with GradientNorm().watch(model, 6) as seen:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda value: value):
            loss = LOSS(model(normal(2, 6, 2, 5, 5)), Y).mean()
        kept = [
            part
            for call in seen._capture.calls
            for part in (*call.args, *call.outputs, *(value for value, _ in call.versions))
        ]
        loss.backward()
    assert len(kept) == 5 * 3
    for part in kept:
        storage = part.untyped_storage()
        assert storage.nbytes() == 8 or storage.data_ptr() in saved


OPTIMIZERS: dict[str, Any] = {
    "adam": lambda p: torch.optim.Adam(p, 0.1, betas=(0.8, 0.9)),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, eps=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1),
    "centered": lambda p: torch.optim.RMSprop(p, 0.1, centered=True, eps=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
}


def stepped(model: nn.Module, name: str, x: Tensor = X, y: Tensor = Y) -> torch.optim.Optimizer:
    optimizer = OPTIMIZERS[name](model.parameters())
    for part in (slice(0, 3), slice(2, 6)):
        optimizer.zero_grad()
        LOSS(model(x[part]), y[part]).mean().backward()
        optimizer.step()
    return optimizer


def scaled_loop(
    model: nn.Module, scales: dict[nn.Parameter, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """``‖P g_i‖`` with every gradient written out."""
    norms = []
    for place in range(len(x)):
        (loss,) = LOSS(model(x[place : place + 1]), y[place : place + 1])
        found = torch.autograd.grad(loss, list(model.parameters()))
        parts = zip(found, model.parameters(), strict=True)
        norms.append(torch.cat([(g * scales[p]).flatten() for g, p in parts]).norm())
    return torch.stack(norms)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_preconditioned_norms(name: str) -> None:
    model = network()
    optimizer = stepped(model, name)
    scales = diagonal(optimizer, model.parameters())
    found = GradientNorm(precondition=optimizer)(model, LOSS, X, Y)
    assert_close(found, scaled_loop(model, scales, X, Y), 1e-10)


def test_preconditioned_norms_of_every_form() -> None:
    model = filled(
        nn.Sequential(
            nn.Embedding(5, 4),
            nn.Linear(4, 4),
            nn.Unflatten(2, (2, 2)),
            nn.Conv2d(6, 4, 2),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
    )
    model[1].weight.data.mul_(2)
    x = torch.arange(36).view(6, 6) % 5
    optimizer = stepped(model, "adam", x)
    scales = diagonal(optimizer, model.parameters())
    expected = scaled_loop(model, scales, x, Y)
    score = GradientNorm(precondition=optimizer)
    assert_close(score(model, LOSS, x, Y), expected, 1e-10)
    with score.watch(model, 6) as seen:
        LOSS(model(x), Y).mean().backward()
    assert_close(seen.norms(), expected, 1e-10)


def test_adams_diagonal_is_that_of_its_step() -> None:
    """Without momentum Adam's step is ``lr · P g``."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.1, betas=(0.0, 0.9))
    LOSS(model(X), Y).mean().backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    scales = diagonal(optimizer, model.parameters())
    for old, new in zip(before, model.parameters(), strict=True):
        assert new.grad is not None
        assert_close(old - new.detach(), 0.1 * scales[new] * new.grad)


def test_groups_and_optimisers_without_a_diagonal() -> None:
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.05}]
    optimizer = torch.optim.RMSprop(groups, 0.1)
    assert diagonal(optimizer, model.parameters()) == {}
    assert_close(
        GradientNorm(precondition=optimizer)(model, LOSS, X, Y), GradientNorm()(model, LOSS, X, Y)
    )
    LOSS(model(X), Y).mean().backward()
    optimizer.step()
    grad = model[2].bias.grad
    assert grad is not None
    expected = 0.5 / (math.sqrt(0.01) * grad.abs() + 1e-8)
    assert_close(diagonal(optimizer, model.parameters())[model[2].bias], expected)
    with pytest.raises(UsageError, match="precondition received SGD, expected one of Adagrad, Ad"):
        diagonal(torch.optim.SGD(model.parameters(), 0.1), model.parameters())


def test_a_compiled_model_is_scored_as_it_was_written() -> None:
    model = network()
    compiled: Any = torch.compile(model, backend="eager")
    expected = gradient_norms(model, LOSS, X, Y)
    compiled(X)
    assert_close(GradientNorm()(compiled, LOSS, X, Y), expected)
    with pytest.raises(UsageError, match="watch received a compiled model, whose step shows no l"):
        GradientNorm().watch(compiled, 6)
    model.compile(backend="eager")
    model(X)
    assert_close(GradientNorm()(model, LOSS, X, Y), expected)
    with pytest.raises(UsageError, match="watch received a compiled model"):
        GradientNorm().watch(model, 6)


def test_a_preconditioned_model_in_bfloat16() -> None:
    model, x = network().bfloat16(), X.bfloat16()
    optimizer = stepped(model, "adamw", x)
    scales = diagonal(optimizer, model.parameters())
    found = GradientNorm(precondition=optimizer)(model, LOSS, x, Y)
    torch.testing.assert_close(found, scaled_loop(model, scales, x, Y).float(), rtol=0.1, atol=0)
