"""Scoring a pool in chunks is scoring it at once; plain functions are scores too."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradsift.errors import UsageError
from gradsift.sampling.quarantine import clean
from gradsift.scores import Loss, OutputGradient, score_examples
from gradsift.scores.base import call_model, device_of, in_full_precision
from gradsift.scores.untouched import Mode
from twins import assert_close, slow_losses, slow_norms

CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none")
few = settings(derandomize=True, max_examples=60, deadline=None)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def network(seed: int) -> Any:
    model: Any = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)
    ).double()
    with torch.no_grad():
        for place, tensor in enumerate([*model.parameters(), model[1].running_mean]):
            tensor.copy_(normal(seed + place, *tensor.shape))
    return model


@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 12),
    chunk=st.one_of(st.none(), st.integers(1, 14)),
    wrap=st.booleans(),
    kind=st.sampled_from([OutputGradient, Loss]),
)
@few
def test_chunks_are_the_whole_and_both_are_the_slow_twin(
    seed: int, count: int, chunk: int | None, wrap: bool, kind: Any
) -> None:
    model, x, y = network(seed), normal(seed, count, 3), torch.arange(count) % 4
    loss_fn = (lambda z, t: 2 * CROSS_ENTROPY(z, t)) if wrap else CROSS_ENTROPY
    scores = score_examples(kind(), model, loss_fn, x, y, count=count, chunk=chunk)
    with torch.no_grad():
        outputs = torch.cat([model.eval()(x[i : i + 1]) for i in range(count)])
    twin = slow_norms if kind is OutputGradient else slow_losses
    assert_close(scores, twin(loss_fn, outputs, y, count))
    assert_close(kind()(model, loss_fn, x, y), scores)


def test_train_mode_takes_batch_statistics_and_eval_mode_running_ones() -> None:
    model, x, y = network(0), normal(1, 6, 3), torch.arange(6) % 4
    hidden = model[0](x).detach()
    spread = hidden.var(0, unbiased=False)
    by_batch = (hidden - hidden.mean(0)) / (spread + 1e-5).sqrt()
    by_run = (hidden - model[1].running_mean) / (model[1].running_var + 1e-5) ** 0.5
    arms: list[tuple[Mode, Tensor]] = [("train", by_batch), ("eval", by_run)]
    for mode, normed in arms:
        outputs = model[3](torch.tanh(model[1].weight * normed + model[1].bias)).detach()
        expected = slow_norms(CROSS_ENTROPY, outputs, y, 6)
        scores = score_examples(OutputGradient(mode=mode), model, CROSS_ENTROPY, x, y, count=6)
        assert_close(scores, expected, 1e-9)
        assert_close(OutputGradient(mode=mode)(model, CROSS_ENTROPY, x, y), expected, 1e-9)


@pytest.mark.parametrize("chunk", [None, 1, 3, 7])
def test_nested_inputs_and_targets_are_cut_together(chunk: int | None) -> None:
    inputs = {"a": normal(0, 7, 2), "b": (normal(1, 7, 2), None), "names": list("abcdefg")}
    targets = {"y": normal(2, 7, 2), "scale": normal(3, 7)}

    def forward(model: Any, x: Any) -> Any:
        assert len(x["names"]) == len(x["a"])
        return {"out": model(x["a"]) + x["b"][0]}

    def loss_fn(outputs: Any, y: Any) -> Tensor:
        return (outputs["out"] - y["y"]).square().sum(1) * y["scale"].exp()

    scores = score_examples(
        OutputGradient(),
        nn.Identity(),
        loss_fn,
        inputs,
        targets,
        count=7,
        chunk=chunk,
        forward=forward,
    )
    expected = slow_norms(loss_fn, {"out": inputs["a"] + inputs["b"][0]}, targets, 7)
    assert_close(scores, expected)


def size_of_input(model: Any, loss_fn: Any, inputs: Tensor, targets: Any) -> Tensor:
    return inputs.norm(dim=1)


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_plain_function_is_a_score(chunk: int | None) -> None:
    x = normal(0, 5, 3)
    scores = score_examples(
        size_of_input, nn.Identity(), CROSS_ENTROPY, x, None, count=5, chunk=chunk
    )
    assert_close(scores, x.norm(dim=1))


def test_a_plain_function_runs_in_eval_mode_without_a_trace() -> None:
    model, modes = nn.Linear(3, 1), []

    def gradient_norm(model: Any, loss_fn: Any, inputs: Tensor, targets: Any) -> Tensor:
        modes.append(model.training)
        model(inputs).sum().backward()
        return model.weight.grad.norm() * model(inputs).abs().flatten()

    x = torch.ones(2, 3)
    scores = score_examples(gradient_norm, model, CROSS_ENTROPY, x, None, count=2)
    assert modes == [False]
    assert model.training
    assert model.weight.grad is None
    assert not scores.requires_grad


@pytest.mark.parametrize(
    ("score", "found"),
    [
        (lambda model, loss_fn, x, y: x, r"shape \[3, 2\], expected \[3\]"),
        (lambda model, loss_fn, x, y: x.sum(), r"a scalar, expected \[3\]"),
        (lambda model, loss_fn, x, y: x[:2, 0], r"shape \[2\], expected \[3\]"),
    ],
)
def test_one_score_per_example(score: Any, found: str) -> None:
    with pytest.raises(UsageError, match=f"the score returned {found}"):
        score_examples(score, nn.Identity(), CROSS_ENTROPY, torch.ones(3, 2), None, count=3)


def test_a_model_that_returns_too_few_rows_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the score returned shape \[2\], expected \[3\]"):
        score_examples(
            OutputGradient(),
            lambda x: x[:2],
            lambda z, y: z.square().sum(1),
            torch.ones(3, 2),
            None,
            count=3,
        )


def test_a_ragged_pool_is_refused_by_name() -> None:
    inputs = {"x": torch.ones(3, 2), "mask": torch.ones(2)}
    with pytest.raises(UsageError, match=r"leaf \['mask'\]"):
        score_examples(OutputGradient(), nn.Identity(), CROSS_ENTROPY, inputs, None, count=3)


def test_negative_losses_are_refused_where_scores_are_used() -> None:
    scores = score_examples(
        Loss(), nn.Identity(), lambda z, y: z - 1, torch.arange(3.0), None, count=3
    )
    assert scores.tolist() == [-1.0, 0.0, 1.0]
    with pytest.raises(UsageError, match=r"1 of 3 scores are negative.*position 0 is -1; expected"):
        clean(scores)


def test_models_are_called_by_the_type_of_their_inputs() -> None:
    def model(*args: Any, **options: Any) -> tuple[Any, ...]:
        return args, options

    assert call_model(model, {"a": 1}) == ((), {"a": 1})
    assert call_model(model, (1, 2)) == call_model(model, [1, 2]) == ((1, 2), {})
    assert call_model(model, 1) == ((1,), {})


def test_full_precision_is_float32_or_better_and_detached() -> None:
    tree = {
        "half": torch.ones(1, dtype=torch.float16, requires_grad=True),
        "double": torch.ones(1, dtype=torch.float64),
        "whole": torch.ones(1, dtype=torch.int64),
        "word": "a",
    }
    result = in_full_precision(tree)
    assert [result[key].dtype for key in ("half", "double", "whole")] == [
        torch.float32,
        torch.float64,
        torch.int64,
    ]
    assert not result["half"].requires_grad
    assert result["word"] == "a"


def test_the_device_is_that_of_the_first_tensor() -> None:
    assert device_of(["a", torch.ones(1, device="meta")]).type == "meta"
    assert device_of("a").type == "cpu"
