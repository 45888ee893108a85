"""What the steps of an epoch will take, decided when their ids are requested."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Sampler

from gradsift.data.passes import Passes, Portion
from gradsift.data.replay import replay
from gradsift.data.seeded import Visit
from gradsift.records import PLAIN, Plan

Planner = Callable[[int], Plan]
"""What the next step will do, given the nominal batch size."""

Step = tuple[Plan, Portion, int]
"""A step's plan, its examples, and the nominal batch size."""


def plan_epoch(
    passes: Passes, planner: Planner, steps: int | None, nominal: int | None
) -> Iterator[Step]:
    """One epoch: a pass while every step takes what comes, else as many steps as a pass has."""
    while True:
        known = steps if steps is not None else passes.batches_in_pass
        if passes.carries_over and known is not None and passes.steps >= known:
            return
        ahead = passes.peek(restart=passes.carries_over)
        if ahead is None:
            return
        size = nominal if nominal is not None else len(ahead)
        plan = planner(size)
        portion = _portion(passes, plan, size)
        if portion is None:
            return
        passes.steps += 1
        yield plan, portion, size


def _portion(passes: Passes, plan: Plan, size: int) -> Portion | None:
    if plan.draw is not None:
        passes.carries_over = True
        return Portion(plan.draw.positions)
    if plan.candidates is not None:
        return passes.take(plan.candidates)
    return passes.take(size) if passes.carries_over else passes.next()


def _portion_of(ids: Any) -> Portion:
    return Portion(ids if type(ids) is list else list(map(int, ids)))


def take_what_comes(batch_size: int) -> Plan:
    """The next batch of the user's own order.

    Example:
        >>> take_what_comes(64)
        Plan(candidates=None, size=None, draw=None)
    """
    del batch_size
    return PLAIN


class PlannedBatches(Sampler[list[int]]):
    """A batch sampler that asks for a plan before it gives out ids, and remembers both in order.

    Args:
        loader: the user's own.
        nominal: its batch size.
        visits: whether ids shall know their step, for a `Seeded` data set.
    """

    def __init__(
        self, loader: DataLoader[Any], nominal: int | None, *, visits: bool = False
    ) -> None:
        self.planned: deque[Step] = deque()
        self.planner: Planner = take_what_comes
        self.resumed = False
        self._order = replay(loader.batch_sampler, loader)
        self._passes = Passes(lambda: map(_portion_of, self._order.restart()))
        self._steps = steps_of(loader)
        self._nominal = nominal
        self._ahead: deque[Step] = deque()
        self._visits = visits
        self._steps_noted = 0

    def __iter__(self) -> Iterator[list[int]]:
        if not self.resumed:
            self._passes.begin()
            self.planned.clear()
        return self._ids()

    def _ids(self) -> Iterator[list[int]]:
        self.resumed = False  # only now: a loader with workers asks for two iterators, and uses one
        while self._ahead:
            yield self._noted(self._ahead.popleft())
        for step in plan_epoch(self._passes, self.planner, self._steps, self._nominal):
            yield self._noted(step)

    def _noted(self, step: Step) -> list[int]:
        self.planned.append(step)
        self._steps_noted += 1
        ids = step[1].listed
        return [Visit(index, self._steps_noted) for index in ids] if self._visits else ids

    def state_dict(self, *, underway: bool) -> dict[str, Any]:
        """The order, and the steps that were requested and have not arrived."""
        waiting = (*self.planned, *self._ahead) if underway else ()
        return {
            "order": self._order.state_dict(),
            "passes": self._passes.state_dict(),
            "noted": self._steps_noted - (len(self.planned) if underway else 0),
            "ahead": [
                {"plan": plan.state_dict(), "ids": portion.ids.clone(), "size": size}
                for plan, portion, size in waiting
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any], *, underway: bool) -> None:
        """Requests the same steps again before any other."""
        rest, _ = self._order.load_state_dict(state["order"])
        self._passes.load_state_dict(state["passes"], map(_portion_of, rest))
        self.planned.clear()
        self._ahead = deque(
            (Plan.from_state_dict(step["plan"]), Portion(step["ids"]), step["size"])
            for step in state["ahead"]
        )
        self.resumed = underway
        self._steps_noted = state["noted"]


def steps_of(loader: Any) -> int | None:
    """How many batches a loader says that it has; None where it does not say."""
    try:
        return len(loader)
    except TypeError:
        return None
