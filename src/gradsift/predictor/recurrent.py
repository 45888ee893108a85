"""A small recurrent network that predicts every example's loss from its last losses."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor, nn

from gradsift.models.initialise import initialise
from gradsift.monitors.averages import Estimate, RatioAverage
from gradsift.predictor.history import LossHistory, each_once
from gradsift.predictor.settings import Prediction

WIDTH = 32
"""Of both layers and of the embedding, as published."""

LAYERS = 2

LEAST = 1e-6
"""The smallest predicted loss, as published: a network knows no sign."""

LARGEST = 1e6
"""Losses beyond it count as it: what they do to a network must stay finite."""

CHUNK = 4096
"""Histories that are read at once."""

UNKNOWN = 0
"""Row of the class embedding of examples whose class is not known yet."""


class Network(nn.Module):
    """LSTM(32, 32) over a history, an embedding of the class beside it, and one linear output.

    Args:
        classes: rows of the embedding.

    Example:
        >>> network = Network(3)
        >>> read = network.read(torch.ones(5, 4), torch.tensor([1, 2, 4, 4, 3]))
        >>> network(read, torch.zeros(5, dtype=torch.int64)).shape
        torch.Size([5])
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.memory = nn.LSTM(1, WIDTH, num_layers=LAYERS, batch_first=True)
        self.embedding = nn.Embedding(classes, WIDTH)
        self.head = nn.Linear(2 * WIDTH, 1)

    def read(
        self, values: Float[Tensor, "n longest"], counts: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n width"]:
        """What the recurrent layers make of histories: their state after the last number."""
        states, _ = self.memory(values.unsqueeze(-1))
        return states[torch.arange(len(counts), device=counts.device), counts - 1]

    def forward(
        self, read: Float[Tensor, "n width"], labels: Int64[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """From read histories and classes to predictions.

        The linear layer is taken apart, so that each class is multiplied out once.
        """
        of_history, of_class = self.head.weight[0].split(WIDTH)
        return read @ of_history + (self.embedding.weight @ of_class + self.head.bias)[labels]


class LossPredictor:
    """Histories of all examples, and a network trained online on those just seen.

    As published: the history *before* a loss and the class predict that loss, mean squared error,
    Adam. The network takes a step with every fourth of the training, in place of each.

    Reading the histories of all candidates in every step costs more than training a small network.
    So what the recurrent layers made of each history is kept, and made anew when the history
    grows, and for ``refresh`` examples per step in turn; only class and output layer are evaluated
    for all candidates. Where the network stands still, both give the same numbers.

    Deviations: the network does not skip losses of exactly zero. Its initial parameters are those
    that PyTorch's layers have, drawn from ``seed``. A class is known once its example was trained
    on; until then, and where targets are no classes, an embedding of "unknown" stands for it.

    Katharopoulos & Fleuret, "Biased importance sampling for deep neural network training" (2017),
    arXiv:1706.00043, and the authors' ``LSTMSampler``.

    Memory per example: 4 bytes per remembered loss, 128 for the reading and 5 more.

    Args:
        examples: N.
        prediction: how.
        seed: of the network's initial parameters.

    Example:
        >>> predictor = LossPredictor(8, Prediction(lr=0.02), seed=0)
        >>> ids, losses = torch.arange(8), torch.tensor([0.1, 2.0] * 4)
        >>> for _ in range(25):
        ...     predictor.learn(ids, losses, labels=ids % 2)
        >>> easy, hard = predictor.predict(ids[:2]).tolist()
        >>> easy < 1 < hard
        True
    """

    def __init__(self, examples: int, prediction: Prediction, seed: int) -> None:
        self._prediction = prediction
        self._history = LossHistory(
            examples, prediction.history, 0.0 if prediction.log_scale else 1.0
        )
        self._labels = torch.full((examples,), UNKNOWN, dtype=torch.int32, device="cpu")
        with torch.device("meta"):
            self._network = Network(prediction.classes + 1)
        self._network.to_empty(device="cpu")
        initialise(self._network, torch.Generator().manual_seed(seed))
        self._network.float()
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=prediction.lr, fused=True)
        self._errors = RatioAverage(momentum=0.98)
        self._steps = self._next = 0
        first = self._read(np.zeros(1, np.int64))
        self._reading = first.repeat(examples, 1)

    @property
    def nbytes(self) -> int:
        """Bytes per example in use, times N."""
        kept = (self._labels, self._reading)
        return self._history.nbytes + sum(part.nbytes for part in kept)

    @property
    def error(self) -> Estimate:
        """``E|ŝ − s|/E[s]`` over about the last hundred steps, before each was learnt from."""
        return self._errors.estimate()

    def predict(self, ids: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Predicted losses of some examples, at least `LEAST`, in the unit of the loss."""
        with _apart(learning=False):
            fresh = self._prediction.refresh is None
            read = self._read(ids.numpy()) if fresh else self._reading[ids]
            found = self._network(read, self._labels[ids].long()).double()
        return (found.exp() if self._prediction.log_scale else found).clamp(min=LEAST)

    def learn(
        self,
        ids: Int64[Tensor, " n"],
        losses: Float[Tensor, " n"],
        labels: Int64[Tensor, " n"] | None = None,
    ) -> None:
        """Trains the network on losses, then adds them to the histories.

        Args:
            ids: of the examples; where one comes several times, the mean of its losses counts.
            losses: finite and >= 0.
            labels: classes, where targets are classes.
        """
        if not len(ids):
            return
        if labels is not None:
            self._labels[ids] = (1 + labels % self._prediction.classes).int()
        different, _, means = each_once(ids.numpy(), losses.double().numpy())
        means = np.minimum(means, LARGEST)
        self._note_error(different, means)
        numbers = np.log(np.maximum(means, LEAST)) if self._prediction.log_scale else means
        if self._steps % self._prediction.every == 0:
            self._train(different, torch.from_numpy(numbers.astype(np.float32)))
        self._steps += 1
        self._history.append(different, numbers)
        self._read_anew(different)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, from which `load_state_dict` goes on to the bit."""
        network = {name: value.clone() for name, value in self._network.state_dict().items()}
        return {
            "history": self._history.state_dict(),
            "labels": self._labels.clone(),
            "reading": self._reading.clone(),
            "network": network,
            "optimizer": deepcopy(self._optimizer.state_dict()),
            "errors": self._errors.state_dict(),
            "steps": self._steps,
            "next": self._next,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another predictor of as many examples and the same settings."""
        self._history.load_state_dict(state["history"])
        self._labels.copy_(state["labels"])
        self._reading.copy_(state["reading"])
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._errors.load_state_dict(state["errors"])
        self._steps, self._next = state["steps"], state["next"]

    def _note_error(self, ids: np.ndarray, means: Float64[np.ndarray, " n"]) -> None:
        predicted = self.predict(torch.from_numpy(ids)).numpy()
        self._errors.add(float(np.abs(predicted - means).mean()), float(means.mean()))

    def _train(self, ids: np.ndarray, targets: Float32[Tensor, " n"]) -> None:
        with _apart(learning=True):
            values, counts = map(torch.from_numpy, self._history.rows(ids))
            read = self._network.read(values, counts)
            predicted = self._network(read, self._labels[torch.from_numpy(ids)].long())
            loss = (predicted - targets).square().mean()
            self._optimizer.zero_grad()
            loss.backward()
            with torch.device("cpu"):  # a step count is made where the default device is
                self._optimizer.step()

    def _read_anew(self, ids: np.ndarray) -> None:
        count = self._prediction.refresh
        if count is None:
            return
        examples = len(self._reading)
        turn = (self._next + np.arange(min(count, examples))) % examples
        self._next = (self._next + len(turn)) % examples
        ids = np.concatenate((ids, turn))
        with _apart(learning=False):
            self._reading[torch.from_numpy(ids)] = self._read(ids)

    def _read(self, ids: np.ndarray) -> Float32[Tensor, "n width"]:
        with _apart(learning=False):
            chunks = (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))
            histories = map(self._history.rows, chunks)
            return torch.cat([self._network.read(*map(torch.from_numpy, h)) for h in histories])


@contextmanager
def _apart(*, learning: bool) -> Iterator[None]:
    """Whatever surrounds a user's loop does not concern the predictor's own arithmetic."""
    with torch.set_grad_enabled(learning), torch.autocast("cpu", enabled=False):
        yield
