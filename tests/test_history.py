"""The history of every example: against a loop over examples, and through its file."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blobs import Calls, blobs, settings, toy, virtual
from gradsift import DataError, UsageError, WeightedBatch
from gradsift.budget import Budget
from gradsift.data.problem import from_datasets, pose
from gradsift.monitors import History, HistoryRecorder, read_history, write_history
from gradsift.monitors import history as room
from gradsift.monitors import recorder as recording
from gradsift.report.gallery import as_pixels
from gradsift.report.picks import read_picks
from gradsift.trainer import run
from gradsift.trainer.keeping import Keeping
from gradsift.trainer.suspects import SHOWN, with_looks

N, CLASSES = 12, 3
LOSS = nn.CrossEntropyLoss(reduction="none")


def batch_of(ids: Tensor, targets: Any, weights: Tensor, loss_fn: Any = LOSS) -> WeightedBatch:
    return WeightedBatch(None, targets, weights, ids, len(ids), True, loss_fn, lambda *_: None)


def steps(count: int = 9) -> list[tuple[WeightedBatch, Tensor]]:
    """Random batches with copies, weights and logits in float64, of which some are never drawn."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(N) % CLASSES
    found = []
    for _ in range(count):
        ids = torch.randint(N - 2, (5,), generator=generator)
        weights = torch.rand(5, dtype=torch.float64, generator=generator) + 0.5
        logits = 3 * torch.randn(N, CLASSES, dtype=torch.float64, generator=generator)[ids]
        found.append((batch_of(ids, labels[ids], weights), logits))
    return found


class SlowHistory:
    """One example at a time, in Python numbers."""

    def __init__(self) -> None:
        self.relative: list[list[float]] = [[] for _ in range(N)]
        self.guesses: list[list[list[float]]] = [[] for _ in range(N)]
        self.means: list[float] = []

    def add(self, batch: WeightedBatch, logits: Tensor) -> None:
        rows = zip(batch.indices.tolist(), batch.targets.tolist(), logits.tolist(), strict=True)
        guesses = []
        for index, label, row in rows:
            total = math.fsum(math.exp(z) for z in row)
            guesses.append((index, label, [math.exp(z) / total for z in row]))
        losses = [-math.log(p[label]) for _, label, p in guesses]
        weighted = [w * loss for w, loss in zip(batch.weights.tolist(), losses, strict=True)]
        self.means.append(math.fsum(weighted) / len(losses))
        factors = [0.98**age for age in reversed(range(len(self.means)))]
        level = math.fsum(f * m for f, m in zip(factors, self.means, strict=True))
        level /= math.fsum(factors)
        for (index, _, p), loss in zip(guesses, losses, strict=True):
            self.relative[index].append(loss / level)
            self.guesses[index].append(p)


def recorded() -> tuple[HistoryRecorder, SlowHistory]:
    recorder, slow = HistoryRecorder(N), SlowHistory()
    for batch, logits in steps():
        recorder.add(batch, logits)
        slow.add(batch, logits)
    return recorder, slow


