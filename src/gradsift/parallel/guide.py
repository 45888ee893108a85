"""Guided SGD: after updates, some of the last batches are trained on again at fresh weights.

Sharma (2021) replays batches that are *consistent* with the movement of a verification loss, to
compensate delay. The five public versions of the method differ; two are built here:

* `WindowGuide` (sequential guided SGD, from the author's CNN code): scores accumulate over a
  window of ρ updates, then up to ρ/2 consistent batches are replayed and the window is emptied.
* `RoundGuide` (synchronous guided SGD, from the author's Java code): after every update the ρ most
  recent batches but the newest are scored once, and up to min(4, ρ/2) of them are replayed.

They are chosen because they do what the paper's words say. Of the other three, one never replays,
one replays hard examples only, and one batches after which the loss fell; all by slips in the code
rather than by design. Here replayed batches are the ones that were scored (in the Java code their
positions drift apart), and verification examples are a policy.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.parallel.objective import AbstractObjective
from gradsift.parallel.replay import AbstractGuide, picked
from gradsift.parallel.saved import check_keys
from gradsift.parallel.selectors import AbstractSelector, Consistent, Window
from gradsift.parallel.server import ParameterServer
from gradsift.parallel.verification import AbstractVerification


class AbstractConsistencyGuide(AbstractGuide):
    """What the two published rules share: the verification loss, scores and replays.

    Args:
        verification: which examples to look at after each update; not test data.
        rho: ρ, the length of the window.
        limit: the most replays at a time.
        selector: which batches; the consistent ones by default.
        start: the verification loss before the first update.
    """

    def __init__(
        self,
        verification: AbstractVerification,
        rho: int,
        limit: int,
        selector: AbstractSelector | None = None,
        start: float = 10.0,
    ) -> None:
        if rho < 2:
            raise UsageError(f"rho {rho} received, expected at least 2: a window of batches")
        if limit < 0:
            raise UsageError(f"{limit} replays received, expected at least 0")
        self._verification = verification
        self._rho = rho
        self._limit = limit
        self._selector = Consistent() if selector is None else selector
        self._start = start
        self._previous: Tensor | None = None
        self._anchor: list[Tensor] | None = None
        self._looked_at = torch.empty(0)
        self._direction = torch.empty(0)

    def state_dict(self) -> dict[str, Any]:
        """The verification loss before, the anchor, what was looked at, and what was counted."""
        return {
            **self._counted(),
            "previous": self._previous,
            "anchor": self._anchor,
            "looked_at": self._looked_at,
            "direction": self._direction,
            "verification": self._verification.state_dict(),
            "selector": self._selector.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on before the next update."""
        check_keys(self, state, set(self.state_dict()))
        self._count_on(state)
        self._previous = state["previous"]
        self._anchor = None if state["anchor"] is None else list(state["anchor"])
        self._looked_at, self._direction = state["looked_at"], state["direction"]
        self._verification.load_state_dict(state["verification"])
        self._selector.load_state_dict(state["selector"])

    def _look(self, server: ParameterServer, objective: AbstractObjective) -> tuple[Tensor, Tensor]:
        """The verification loss before and after the update; sets the direction."""
        self._looked_at = self._verification.ids()
        now = objective.loss(server.weights, self._looked_at)
        before = torch.full_like(now, self._start) if self._previous is None else self._previous
        self._direction = torch.where(now < before, 1.0, -1.0).to(now.dtype)
        self._previous = now
        self.evaluations += 1
        return before, now

    def _score(
        self, server: ParameterServer, objective: AbstractObjective, batch: Tensor, before: Tensor
    ) -> Tensor:
        """``s·(Ē' − e_k(w))``: positive for a consistent batch."""
        self.evaluations += 1
        return self._direction * (before - objective.loss(server.weights, batch))

    def _window(
        self,
        server: ParameterServer,
        objective: AbstractObjective,
        batches: list[Tensor],
        consistency: Float[Tensor, "*runs n"],
    ) -> Window:
        now = [weight.clone() for weight in server.weights]
        return Window(
            objective=objective,
            now=now,
            anchor=now if self._anchor is None else self._anchor,
            batches=batches,
            verification=self._looked_at,
            consistency=consistency,
            direction=self._direction,
        )

    def _replay(self, server: ParameterServer, window: Window) -> None:
        """Corrections by the selected batches, highest rank first, each at the weights then."""
        ranks = self._selector.ranks(window)
        eligible = self._selector.eligible(window, ranks)
        first = torch.where(eligible, ranks, torch.full_like(ranks, -torch.inf))
        order = first.argsort(dim=-1, descending=True, stable=True)
        stacked = torch.stack(window.batches, dim=-2)
        for place in range(min(self._limit, len(window.batches))):
            chosen = order[..., place]
            where = eligible.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
            batch, where = window.objective.agree(picked(stacked, chosen), where)
            if not bool(where.any()):
                break
            server.correct(window.objective.gradient(server.weights, batch), where)
            self.replays += 1
            self.corrections = self.corrections + where
        self._anchor = [weight.clone() for weight in server.weights]


