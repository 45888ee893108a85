"""Importance sampling inside the workers: each draws its batch from one shared score table.

A worker draws when it reads the weights. The scores of its examples are a by-product of its
gradient and arrive with it, as old as the gradient is. Alain et al. 2015
(https://arxiv.org/abs/1511.06481) name this as future work of importance sampling with workers that
only score: there the trainer itself is never late.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.parallel.arrivals import Arrival
from gradsift.parallel.objective import AbstractScoredObjective
from gradsift.parallel.server import ParameterServer
from gradsift.parallel.shared_table import AbstractSharedTable, SharedDraw


@final
class DrawnBatches:
    """Batches that workers have drawn and not delivered yet, and what was measured of the draws.

    A batch keeps the weights of the moment when it was drawn. So, given all that happened before,
    ``E[(1/b) Σ_j w_j ∇ℓ(i_j; w_read)] = ∇f(w_read)``, with the weights that its worker had read,
    however late it arrives and whatever other workers deliver meanwhile.

    Args:
        table: what is drawn from.
        size: b, examples per batch.

    Attributes:
        examples: drawn so far, in all runs of a population together.
        unseen: how many of them had no score yet.

    Example:
        >>> import torch
        >>> from gradsift.parallel.shared_table import SharedTable
        >>> from gradsift.sampling.table import ScoreTable
        >>> batches = DrawnBatches(SharedTable(ScoreTable(2)), size=2)
        >>> batches.hand_out(0, version=0)
        >>> batches.deliver(batches.take(0), torch.tensor([1.0, 3.0]), version=0)
        >>> batches.hand_out(1, version=1)
        >>> batches.examples, batches.unseen
        (4, 2)
    """

    def __init__(self, table: AbstractSharedTable, size: int) -> None:
        if size < 1:
            raise UsageError(f"batches of {size} examples received, expected at least 1")
        self._table = table
        self._size = size
        self._pending: dict[int, SharedDraw] = {}
        self.examples = 0
        self.unseen = 0
        self._ages = 0
        self._uniform = torch.zeros((), dtype=torch.float64)
        self._drawn = torch.zeros((), dtype=torch.float64)

    @property
    def mean_age(self) -> float:
        """Updates between the weights of a score and the draw that used it, averaged; nan at first.

        Examples without a score are left out.
        """
        scored = self.examples - self.unseen
        return self._ages / scored if scored else float("nan")

    @property
    def gain(self) -> float:
        """``Σ w g² / Σ w² g²`` over all batches so far; nan at first.

        With scores g that are gradient norms this is the second moment of uniform draws over that
        of the draws made, in the gradients' own squared unit: above 1, drawing has helped.
        """
        drawn = float(self._drawn.sum())
        return float(self._uniform.sum()) / drawn if drawn else float("nan")

    @property
    def gains(self) -> Float64[Tensor, "*runs"]:
        """The same for each run of a population by itself."""
        return self._uniform / self._drawn

    def hand_out(self, ticket: int, version: int) -> None:
        """Draws the batch of a gradient, at the moment when its worker reads the weights.

        Args:
            ticket: the place of the gradient among all arrivals.
            version: updates of the weights that are read.
        """
        drawn = self._table.draw(self._size)
        ages = self._table.ages(drawn.batch, version)
        seen = ages >= 0
        self.examples += ages.numel()
        self.unseen += int((~seen).sum())
        self._ages += int(ages[seen].sum())
        self._pending[ticket] = drawn

    def take(self, ticket: int) -> SharedDraw:
        """The batch of a gradient, once.

        Raises:
            UsageError: when there is none.
        """
        if ticket not in self._pending:
            raise UsageError(
                f"gradient {ticket} arrives, but no batch was drawn for it: its worker read "
                "weights that were not there yet, or the batches belong to another run"
            )
        return self._pending.pop(ticket)

    def deliver(self, drawn: SharedDraw, scores: Float[Tensor, "*runs size"], version: int) -> None:
        """The scores of a batch arrive, computed at the weights of ``version``."""
        squares = scores.double().square()
        self._uniform = self._uniform + (drawn.weights * squares).sum(-1)
        self._drawn = self._drawn + (drawn.weights.square() * squares).sum(-1)
        self._table.learn(drawn, scores, version)

    def state_dict(self) -> dict[str, Any]:
        """The table, the batches that are on their way, and the counts."""
        return {
            "table": self._table.state_dict(),
            "pending": {
                ticket: {"batch": drawn.batch, "weights": drawn.weights}
                for ticket, drawn in self._pending.items()
            },
            "counts": [self.examples, self.unseen, self._ages],
            "moments": [self._uniform, self._drawn],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on, bit for bit, where other batches were."""
        self._table.load_state_dict(state["table"])
        self._pending = {
            ticket: SharedDraw(kept["batch"].clone(), kept["weights"].clone())
            for ticket, kept in state["pending"].items()
        }
        self.examples, self.unseen, self._ages = state["counts"]
        self._uniform, self._drawn = (moment.clone() for moment in state["moments"])


def sampled_asgd(
    server: ParameterServer,
    objective: AbstractScoredObjective,
    arrivals: Sequence[Arrival],
    batches: DrawnBatches,
) -> Iterator[int]:
    """Asynchronous SGD whose workers draw their batches from a shared table, with weights.

    ``w ← OPT(w, (1/b) Σ_j w_j ∇ℓ(i_j; w_read))``. After n gradients have arrived, every worker that
    reads the weights then draws its batch, by the scores there are. When its gradient arrives, its
    scores enter the table under the version of ``w_read``. With a table whose draws are uniform
    this is `asgd` on such batches. Yields the gradients received so far.

    Args:
        server: holds the weights; goes on where it is, with `DrawnBatches` of the same moment.
        objective: gives gradients and scores.
        arrivals: from the server's next gradient on, all that are to come: who reads when must be
            known.
        batches: keeps what was drawn and has not arrived.

    Raises:
        UsageError: when an arrival's worker reads weights that are not there yet.

    Example:
        >>> import torch
        >>> from gradsift.parallel.shared_table import SharedTable
        >>> from gradsift.sampling.table import ScoreTable
        >>> w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        >>> server = ParameterServer([w], torch.optim.SGD([w], lr=0.5), memory=1)
        >>> class Values(AbstractScoredObjective):
        ...     def scored_gradient(self, weights, batch, importance):
        ...         gradients = weights[0] - batch.double()
        ...         return [(importance * gradients).mean().reshape(1)], gradients.abs()
        ...     def gradient(self, weights, batch):
        ...         return [weights[0] - batch.double().mean()]
        ...     def loss(self, weights, batch):
        ...         return (weights[0] - batch.double()).square().mean() / 2
        >>> batches = DrawnBatches(SharedTable(ScoreTable(4)), size=4)
        >>> late = [Arrival(0, 0), Arrival(1, 0), Arrival(0, 1)]
        >>> list(sampled_asgd(server, Values(), late, batches)), batches.examples
        ([1, 2, 3], 12)
    """
    begun = server.received
    readers: dict[int, list[int]] = defaultdict(list)
    for place, arrival in enumerate(arrivals, begun):
        readers[arrival.read].append(place)
    for place, arrival in enumerate(arrivals, begun):
        for ticket in readers[place]:
            batches.hand_out(ticket, server.version)
        drawn = batches.take(place)
        stale = server.read(arrival.read)
        gradients, scores = objective.scored_gradient(stale.weights, drawn.batch, drawn.weights)
        server.push(gradients, arrival.read, arrival.worker)
        batches.deliver(drawn, scores, stale.version)
        yield server.received