def test_the_history_agrees_with_a_loop_over_examples() -> None:
    recorder, slow = recorded()
    state = recorder.state_dict()
    expected = [math.fsum(values) for values in slow.relative]
    assert state["sums"].tolist() == pytest.approx(expected, rel=1e-12)
    sums = [[math.fsum(row[k] for row in rows) for k in range(CLASSES)] for rows in slow.guesses]
    torch.testing.assert_close(
        state["probabilities"], torch.tensor(sums, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )
    history = recorder.read()
    for index in range(N):
        own = slow.relative[index]
        assert history.visits[index] == len(own)
        if not own:
            assert math.isnan(history.mean[index])
            assert (history.labels[index], history.predicted[index]) == (-1, -1)
            continue
        assert history.mean[index] == pytest.approx(math.fsum(own) / len(own), rel=1e-6)
        assert history.last[index] == pytest.approx(own[-1], rel=1e-6)
        assert history.labels[index] == index % CLASSES
        mean = [value / len(own) for value in sums[index]]
        assert history.predicted[index] == mean.index(max(mean))
        assert history.probabilities[index].tolist() == pytest.approx(mean, abs=5e-4)


def test_suspects_fall_by_mean_loss_and_ties_rise_by_id() -> None:
    recorder, slow = recorded()
    means = {k: math.fsum(v) / len(v) for k, v in enumerate(slow.relative) if v}
    assert recorder.read().suspects().tolist() == sorted(means, key=lambda k: -means[k])
    same = np.ones(3, np.float32)
    ones = np.ones(3, np.int32)
    assert History(ones, same, same, ones, ones).suspects().tolist() == [0, 1, 2]


def test_losses_that_are_not_finite_are_left_out() -> None:
    recorder = HistoryRecorder(3)
    logits = torch.tensor([[0.0, 0.0], [math.nan, 0.0], [0.0, math.inf]])
    ones = torch.ones(3)
    recorder.add(batch_of(torch.arange(3), torch.zeros(3, dtype=torch.int64), ones), logits)
    recorder.add(
        batch_of(torch.arange(1, 2), torch.zeros(1, dtype=torch.int64), ones[:1]), logits[1:2]
    )
    history = recorder.read()
    assert history.visits.tolist() == [1, 0, 0]
    assert history.mean[0] == pytest.approx(3.0)  # of three examples' mean loss, as of size three
    assert np.isfinite(history.probabilities.astype(float)).all()


def test_losses_of_zero_have_no_level() -> None:
    recorder = HistoryRecorder(2)
    logits = torch.tensor([[1e4, 0.0], [1e4, 0.0]])
    recorder.add(
        batch_of(torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.ones(2)), logits
    )
    assert recorder.read().mean.tolist() == [0.0, 0.0]


def squares(outputs: Any, targets: Tensor) -> Tensor:
    return (outputs["value"][:, 0] - targets).square()


def test_any_outputs_and_targets_have_losses() -> None:
    recorder = HistoryRecorder(2)
    targets = torch.tensor([0.0, 2.0])
    outputs = {"value": torch.ones(2, 1, requires_grad=True)}
    recorder.add(batch_of(torch.arange(2), targets, torch.ones(2), squares), outputs)
    history = recorder.read()
    assert history.mean.tolist() == [1.0, 1.0]
    assert history.labels.tolist() == history.predicted.tolist() == [-1, -1]
    assert history.probabilities.shape == (0, 0)
    assert outputs["value"].grad is None


def test_labels_that_are_ignored_are_unknown() -> None:
    recorder = HistoryRecorder(2)
    targets = torch.tensor([-100, 1])
    recorder.add(batch_of(torch.arange(2), targets, torch.ones(2)), torch.zeros(2, 2))
    assert recorder.read().labels.tolist() == [-1, 1]


def test_many_classes_keep_the_last_prediction_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "LARGEST", N * CLASSES - 1)
    recorder = HistoryRecorder(N)
    last: dict[int, int] = {}
    for batch, logits in steps():
        recorder.add(batch, logits)
        last |= dict(zip(batch.indices.tolist(), logits.argmax(1).tolist(), strict=True))
    history = recorder.read()
    assert history.probabilities.shape == (0, 0)
    assert history.predicted.tolist() == [last.get(index, -1) for index in range(N)]


def test_a_recorder_goes_on_bit_for_bit() -> None:
    whole, first = HistoryRecorder(N), HistoryRecorder(N)
    state: dict[str, Any] = {}
    for number, (batch, logits) in enumerate(steps()):
        if number == 4:
            state = first.state_dict()
            first.add(*steps()[0])  # nothing of it is in the state
            first = HistoryRecorder(N)
            first.load_state_dict(state)
        whole.add(batch, logits)
        first.add(batch, logits)
    one, other = whole.state_dict(), first.state_dict()
    assert one.pop("level") == other.pop("level")
    for name, values in one.items():
        torch.testing.assert_close(other[name], values, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(UsageError, match="history of 12 examples, expected that of 11"):
        HistoryRecorder(N - 1).load_state_dict(state)
    with pytest.raises(UsageError, match="at least one"):
        HistoryRecorder(0)


def made(**changes: Any) -> History:
    rows = {
        "visits": np.array([3, 0, 2, 1], np.int32),
        "mean": np.array([0.5, math.nan, 4.0, 1.0], np.float32),
        "last": np.array([0.1, math.nan, 5.0, 1.0], np.float32),
        "labels": np.array([1, -1, 0, 1], np.int32),
        "predicted": np.array([1, -1, 1, 1], np.int32),
        "probabilities": np.array([[0.1, 0.9], [0, 0], [0.01, 0.99], [0.5, 0.5]], np.float16),
        "shown": np.array([2, 3]),
        "pixels": np.zeros((2, 4, 5), np.uint8),
        "texts": ("0", "<1>"),
    }
    return History(**{**rows, **changes})


def same(one: History, other: History) -> None:
    assert one.texts == other.texts
    for name in set(vars(one)) - {"texts"}:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


@pytest.mark.parametrize(
    "history",
    [
        made(),
        made(probabilities=room.no_probabilities()),
        made(pixels=np.zeros((2, 4, 5, 3), np.uint8)),
    ],
)
def test_a_file_brings_back_what_was_written(tmp_path: Path, history: History) -> None:
    assert write_history(tmp_path / "new", history) == tmp_path / "new" / "history.npz"
    same(read_history(tmp_path / "new"), history)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["history.npz"]


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": np.zeros(3, np.float32)},
        {"shown": np.array([2, 4])},
        {"shown": np.array([2])},
        {"texts": ("0",)},
        {"pixels": np.zeros((1, 4, 5), np.uint8)},
        {"probabilities": np.zeros((3, 2), np.float16)},
    ],
)
def test_rows_of_other_examples_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((UsageError, TypeError)):  # a TypeError where shapes are checked already
        made(**changes)


