"""What finding out may cost: a share of all time, in three purses that cannot empty each other."""

from collections.abc import Mapping
from typing import Any

from gradsift.monitors.timing import Allowance
from gradsift.sifting.evidence import Costs

OBSERVING = 0.5
"""Share of the allowance that scores of training steps may take while nothing is chosen."""

PROBING = 0.3
"""Share that probes may take; decisions have the rest."""


class Purses:
    """Shares of the time since the start for each kind of finding out.

    A purse for each, because cheap work that is wanted often, as decisions are, would otherwise
    leave nothing for dear work that is wanted now and then, as probes are.

    Args:
        allowance: share of all time, of the three together.

    Attributes:
        observing: scores of training steps, while nothing is chosen.
        probing: a closer look at a batch.

    Example:
        >>> purses = Purses(0.01)
        >>> purses.probing.spend(1.0)
        >>> purses.probing.allows(100.0), purses.may_compare(100.0)
        (False, True)
    """

    def __init__(self, allowance: float) -> None:
        self.observing = Allowance(OBSERVING * allowance)
        self.probing = Allowance(PROBING * allowance)
        self._comparing = Allowance((1 - OBSERVING - PROBING) * allowance)
        self._decisions = Costs()

    def may_compare(self, now: float) -> bool:
        """Whether there is time for a decision, ``now`` seconds after the start."""
        return self._comparing.allows(now, cost=self._decisions.median)

    def compared(self, seconds: float) -> None:
        """Pays for a decision what decisions take: a hiccup would have struck other work too."""
        self._decisions.add(seconds)
        self._comparing.spend(self._decisions.median)

    def state_dict(self) -> dict[str, Any]:
        """What was spent, as plain numbers."""
        return {
            "observing": self.observing.state_dict(),
            "probing": self.probing.state_dict(),
            "comparing": self._comparing.state_dict(),
            "decisions": self._decisions.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from other purses."""
        self.observing.load_state_dict(state["observing"])
        self.probing.load_state_dict(state["probing"])
        self._comparing.load_state_dict(state["comparing"])
        self._decisions.load_state_dict(state["decisions"])
