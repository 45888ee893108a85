"""Keeps the history of every example: what a training step computes anyway, and then forgets."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.monitors.history import UNKNOWN, History, no_probabilities, write_history
from gradsift.records import WeightedBatch
from gradsift.scores.base import in_full_precision, losses_of

LARGEST = 2**23
"""Mean probabilities that are kept, at most: examples times classes; 64 MiB."""

MOMENTUM = 0.98
"""Of the level that losses are relative to: it remembers about 50 steps."""


class HistoryRecorder:
    """Looks at every training step, and keeps a few numbers per example.

    Losses are taken relative to their level, ``ℓ_i / L`` with ``L`` a moving average of
    ``(1/b) Σ_j w_j |ℓ_j|``, the mean loss over the data at that time: losses shrink while a
    model learns, and examples are drawn at different times. A step's outputs are those of the
    parameters before it, so at its first visit an example was never seen, and at later ones it is
    known the less, the fewer visits there were before: over a short run the mean of predicted
    probabilities is nearly out of sample. It costs no forward pass and changes no number of a run.

    Classes are known where targets are int64, one per example, and predicted probabilities where
    outputs are ``[batch, classes]``: their softmax, as cross-entropy has it. They are kept up to
    8 million numbers. Losses that are not finite are left out.

    Swayamdipta et al., "Dataset cartography" (2020), and Pleiss et al., "Identifying mislabeled
    data using the area under the margin ranking" (2020), rank by means over training; Huang et al.,
    "O2U-Net" (2019), by mean losses. Deviation: losses are relative, because under importance
    sampling examples are not visited equally often at all times.

    Args:
        examples: in the training set, N.

    Raises:
        UsageError: for no example.

    Example:
        >>> import torch, gradsift
        >>> x, y = torch.eye(3).repeat(20, 1), torch.arange(3).repeat(20)
        >>> y[7] = 2  # a wrong label: it was 1
        >>> data = torch.utils.data.TensorDataset(x, y)
        >>> loader = torch.utils.data.DataLoader(data, batch_size=12, shuffle=True)
        >>> model, loss_fn = torch.nn.Linear(3, 3), torch.nn.CrossEntropyLoss(reduction="none")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> train = gradsift.sift(loader, model, loss_fn)
        >>> recorder = HistoryRecorder(len(data))
        >>> for epoch in range(8):
        ...     for batch in train:
        ...         outputs = model(batch.inputs)
        ...         recorder.add(batch, outputs)
        ...         optimizer.zero_grad(); batch.loss(outputs).backward(); optimizer.step()
        >>> history = recorder.read()
        >>> history.suspects()[:1].tolist(), int(history.labels[7]), int(history.predicted[7])
        ([7], 2, 1)
    """

    def __init__(self, examples: int) -> None:
        if examples < 1:
            raise UsageError(f"received {examples} examples, expected at least one")
        self._visits = torch.zeros(examples, dtype=torch.int32)
        self._sums = torch.zeros(examples, dtype=torch.float64)
        self._last = torch.full((examples,), math.nan, dtype=torch.float64)
        self._labels = torch.full((examples,), UNKNOWN, dtype=torch.int32)
        self._predicted = torch.full((examples,), UNKNOWN, dtype=torch.int32)
        self._probabilities: Float64[Tensor, "examples classes"] | None = None
        self._level = (0.0, 0.0)

    def add(self, batch: WeightedBatch, outputs: Any) -> None:
        """Takes one training step in.

        Args:
            batch: that the step is trained on.
            outputs: of the model on it, in the unit that ``loss_fn`` takes; not changed.
        """
        with torch.no_grad():
            outputs = in_full_precision(outputs)
            losses = losses_of(batch.loss_fn, outputs, batch.targets).double().cpu()
            ids = batch.indices.cpu()
            known = torch.isfinite(losses)
            if not bool(known.any()):
                return
            ids, losses = ids[known], losses[known]
            weights = batch.weights.double().cpu()[known]
            self._note(ids, losses / self._risen(weights, losses, batch.size))
            classes = _classes(batch.targets, len(known))
            if classes is not None:
                self._labels[ids] = classes[known].int()
                self._guess(ids, outputs, known)

    def read(self) -> History:
        """Everything so far."""
        visited = self._visits > 0
        mean = torch.where(visited, self._sums / self._visits, math.nan)
        predicted, probabilities = self._predicted, no_probabilities()
        if self._probabilities is not None:
            means = self._probabilities / self._visits.clamp(min=1)[:, None]
            predicted = torch.where(visited, means.argmax(1), UNKNOWN).int()
            probabilities = means.numpy().astype(np.float16)
        return History(
            visits=self._visits.numpy().copy(),
            mean=mean.float().numpy(),
            last=self._last.float().numpy(),
            labels=self._labels.clamp(min=UNKNOWN).numpy(),
            predicted=predicted.numpy().copy(),
            probabilities=probabilities,
        )

    def write(self, folder: str | Path) -> Path:
        """Writes what `read` returns into a folder, for ``gradsift suspects FOLDER``."""
        return write_history(folder, self.read())

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything, as plain tensors and numbers."""
        means = self._probabilities
        return {
            "visits": self._visits.clone(),
            "sums": self._sums.clone(),
            "last": self._last.clone(),
            "labels": self._labels.clone(),
            "predicted": self._predicted.clone(),
            "probabilities": None if means is None else means.clone(),
            "level": list(self._level),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another recorder's state.

        Raises:
            UsageError: for one of another number of examples.
        """
        if len(state["visits"]) != len(self._visits):
            raise UsageError(
                f"received the history of {len(state['visits'])} examples, expected that of "
                f"{len(self._visits)}: load it for the same data"
            )
        for name in ("visits", "sums", "last", "labels", "predicted"):
            getattr(self, f"_{name}").copy_(state[name])
        means = state["probabilities"]
        self._probabilities = None if means is None else means.clone()
        self._level = (state["level"][0], state["level"][1])

    def _risen(
        self, weights: Float64[Tensor, " n"], losses: Float64[Tensor, " n"], size: int
    ) -> float:
        """The level with one more batch; infinite where all losses so far are zero."""
        mean = float((weights * losses.abs()).sum()) / size
        moment, mass = self._level
        moment = MOMENTUM * moment + (1 - MOMENTUM) * mean
        mass = MOMENTUM * mass + (1 - MOMENTUM)
        self._level = (moment, mass)
        return moment / mass if moment > 0 else math.inf

    def _note(self, ids: Int64[Tensor, " n"], relative: Float64[Tensor, " n"]) -> None:
        self._visits.index_add_(0, ids, torch.ones(len(ids), dtype=torch.int32))
        self._sums.index_add_(0, ids, relative)
        self._last[ids] = relative

    def _guess(self, ids: Int64[Tensor, " n"], outputs: Any, known: Tensor) -> None:
        if not (isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] > 1):
            return
        found = _probabilities(outputs)[known]
        self._predicted[ids] = found.argmax(1).int()
        shape = len(self._visits), found.shape[1]
        if shape[0] * shape[1] > LARGEST:
            return
        if self._probabilities is None:
            self._probabilities = torch.zeros(shape, dtype=torch.float64)
        self._probabilities.index_add_(0, ids, found)


def _probabilities(outputs: Float[Tensor, "n classes"]) -> Float64[Tensor, "n classes"]:
    """Not finite where the outputs are: their losses are not either, and they are left out."""
    return outputs.cpu().double().softmax(1)


def _classes(targets: Any, count: int) -> Int64[Tensor, " n"] | None:
    """Targets that are one class per example."""
    known = isinstance(targets, Tensor) and targets.dtype == torch.int64
    return targets.cpu() if known and targets.shape == (count,) else None