def test_what_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        read_history(tmp_path / "none")
    with pytest.raises(UsageError, match=r"holds no history\.npz"):
        read_history(tmp_path)
    path = write_history(tmp_path, made())
    content = path.read_bytes()
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    objects = np.array([{}], dtype=object)
    np.savez(tmp_path / "objects.npz", **{**vars(made()), "texts": objects})
    broken = {
        "empty": b"",
        "cut": content[:-50],
        "text": b"x,y\n1,2\n",
        "others": (tmp_path / "other.npz").read_bytes(),
        "objects": (tmp_path / "objects.npz").read_bytes(),
    }
    for found in broken.values():
        path.write_bytes(found)
        with pytest.raises(DataError, match=r"history\.npz' cannot be read"):
            read_history(tmp_path)


@pytest.mark.parametrize("recipe", ["table", "pool"])
def test_a_run_leaves_the_history_of_what_it_trained_on(tmp_path: Path, recipe: str) -> None:
    run(toy(), settings(8, recipe=recipe), out=tmp_path / "o", clock=virtual())
    history, picks = read_history(tmp_path / "o"), read_picks(tmp_path / "o")
    assert picks is not None
    assert history.visits.tolist() == picks.draws.tolist()
    labels = blobs().tensors[1]
    seen = history.visits > 0
    assert history.labels[seen].tolist() == labels[torch.from_numpy(seen)].tolist()
    assert history.probabilities[seen].astype(float).sum(1) == pytest.approx(1.0, abs=2e-3)
    assert history.shown.tolist() == history.suspects()[:SHOWN].tolist()
    assert history.pixels.size == 0
    assert history.texts[0].startswith(f"{history.labels[history.shown[0]]}: ")


def test_a_killed_run_ends_with_the_same_history(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(step: int) -> None:
        if step == 5:
            raise Killed

    chosen, kept = settings(9, recipe="table"), Budget("steps", 2)
    run(toy(), chosen, out=tmp_path / "whole", clock=virtual())
    with pytest.raises(Killed):
        run(
            toy(),
            chosen,
            out=tmp_path / "o",
            clock=virtual(),
            progress=Calls(die),
            keeping=Keeping(every=kept),
        )
    assert not (tmp_path / "o" / "history.npz").exists()
    again = Keeping(every=kept, resume=True)
    run(toy(), chosen, out=tmp_path / "o", clock=virtual(), keeping=again)
    same(read_history(tmp_path / "o"), read_history(tmp_path / "whole"))


def test_suspicious_images_are_kept_as_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 4, 5, generator=generator)
    data = torch.utils.data.TensorDataset(images, torch.tensor([1, 0, 0, 1]))
    plain = made(shown=room.nobody(), pixels=room.no_pixels(), texts=())
    found = with_looks(plain, from_datasets("toy", data, data))
    assert found.shown.tolist() == [2, 3, 0]
    assert found.texts == ("0", "1", "1")
    for place, index in enumerate(found.shown.tolist()):
        assert np.array_equal(found.pixels[place], as_pixels(images[index].numpy()))
    rows = pose("toy", data, data, (20,), 2, "classification")
    assert with_looks(plain, rows).pixels.size == 0
