"""Exact gradient norms: `torch.func`, closed forms, and no trace left."""

import inspect
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsift.errors import UsageError
from gradsift.scores import score_examples
from gradsift.scores.gradient_loop import gradient_norms
from twins import assert_close

LOSS = nn.CrossEntropyLoss(reduction="none")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(seed + place, *parameter.shape))
    return model


X, Y = normal(9, 6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


def vmapped(model: nn.Module, trained: dict[str, Tensor], frozen: dict[str, Tensor]) -> Tensor:
    """The norms by `torch.func.vmap` over `torch.func.grad`."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, {**parameters, **frozen}, (x[None],))
        return nn.functional.cross_entropy(outputs, y[None])

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(trained, X, Y)
    return torch.stack([part.flatten(1).norm(dim=1) for part in found.values()]).norm(dim=0)


@pytest.mark.parametrize("frozen", [(), ("0.weight",), ("0.weight", "0.bias", "2.bias")])
def test_the_loop_is_vmap_of_grad(frozen: tuple[str, ...]) -> None:
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    tensors = {name: value.detach() for name, value in model.named_parameters()}
    trained = {name: value for name, value in tensors.items() if name not in frozen}
    fixed = {name: value for name, value in tensors.items() if name in frozen}
    assert_close(gradient_norms(model, LOSS, X, Y), vmapped(model, trained, fixed))


def test_a_linear_model_has_a_closed_form() -> None:
    """The gradient of a linear layer is an outer product: ``‖p − y‖ · sqrt(‖x‖² + 1)``."""
    model = nn.Linear(4, 3).double()
    residual = model(X).softmax(1).detach() - nn.functional.one_hot(Y, 3)
    expected = residual.norm(dim=1) * (X.square().sum(1) + 1).sqrt()
    assert_close(gradient_norms(model, LOSS, X, Y), expected)


def test_it_is_a_score_like_any_other() -> None:
    model = network()
    found = score_examples(gradient_norms, model, LOSS, X, Y, count=6, chunk=4)
    assert_close(found, gradient_norms(model, LOSS, X, Y))


def test_nested_inputs_and_another_call() -> None:
    model = network()

    def forward(module: Any, inputs: Any) -> Tensor:
        return module(inputs["x"] * inputs["scale"][:, None])

    inputs = {"x": X / 2, "scale": torch.full((6,), 2.0, dtype=torch.float64)}
    assert_close(gradient_norms(model, LOSS, inputs, Y, forward), gradient_norms(model, LOSS, X, Y))


class Restless(nn.Module):
    """BatchNorm, dropout, a counter and Python's random numbers."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)
        )
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        random.random()
        return self.inner(x) + torch.rand(())


@pytest.mark.parametrize("fails", [False, True])
def test_no_trace_is_left(fails: bool) -> None:
    model = Restless().double()
    model(X).sum().backward()
    kept = [parameter.grad for parameter in model.parameters()]
    copies = [None if grad is None else grad.clone() for grad in kept]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(UsageError, match=r"loss_fn returned a scalar, expected \[1\]"):
            gradient_norms(model, nn.CrossEntropyLoss(), X, Y)
    else:
        assert bool((gradient_norms(model, LOSS, X, Y) > 0).all())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for parameter, grad, copy in zip(model.parameters(), kept, copies, strict=True):
        assert parameter.grad is grad
        assert (grad is None) == (copy is None)
        assert grad is None or copy is None or torch.equal(grad, copy)


def test_eval_by_default_and_dropout_in_train_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.5), network())
    quiet = gradient_norms(model, LOSS, X, Y)
    assert_close(quiet, gradient_norms(model[1], LOSS, X, Y))
    assert not torch.allclose(gradient_norms(model, LOSS, X, Y, mode="train"), quiet)
    with pytest.raises(UsageError, match="mode 'test' is unknown"):
        inspect.unwrap(gradient_norms)(model, LOSS, X, Y, mode="test")


def test_surrounding_contexts_do_not_matter() -> None:
    model = network().float()
    x = X.float()
    plain = gradient_norms(model, LOSS, x, Y)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_norms(model, LOSS, x, Y), plain)
    low = gradient_norms(model.bfloat16(), LOSS, x.bfloat16(), Y)
    assert low.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(low, plain, rtol=0.05, atol=0.02)


def test_a_loss_without_parameters_and_a_parameter_without_a_part() -> None:
    model = network()

    def constant(outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.double()

    assert gradient_norms(model, constant, X, Y).tolist() == [0.0] * 6
    expected = gradient_norms(model, LOSS, X, Y)
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    assert_close(gradient_norms(model, LOSS, X, Y), expected)
    with pytest.raises(UsageError, match="a model without a parameter that requires a gradient"):
        gradient_norms(nn.Identity(), LOSS, X, Y)


def test_sparse_gradients_count_like_dense_ones() -> None:
    ids = torch.tensor([[0, 1, 1], [2, 2, 2]])
    found = []
    for sparse in (False, True):
        bag = nn.EmbeddingBag(3, 3, sparse=sparse, _weight=normal(1, 3, 3))
        found.append(gradient_norms(bag, LOSS, ids, Y[:2]))
    assert_close(found[1], found[0])
