"""Scores of the rivals: one minus the probability of the class, and the norm of the input."""

import math

import pytest
import torch
from torch import Tensor, nn

from gradsift import UsageError
from gradsift.scores import Doubt, InputNorm
from twins import GAPS, assert_close, gap_logits

CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none")


def doubts(outputs: Tensor, targets: Tensor) -> Tensor:
    return Doubt().of_outputs(CROSS_ENTROPY, outputs, targets)


def slow_doubt(logits: list[float], label: int) -> float:
    """The sum of the other probabilities, by the textbook softmax."""
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    others = [weight for k, weight in enumerate(weights) if k != label]
    return math.fsum(others) / math.fsum(weights)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8])
def test_doubt_is_one_minus_the_probability_of_the_class(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (20,), generator=generator)
    slow = [
        slow_doubt(row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert_close(doubts(logits, labels.to(kind)), torch.tensor(slow, dtype=torch.float64))


def test_it_is_accurate_where_an_example_is_fitted() -> None:
    found = doubts(gap_logits(10), torch.zeros(len(GAPS), dtype=torch.int64))
    truth = [9 * math.exp(-gap) / (1 + 9 * math.exp(-gap)) for gap in GAPS]
    torch.testing.assert_close(found.double(), torch.tensor(truth).double(), rtol=1e-5, atol=0)


def test_it_orders_examples_as_the_cross_entropy_does() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (50,), generator=generator)
    losses = CROSS_ENTROPY(logits, labels)
    assert torch.equal(doubts(logits, labels).argsort(), losses.argsort())


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_two_classes_by_a_sigmoid(shape: tuple[int, ...]) -> None:
    logits = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 9.0])
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    slow = torch.where(labels == 1, torch.sigmoid(-logits), torch.sigmoid(logits))
    assert_close(doubts(logits.reshape(shape), labels.reshape(shape)), slow, 1e-6)


def test_an_ignored_example_has_no_doubt() -> None:
    assert doubts(torch.zeros(3, 2), torch.tensor([0, -100, 2])).tolist() == [0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 3)),
        (torch.zeros(4, 1), torch.tensor([0.0, 1.0, 2.5, 0.0])),
        (torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, 3), None),
        ({"logits": torch.zeros(4, 3)}, torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_other_tasks_are_refused(outputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(UsageError, match=r"the score Doubt received outputs .* expected logits"):
        doubts(outputs, targets)


def test_it_leaves_no_trace_and_runs_the_model_in_its_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)).train()
    x, y = torch.randn(8, 3), torch.zeros(8, dtype=torch.int64)
    before = [value.clone() for value in model.state_dict().values()]
    found = Doubt()(model, CROSS_ENTROPY, x, y)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    slow = 1 - torch.softmax(model.eval()(x), 1)[:, 0]
    assert_close(found, slow.detach(), 1e-6)


def test_input_norms_are_over_all_floating_parts() -> None:
    x, z = torch.randn(5, 2, 3), torch.randn(5, 4).double()
    inputs = {"x": x, "ids": torch.ones(5, 9, dtype=torch.int64), "z": z}
    slow = [
        math.sqrt(sum(v**2 for v in [*x[k].flatten().tolist(), *z[k].tolist()])) for k in range(5)
    ]
    found = InputNorm()(None, CROSS_ENTROPY, inputs, None)
    torch.testing.assert_close(found.double(), torch.tensor(slow).double(), rtol=1e-6, atol=0)


def test_tokens_have_no_norm() -> None:
    with pytest.raises(UsageError, match="without any floating tensor"):
        InputNorm()(None, CROSS_ENTROPY, torch.ones(3, 4, dtype=torch.int64), None)
