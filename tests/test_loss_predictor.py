"""Histories, the network that reads them, and what is kept of its reading, against slow twins."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradsift.errors import UsageError
from gradsift.predictor import Forecasting, Prediction
from gradsift.predictor.history import LossHistory, each_once
from gradsift.predictor.recurrent import LEAST, WIDTH, LossPredictor, Network

EXAMPLES = 12


@given(
    length=st.integers(1, 4),
    appended=st.lists(st.lists(st.integers(0, 5), max_size=4, unique=True), max_size=12),
)
def test_histories_are_lists_that_forget(length: int, appended: list[list[int]]) -> None:
    history = LossHistory(6, length, first=1.0)
    twin = [[1.0] for _ in range(6)]
    for step, ids in enumerate(appended):
        numbers = [0.5 + step + 10 * place for place in ids]
        history.append(np.array(ids, np.int64), np.array(numbers))
        for place, number in zip(ids, numbers, strict=True):
            twin[place] = [*twin[place], number][-length:]
    values, counts = history.rows(np.arange(6))
    assert counts.tolist() == [len(one) for one in twin]
    longest = max(len(one) for one in twin)
    assert values.tolist() == [one + [0.0] * (longest - len(one)) for one in twin]
    again = LossHistory(6, length, first=9.0)
    again.load_state_dict(history.state_dict())
    assert again.rows(np.arange(6))[0].tolist() == values.tolist()
    assert history.nbytes == 6 * (4 * length + 1)


def test_ids_that_come_twice_count_once() -> None:
    ids, first, means, others = each_once(
        np.array([5, 2, 5, 5]), np.array([1.0, 8.0, 2.0, 6.0]), np.array([0.0, 1.0, 0.0, 3.0])
    )
    assert (ids.tolist(), first.tolist()) == ([2, 5], [1, 0])
    assert (means.tolist(), others.tolist()) == ([8.0, 3.0], [1.0, 1.0])


def slow_predictions(network: Network, histories: list[list[float]], labels: Tensor) -> list[float]:
    """One example at a time, through two LSTM cells, by the formulas of the layers."""
    found = []
    weights = dict(network.memory.named_parameters())
    for history, label in zip(histories, labels.tolist(), strict=True):
        states = [(torch.zeros(WIDTH), torch.zeros(WIDTH)) for _ in range(2)]
        for number in history:
            x = torch.tensor([number])
            for layer in range(2):
                h, c = states[layer]
                gates = (
                    weights[f"weight_ih_l{layer}"] @ x
                    + weights[f"bias_ih_l{layer}"]
                    + weights[f"weight_hh_l{layer}"] @ h
                    + weights[f"bias_hh_l{layer}"]
                )
                i, f, g, o = gates.chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                states[layer] = (h, c)
                x = h
        whole = torch.cat([states[1][0], network.embedding.weight[label]])
        found.append(float(network.head.weight[0] @ whole + network.head.bias))
    return found


@torch.no_grad()
def test_the_network_is_two_cells_an_embedding_and_a_line() -> None:
    torch.manual_seed(0)
    network = Network(classes=3)
    histories = [[1.0], [1.0, 0.3, 2.0], [0.1, 0.2, 0.3, 0.4]]
    labels = torch.tensor([0, 2, 1])
    values = torch.tensor([one + [0.0] * (4 - len(one)) for one in histories])
    read = network.read(values, torch.tensor([1, 3, 4]))
    expected = slow_predictions(network, histories, labels)
    assert network(read, labels).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def batch(step: int, size: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, some of them twice, losses that depend on them, and classes."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(EXAMPLES, (size,), generator=generator)
    noise = 1 + 0.1 * torch.rand(size, generator=generator)
    return ids, (0.2 + ids / 4) * noise, ids % 3


def taught(prediction: Prediction, steps: int = 30, seed: int = 0) -> LossPredictor:
    predictor = LossPredictor(EXAMPLES, prediction, seed)
    for step in range(steps):
        predictor.learn(*batch(step))
    return predictor


@pytest.mark.parametrize("log_scale", [False, True])
def test_what_is_kept_of_the_reading_equals_reading_anew(log_scale: bool) -> None:
    """Where the network stands still. Sixteen appended losses: histories are full."""
    everyone = torch.arange(EXAMPLES)
    kept, anew = (
        taught(Prediction(lr=0.0, history=4, refresh=refresh, log_scale=log_scale), 40)
        for refresh in (0, None)
    )
    assert torch.allclose(kept.predict(everyone), anew.predict(everyone), rtol=1e-5)
    assert len(kept.predict(everyone).unique()) > 3


def test_what_is_kept_follows_a_network_that_moves() -> None:
    """With all refreshed in each step it is the same again."""
    everyone = torch.arange(EXAMPLES)
    kept, anew, left = (
        taught(Prediction(lr=0.01, every=1, refresh=refresh)).predict(everyone)
        for refresh in (EXAMPLES, None, 0)
    )
    assert torch.allclose(kept, anew, rtol=1e-5)
    assert not torch.allclose(left, anew, rtol=1e-5)


class Plainly:
    """The published predictor as a loop over examples: lists, one batch, one Adam step."""

    def __init__(self, network: Network, lr: float, length: int, log_scale: bool) -> None:
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        self.histories = [[0.0 if log_scale else 1.0] for _ in range(EXAMPLES)]
        self.labels = torch.zeros(EXAMPLES, dtype=torch.int64)
        self.length, self.log_scale = length, log_scale

    def output(self, ids: list[int]) -> Tensor:
        states = []
        for i in ids:
            states.append(self.network.memory(torch.tensor(self.histories[i])[:, None])[0][-1])
        both = torch.cat([torch.stack(states), self.network.embedding(self.labels[ids])], 1)
        return self.network.head(both)[:, 0]

    def learn(self, ids: Tensor, losses: Tensor, labels: Tensor) -> None:
        self.labels[ids] = 1 + labels
        different = sorted(set(ids.tolist()))
        targets = torch.stack([losses[ids == i].mean() for i in different])
        targets = targets.log() if self.log_scale else targets
        error = (self.output(different) - targets).square().mean()
        self.optimizer.zero_grad()
        error.backward()
        self.optimizer.step()
        for i, target in zip(different, targets.tolist(), strict=True):
            self.histories[i] = [*self.histories[i], target][-self.length :]

    @torch.no_grad()
    def predict(self, ids: list[int]) -> Tensor:
        output = self.output(ids).double()
        return (output.exp() if self.log_scale else output).clamp(min=LEAST)


@pytest.mark.parametrize("log_scale", [False, True])
def test_it_is_the_published_predictor(log_scale: bool) -> None:
    prediction = Prediction(
        lr=0.01, history=3, every=1, refresh=None, log_scale=log_scale, classes=7
    )
    predictor: Any = LossPredictor(EXAMPLES, prediction, seed=5)
    twin = Plainly(copy.deepcopy(predictor._network), 0.01, 3, log_scale)
    everyone = torch.arange(EXAMPLES)
    for step in range(12):
        predictor.learn(*batch(step))
        twin.learn(*batch(step))
        found, expected = predictor.predict(everyone), twin.predict(everyone.tolist())
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)


def test_it_learns_what_can_be_known() -> None:
    """Losses that differ by example and hardly in time: far better than the mean of all."""
    predictor = taught(Prediction(lr=0.01, every=1), steps=150)
    everyone = torch.arange(EXAMPLES)
    truth = (0.2 + everyone / 4) * 1.05
    off = (predictor.predict(everyone) - truth).abs().mean()
    spread = (truth - truth.mean()).abs().mean()
    assert float(off) < 0.3 * float(spread)
    assert 0 < predictor.error.value < 0.3


def test_every_so_often_it_only_remembers() -> None:
    always, seldom = (taught(Prediction(every=every), steps=7) for every in (1, 3))
    steps = [state["step"] for state in seldom.state_dict()["optimizer"]["state"].values()]
    assert {float(step) for step in steps} == {3.0}  # steps 0, 3 and 6
    values = [one.state_dict()["history"]["values"] for one in (always, seldom)]
    assert torch.equal(*values)


def test_a_class_is_unknown_until_it_was_seen_and_may_stay_so() -> None:
    predictor: Any = LossPredictor(4, Prediction(classes=3), seed=0)
    predictor.learn(torch.tensor([0, 1]), torch.ones(2), torch.tensor([2, 5]))
    assert predictor._labels.tolist() == [3, 3, 0, 0]  # 5 shares the row of 2
    predictor.learn(torch.tensor([2]), torch.ones(1))
    assert predictor._labels.tolist() == [3, 3, 0, 0]


def test_predictions_are_never_below_the_least() -> None:
    predictor: Any = LossPredictor(4, Prediction(refresh=None), seed=0)
    nn.init.constant_(predictor._network.head.bias, -100.0)
    assert predictor.predict(torch.arange(4)).tolist() == [LEAST] * 4


def test_losses_beyond_all_measure_break_nothing() -> None:
    predictor = LossPredictor(4, Prediction(), seed=0)
    predictor.learn(torch.tensor([1]), torch.tensor([1e30]))
    assert predictor.state_dict()["history"]["values"][1, 1] == 1e6
    predictor.learn(torch.tensor([1, 2]), torch.tensor([0.1, 0.2]))
    predictor.learn(torch.tensor([], dtype=torch.int64), torch.tensor([]))
    assert bool(predictor.predict(torch.arange(4)).isfinite().all())


def test_it_goes_on_to_the_bit() -> None:
    prediction = Prediction(lr=0.01, refresh=3, history=3, every=2)
    whole, first = taught(prediction, 20), taught(prediction, 9)
    second = LossPredictor(EXAMPLES, prediction, seed=99)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in range(9, 20):
        second.learn(*batch(step))
    everyone = torch.arange(EXAMPLES)
    assert torch.equal(second.predict(everyone), whole.predict(everyone))
    assert second.error == whole.error
    assert str(second.state_dict()) == str(whole.state_dict())


def test_it_reads_no_global_state_and_leaves_none() -> None:
    before = torch.get_rng_state()
    torch.manual_seed(1)
    one = taught(Prediction(), 3).predict(torch.arange(EXAMPLES))
    torch.manual_seed(2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        other = taught(Prediction(), 3).predict(torch.arange(EXAMPLES))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(2).get_state())
    torch.set_rng_state(before)


@pytest.mark.parametrize(
    "changes",
    [
        {"candidates": 0},
        {"history": 0},
        {"history": 256},
        {"every": 0},
        {"classes": 0},
        {"warm_up": -1},
        {"refresh": -1},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a prediction received candidates="):
        Prediction(**changes)


def test_other_settings_out_of_range_are_refused() -> None:
    for lr in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="expected a finite number >= 0"):
            Prediction(lr=lr)
    for features in (torch.tensor([[1.0], [float("nan")]]),):
        with pytest.raises(UsageError, match=r"features of shape \[2, 1\], expected finite"):
            Forecasting(features)
