"""Which source the coming steps use: decided every few steps, by the first process for all."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gradsift.clock import AbstractClock
from gradsift.gate import Decision, MeasuredGate, Offer
from gradsift.records import Source
from gradsift.sifting.evidence import Evidence
from gradsift.sifting.memory import Memory
from gradsift.sifting.purses import Purses
from gradsift.sifting.ranks import AbstractRanks
from gradsift.sifting.setup import Setup
from gradsift.sifting.spending import Spending

EVERY = 32
"""Steps between decisions."""

DWELL = 128
"""Steps that a source stays in use at least, but at the end of a run."""

GROWTH = 1.05
"""Decisions that change nothing are written down at steps that grow by this factor."""


@dataclass(frozen=True)
class Moment:
    """Where a run is between two steps.

    Attributes:
        steps: so far.
        batch_size: b, of this process.
        seconds: since the start.
        progress: share of the run that is over; None where nobody knows.
    """

    steps: int
    batch_size: int
    seconds: float
    progress: float | None


class Deciding:
    """Takes decisions, pays for them, and remembers the one in force.

    Args:
        setup: of the sifted loader: its clock, what is spent, and the share at the end of a run
            that is in the user's own order.
        gate: compares offers.
        evidence: what they are made of.
        memory: the table, which knows its price; None without one.

    Attributes:
        decision: in force; None before the first.
        changed_at: step of the latest change.
        opened_at: first step at which examples were chosen; None before.
        purses: what finding out may cost.
        spending: what the gain is spent on.
    """

    def __init__(
        self, setup: Setup, gate: MeasuredGate, evidence: Evidence, memory: Memory | None
    ) -> None:
        self.decision: Decision | None = None
        self.changed_at = 0
        self.opened_at: int | None = None
        self.purses = Purses(gate.allowance)
        self.spending = Spending(setup.spend)
        self._clock: AbstractClock = setup.clock
        self._finish = setup.recipe.finish
        self._gate = gate
        self._evidence = evidence
        self._memory = memory
        self._write_at = 0

    @property
    def in_use(self) -> Source:
        """The source of the coming steps."""
        return "off" if self.decision is None else self.decision.offer.source

    @property
    def final(self) -> bool:
        """Whether nothing will be decided any more."""
        return self.decision is not None and self.decision.final

    def offers(self, batch_size: int, *, hopeless: bool = True) -> list[Offer]:
        """What is known about each source now; empty before a plain step was timed.

        Args:
            batch_size: b.
            hopeless: whether pools are solved that could not gain anything.
        """
        price = None if self._memory is None else self._memory.price
        return self._evidence.offers(self.in_use, batch_size, price, hopeless=hopeless)

    def take(self, at: Moment, ranks: AbstractRanks) -> list[Offer] | None:
        """Decides anew, if it is time and there is something to pay with.

        Args:
            at: the moment.
            ranks: the processes that decide together.

        Returns:
            The offers of a decision that is worth writing down; None where there is none.
        """
        before = self._clock.now()
        found = self._last(at, ranks) if ranks.leads else None
        dwelt = at.steps - self.changed_at >= DWELL
        may = found is None and dwelt and ranks.leads and self.purses.may_compare(at.seconds)
        if may:
            offers = self.offers(at.batch_size, hopeless=False)
            found = (self._compare(offers, at, ranks), offers) if offers else None
        found = ranks.lead(found)
        noted = found is not None and self._adopt(found[0], at, ranks)
        if may:
            self.purses.compared(self._clock.now() - before)
        return found[1] if found is not None and noted else None

    def state_dict(self) -> dict[str, Any]:
        """Everything decided and spent."""
        return {
            "decision": None if self.decision is None else asdict(self.decision),
            "changed_at": self.changed_at,
            "opened_at": self.opened_at,
            "write_at": self._write_at,
            "purses": self.purses.state_dict(),
            "spending": self.spending.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the decision of another one.

        Raises:
            UsageError: for a state with another thing to spend on.
        """
        self.spending.load_state_dict(state["spending"])
        decided = state["decision"]
        self.decision = decided and Decision(**{**decided, "offer": Offer(**decided["offer"])})
        self.changed_at, self.opened_at = state["changed_at"], state["opened_at"]
        self._write_at = state["write_at"]
        self.purses.load_state_dict(state["purses"])

    def _last(self, at: Moment, ranks: AbstractRanks) -> tuple[Decision, list[Offer]] | None:
        """Back to the user's own order, where the end of the run is near."""
        if not self._finish or at.progress is None or at.progress < 1 - self._finish:
            return None
        plain = Offer("off", self._evidence.times.median("off") or 0.0)
        noise_scale = self._evidence.noise_scale(at.batch_size * ranks.size)
        reason = f"the last {self._finish:.0%} of the run are in your own order"
        if self.decision is not None:
            state = "off" if self.in_use == "off" else "on"
            reason = f"{reason}; before that {state}: {self.decision.reason}"
        return Decision(plain, 1.0, reason, noise_scale, final=True), [plain]

    def _compare(self, offers: Sequence[Offer], at: Moment, ranks: AbstractRanks) -> Decision:
        together = at.batch_size * ranks.size
        return self._gate.decide(
            offers,
            in_use=self.in_use,
            noise_scale=self._evidence.noise_scale(together),
            batch_size=together,
        )

    def _adopt(self, decision: Decision, at: Moment, ranks: AbstractRanks) -> bool:
        """Puts a decision in force; says whether it is worth writing down."""
        first, before = self.decision is None, self._in_force(at.batch_size)
        self.decision = decision
        self.spending.decide(decision, at.batch_size, ranks)
        changed = self._in_force(at.batch_size) != before
        if changed:
            self.changed_at = at.steps
        if not (changed or first or at.steps >= self._write_at):
            return False
        self._write_at = int(at.steps * GROWTH) + EVERY
        if self.opened_at is None and self.in_use != "off":
            self.opened_at = at.steps
        return True

    def _in_force(self, batch_size: int) -> tuple[Source, float, int]:
        candidates = 1.0 if self.decision is None else self.decision.offer.candidates
        return self.in_use, candidates, self.spending.size(batch_size)