@final
class WindowGuide(AbstractConsistencyGuide):
    """Scores over a window of ρ updates, then replays: the sequential form, ``gsgd``.

    After each update on batch b with ``s = +1`` if ``Ē < Ē'`` else −1: the ``revisits`` batches
    before b in the window get a score ``s·(Ē' − e_k(w))``, b itself gets ``Ē' − Ē``. After ρ
    updates the batches with the largest mean score, if above 0, are replayed, at most ρ/2; the
    verification loss is taken anew and the window emptied.

    Args:
        verification: as in the published code, four batches of training data set aside.
        rho: ρ.
        revisits: how many of the previous batches get a score after each update.
        limit: the most replays per window; ρ/2 by default.
        selector: which batches.
        start: the verification loss before the first update.

    Reference:
        Sharma 2021; rule of the author's ``GSGD-CNN`` code, where ρ is 4 to 7 and revisits 2.

    Example:
        >>> from gradsift.parallel.verification import FixedVerification
        >>> WindowGuide(FixedVerification(torch.tensor([0])), rho=1)
        Traceback (most recent call last):
        gradsift.errors.UsageError: rho 1 received, expected at least 2: a window of batches
        >>> WindowGuide(FixedVerification(torch.tensor([0])), rho=4).replays
        0
    """

    def __init__(
        self,
        verification: AbstractVerification,
        rho: int = 10,
        revisits: int = 2,
        limit: int | None = None,
        selector: AbstractSelector | None = None,
        start: float = 10.0,
    ) -> None:
        super().__init__(verification, rho, rho // 2 if limit is None else limit, selector, start)
        if revisits < 0:
            raise UsageError(f"{revisits} revisits received, expected at least 0")
        self._revisits = revisits
        self._batches: list[Tensor] = []
        self._scores: list[list[Tensor]] = []

    def after_update(
        self, server: ParameterServer, objective: AbstractObjective, batches: list[Tensor]
    ) -> None:
        """Scores the batches before, and replays when the window is full."""
        before, now = self._look(server, objective)
        for batch in batches:
            earlier = range(max(0, len(self._batches) - self._revisits), len(self._batches))
            for place in earlier:
                score = self._score(server, objective, self._batches[place], before)
                self._scores[place].append(score)
            self._batches.append(batch)
            self._scores.append([before - now])
        if len(self._batches) < self._rho:
            return
        means = [torch.stack(scores).mean(dim=0) for scores in self._scores]
        window = self._window(server, objective, self._batches, torch.stack(means, dim=-1))
        self._replay(server, window)
        self._previous = objective.loss(server.weights, self._verification.ids())
        self.evaluations += 1
        self._batches, self._scores = [], []

    def state_dict(self) -> dict[str, Any]:
        """With the window and its scores."""
        return {
            **super().state_dict(),
            "batches": list(self._batches),
            "scores": [list(scores) for scores in self._scores],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on in the middle of a window."""
        super().load_state_dict(state)
        self._batches = list(state["batches"])
        self._scores = [list(scores) for scores in state["scores"]]


@final
class RoundGuide(AbstractConsistencyGuide):
    """Scores and replays after every update: the synchronous form, ``gssgd``.

    Of the ρ batches handed out last, all but the newest get one score ``s·(Ē' − e_k(w))``; the
    largest, if above 0, are replayed, at most ``min(4, ρ/2)``; the history is emptied. The
    verification loss is not taken anew after replays.

    Args:
        verification: the published code draws ``min(100, N/10)`` training examples each time.
        rho: ρ, the number of workers in the published code.
        limit: the most replays per update; ``min(4, ρ/2)`` by default.
        selector: which batches.
        start: the verification loss before the first update; the published code has the largest
            number there is.

    Reference:
        Sharma 2021; rule of the author's ``parallel-GSGD`` code. Its comments have "every ρ
        updates" in place of every update, commented out.

    Example:
        >>> from gradsift.parallel.verification import FixedVerification
        >>> RoundGuide(FixedVerification(torch.tensor([0])), rho=10).evaluations
        0
    """

    def __init__(
        self,
        verification: AbstractVerification,
        rho: int = 10,
        limit: int | None = None,
        selector: AbstractSelector | None = None,
        start: float = float("inf"),
    ) -> None:
        most = min(4, rho // 2) if limit is None else limit
        super().__init__(verification, rho, most, selector, start)

    def after_update(
        self, server: ParameterServer, objective: AbstractObjective, batches: list[Tensor]
    ) -> None:
        """Scores all batches of the round but the newest, and replays."""
        before, _ = self._look(server, objective)
        candidates = batches[-self._rho : -1]
        if not candidates:
            return
        scores = [self._score(server, objective, batch, before) for batch in candidates]
        window = self._window(server, objective, candidates, torch.stack(scores, dim=-1))
        self._replay(server, window)
