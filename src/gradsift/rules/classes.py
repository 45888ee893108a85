"""Draws that know no more than the class: first the class, then any example of it.

The classes of all examples are learnt in one pass in the loader's own order; those it left out,
and targets that are not classes, form one more class.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gradsift.records import Draw, ScoreUpdate
from gradsift.rules.base import AbstractPicker
from gradsift.rules.history import History, finite, uniforms

UNKNOWN = -1
"""The class of an example whose class nobody has told."""


class AbstractClasses(AbstractPicker):
    """Draws class k with probability ``s_k``, then one of its ``n_k`` examples uniformly.

    So ``p_i = s_k/n_k``, and with ``π_k = n_k/N`` the weight is ``1/(N p_i) = π_k/s_k``: unbiased
    for every ``s > 0``. Draws are independent.

    Args:
        examples: N.

    Attributes:
        history: latest scores of the first pass.
        labels: class of each example.
    """

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.history = History(examples)
        self.labels: Int64[np.ndarray, " N"] = np.full(examples, UNKNOWN, np.int64)
        self._groups: Groups | None = None

    @abstractmethod
    def masses(self, groups: "Groups") -> Float64[np.ndarray, " classes"]:
        """``s_k``: above zero, with sum one."""

    @abstractmethod
    def begin(self, groups: "Groups", scores: Float64[np.ndarray, " N"]) -> None:
        """The first pass is over; these are its scores, nan where there is none."""

    @abstractmethod
    def observe(
        self,
        groups: "Groups",
        members: Int64[np.ndarray, " n"],
        scores: Float64[np.ndarray, " n"],
        weights: Float64[np.ndarray, " n"],
    ) -> None:
        """Takes the scores of a drawn batch, the place of each one's class, and its weight."""

    @property
    def ready(self) -> bool:
        """After one pass in the loader's own order."""
        return self.history.complete

    def passed(self, examples: int) -> None:
        """Counts the first pass."""
        self.history.passed += examples

    def learn(self, update: ScoreUpdate, weights: Tensor) -> None:
        """Notes classes in the first pass; later scores go to the method."""
        if self._groups is None:
            self.history.keep(update)
            if update.label is not None:
                self.labels[update.index.cpu().numpy()] = update.label.cpu().numpy()
            return
        ids, scores = finite(update)
        kept = torch.isfinite(update.score).cpu().numpy()
        if len(ids):
            drawn_with = weights.cpu().double().numpy()[kept]
            self.observe(self._groups, self._groups.member[ids], scores, drawn_with)

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Independent classes, and an example of each."""
        if self._groups is None:
            self._groups = Groups(self.labels)
            self.begin(self._groups, self.history.scores)
        groups, masses = self._groups, self.masses(self._groups)
        classes = groups.classes_at(uniforms(size, generator), masses)
        ids = groups.examples_at(classes, uniforms(size, generator))
        weights = (groups.shares / masses)[classes]
        return Draw(torch.from_numpy(ids), torch.from_numpy(weights), size)

    def state_dict(self) -> dict[str, Any]:
        """The first pass; what the method has learnt is added by it."""
        return {
            "history": self.history.state_dict(),
            "labels": torch.from_numpy(self.labels.copy()),
            "begun": self._groups is not None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another picker of the same method."""
        self.history.load_state_dict(state["history"])
        self.labels = state["labels"].numpy().copy()
        self._groups = Groups(self.labels) if state["begun"] else None


class Groups:
    """Examples by class.

    Args:
        labels: of all examples.

    Attributes:
        member: place of each example's class among the classes that occur, ascending.
        counts: examples of each class, ``n_k``.
        shares: ``π_k = n_k/N``.

    Example:
        >>> groups = Groups(np.array([7, 3, 7, 7]))
        >>> groups.member.tolist(), groups.shares.tolist()
        ([1, 0, 1, 1], [0.25, 0.75])
        >>> groups.examples_at(np.array([1, 1, 0]), np.array([0.0, 0.9, 0.9])).tolist()
        [0, 3, 1]
    """

    def __init__(self, labels: Int64[np.ndarray, " N"]) -> None:
        _, self.member, self.counts = np.unique(labels, return_inverse=True, return_counts=True)
        self.shares: Float64[np.ndarray, " classes"] = self.counts / len(labels)
        self._order = np.argsort(self.member, kind="stable")
        self._first = np.concatenate([[0], self.counts.cumsum()[:-1]])

    def classes_at(
        self, uniform: Float64[np.ndarray, " n"], masses: Float64[np.ndarray, " classes"]
    ) -> Int64[np.ndarray, " n"]:
        """Inverts the cumulated masses; what rounding leaves above them is the last class."""
        found = np.searchsorted(masses.cumsum(), uniform, side="right")
        return np.minimum(found, len(masses) - 1)

    def examples_at(
        self, classes: Int64[np.ndarray, " n"], uniform: Float64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """The example at the place ``⌊u·n_k⌋`` of class k."""
        places = (uniform * self.counts[classes]).astype(np.int64)
        return self._order[self._first[classes] + places]

    def means(
        self, members: Int64[np.ndarray, " n"], values: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " classes"]:
        """The mean of some values in each class; nan in a class without any."""
        counts = np.bincount(members, minlength=len(self.counts))
        sums = np.bincount(members, values, minlength=len(self.counts))
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
