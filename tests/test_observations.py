"""Scores of a window of steps are those of each step alone, whatever the outputs look like."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsift.records import LossFunction, WeightedBatch
from gradsift.scores import OutputGradient
from gradsift.sifting import observations as room
from gradsift.sifting.observations import Observations, Scored

CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none")
SQUARED = nn.MSELoss(reduction="none")


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return SQUARED(outputs, targets).flatten(1).sum(1)


def batch(number: int, targets: Any, *, count: int = 3, drawn: bool = False) -> WeightedBatch:
    return WeightedBatch(
        inputs=None,
        targets=targets,
        weights=torch.arange(1.0, count + 1) + number,
        ids=torch.arange(count) + 10 * number,
        size=count,
        drawn=drawn,
        loss_fn=CROSS_ENTROPY,
        report=lambda *_: None,
    )


def labelled(number: int, *, drawn: bool = False, count: int = 3) -> tuple[WeightedBatch, Tensor]:
    generator = torch.Generator().manual_seed(number)
    outputs = 5 * torch.randn(count, 4, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    return batch(number, labels, drawn=drawn, count=count), outputs


def alone(step: WeightedBatch, outputs: Any, loss_fn: LossFunction) -> list[float]:
    return OutputGradient().of_outputs(loss_fn, outputs, step.targets).tolist()


def test_a_window_is_scored_at_its_last_step_as_each_step_alone() -> None:
    seen = Observations(OutputGradient(), CROSS_ENTROPY, window=3)
    steps = [labelled(number, count=3 + number) for number in range(3)]
    assert [seen.add(*step, version=7 + place) for place, step in enumerate(steps[:2])] == [[], []]
    (found,) = seen.add(*steps[2], version=9)
    expected = [score for step in steps for score in alone(*step, CROSS_ENTROPY)]
    assert found.update.score.tolist() == expected
    assert found.update.version == 7
    assert found.update.index.tolist() == [
        one for step, _ in steps for one in step.indices.tolist()
    ]
    assert found.weights.tolist() == [w for step, _ in steps for w in step.weights.tolist()]
    assert seen.add(*steps[0], version=10) == []


def test_outputs_and_targets_may_be_changed_after_the_step() -> None:
    seen = Observations(OutputGradient(), CROSS_ENTROPY, window=2)
    step, outputs = labelled(1)
    expected = alone(step, outputs, CROSS_ENTROPY)
    seen.add(step, outputs, version=0)
    outputs.zero_()
    step.targets.zero_()
    (found,) = seen.add(*labelled(2), version=1)
    assert found.update.score[:3].tolist() == expected


def test_the_inputs_of_a_step_that_waits_may_be_freed() -> None:
    """Sixteen batches of images would be much memory; their outputs and targets are little."""
    seen = Observations(OutputGradient(), CROSS_ENTROPY, window=3)
    step, outputs = labelled(1)
    images = torch.zeros(3, 1000)
    step = replace(step, inputs=images)
    alive = weakref.ref(images)
    seen.add(step, outputs, version=0)
    del step, images
    assert alive() is None


def test_a_window_of_one_waits_for_nothing() -> None:
    seen = Observations(OutputGradient(), CROSS_ENTROPY, window=1)
    step, outputs = labelled(1, drawn=True)
    (found,) = seen.add(step, outputs, version=4)
    assert found.update.score.tolist() == alone(step, outputs, CROSS_ENTROPY)
    assert (found.update.version, found.drawn, found.weights) == (4, True, step.weights)


def shapes(found: list[Scored]) -> list[tuple[int, int, bool]]:
    return [(len(one.update.index), one.update.version, one.drawn) for one in found]


def test_drawn_examples_and_others_are_kept_apart() -> None:
    seen = Observations(OutputGradient(), CROSS_ENTROPY, window=4)
    seen.add(*labelled(0), version=0)
    seen.add(*labelled(1), version=1)
    assert shapes(seen.add(*labelled(2, drawn=True), version=2)) == [(6, 0, False)]
    assert shapes(seen.add(*labelled(3), version=3)) == [(3, 2, True)]


def test_steps_of_another_shape_begin_a_window_of_their_own() -> None:
    seen = Observations(OutputGradient(), squared, window=2)
    found: list[Scored] = []
    for number, width in enumerate((2, 3, 3)):
        step = batch(number, torch.zeros(3, width))
        found = seen.add(step, torch.ones(3, width), version=number)
        assert shapes(found) == ([], [(3, 0, False)], [(6, 1, False)])[number]
    assert found[0].update.score.tolist() == pytest.approx([2 * 3**0.5] * 6)


@pytest.mark.parametrize("kind", ["nested", "scalar targets", "large"])
def test_what_cannot_wait_is_scored_at_once_after_what_waited(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def loss_fn(outputs: Any, targets: Any) -> Tensor:
        del targets
        values = outputs["a"] if isinstance(outputs, dict) else outputs
        return values.square().sum(1) / 2

    seen = Observations(OutputGradient(), loss_fn, window=4)
    seen.add(batch(0, torch.zeros(3)), torch.ones(3, 4), version=0)
    outputs: Any = torch.full((3, 4), 2.0)
    targets: Any = torch.zeros(3)
    if kind == "nested":
        outputs = {"a": outputs}
    elif kind == "scalar targets":
        targets = 0
    else:
        monkeypatch.setattr(room, "LARGEST", 11)
    found = seen.add(batch(1, targets), outputs, version=1)
    assert shapes(found) == [(3, 0, False), (3, 1, False)]
    assert found[0].update.score.tolist() == [2.0] * 3
    assert found[1].update.score.tolist() == [4.0] * 3


def test_classes_come_along_and_other_targets_do_not() -> None:
    seen = Observations(OutputGradient(), CROSS_ENTROPY, window=2)
    steps = [labelled(number) for number in range(2)]
    seen.add(*steps[0], version=0)
    (found,) = seen.add(*steps[1], version=1)
    assert found.update.label is not None
    assert found.update.label.tolist() == torch.cat([one.targets for one, _ in steps]).tolist()
    alone = Observations(OutputGradient(), squared, window=1)
    (other,) = alone.add(batch(0, torch.zeros(3, 2)), torch.ones(3, 2), version=0)
    assert other.update.label is None
