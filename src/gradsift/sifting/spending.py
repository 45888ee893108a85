"""What the table's gain is spent on, decided together with the source and kept as long."""

from collections.abc import Mapping
from typing import Any, get_args

from gradsift.errors import UsageError
from gradsift.gate import Decision
from gradsift.monitors.spending import allowed_batch, equal_noise_batch, lr_factor
from gradsift.monitors.timing import StepTimes
from gradsift.recipes.recipe import Recipe
from gradsift.records import Spend
from gradsift.sifting.ranks import AbstractRanks, Alone
from gradsift.sifting.setup import batch_norms

ALONE = Alone()

FRESH = 512
"""Steps for which seconds count as those of the machine as it is."""

MEASURED = 128
"""Steps that measure a batch size anew."""

EIGHTHS = 8
"""Batches have one of so many sizes: few shapes to compile."""


def choose_spend(spend: Any, recipe: Recipe, model: Any = None) -> Spend:
    """What to spend on, if it is known and the recipe measures what there is to spend.

    Args:
        spend: what the user asks for. None takes "batch" for a recipe that measures and a model
            without BatchNorm, which a smaller batch would change, and "noise" otherwise.
        recipe: in use.
        model: to be trained.

    Raises:
        UsageError: otherwise.

    Example:
        >>> from gradsift.recipes import recipes
        >>> choose_spend(None, recipes["auto"]), choose_spend(None, recipes["pool"])
        ('batch', 'noise')
        >>> choose_spend("lr", recipes["pool"])
        Traceback (most recent call last):
        gradsift.errors.UsageError: spend 'lr' received with recipe 'pool', which does not...
    """
    if spend is None:
        return "batch" if recipe.source == "auto" and not batch_norms(model) else "noise"
    known = get_args(Spend)
    if spend not in known:
        raise UsageError(f"spend {spend!r} received, expected one of {', '.join(known)}")
    if spend != "noise" and recipe.source != "auto":
        raise UsageError(
            f"spend {spend!r} received with recipe {recipe.name!r}, which does not measure what "
            "there is to spend: use recipe 'auto', or spend 'noise'"
        )
    return spend


class Spending:
    """Batch size and learning rate of the steps that draw from the table.

    ``"batch"`` takes the smallest eighth of b that is no noisier than b uniform examples,
    ``b' = b (E[w² g²] − ‖μ‖²)/(E[g²] − ‖μ‖²)``, at the lower end of the variance ratio. It pays
    only where steps of b' examples take less time than steps of b: where half of b or less was
    measured and is not faster, the whole b is measured anew, as the machine now is, and if that is
    no slower, it is taken until the steps so far have doubled. ``"lr"`` takes the noise-scale
    rule, `gradsift.monitors.spending.lr_factor`.

    Args:
        spend: "noise" leaves both as they are.

    Attributes:
        lr_factor: how many times larger a step may be.

    Example:
        >>> from gradsift.gate import Offer
        >>> table = Offer("table", 1.0, variance_ratio=4.2, lower=4.0)
        >>> spending = Spending("batch")
        >>> spending.decide(Decision(table, 2.0, "", noise_scale=float("inf")), batch_size=64)
        >>> spending.size(64)
        16
    """

    def __init__(self, spend: Spend) -> None:
        self.lr_factor = 1.0
        self._spend = spend
        self._size: int | None = None
        self._steps = self._whole_until = 0
        self._whole_at = 0
        self._times = StepTimes()

    def size(self, batch_size: int) -> int:
        """How many examples a step out of the table takes."""
        return batch_size if self._size is None else self._size

    def timed(self, examples: int, seconds: float) -> None:
        """Learns how long a step of so many examples took."""
        self._steps += 1
        if self._spend == "batch":
            self._times.add(str(examples), seconds)

    def decide(self, decision: Decision, batch_size: int, ranks: AbstractRanks = ALONE) -> None:
        """Sets both anew, by what is known of the source in use; one batch size for all ranks."""
        ratio = decision.offer.lower if decision.offer.source == "table" else 1.0
        if self._spend == "lr":
            self.lr_factor = lr_factor(
                batch_size * ranks.size, max(ratio, 0.0), decision.noise_scale
            )
        elif self._spend == "batch":
            self._judge(batch_size)
            signal = 1 / (1 + decision.noise_scale)
            exact = equal_noise_batch(batch_size, 1 / max(ratio, 1.0), 1.0, signal)
            sizes = [max(1, part * batch_size // EIGHTHS) for part in range(1, EIGHTHS + 1)]
            size = allowed_batch(exact, sizes)
            self._size = ranks.lead(batch_size if self._steps < self._whole_until else size)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, from which `load_state_dict` goes on."""
        return {
            "spend": self._spend,
            "lr_factor": self.lr_factor,
            "size": self._size,
            "steps": [self._steps, self._whole_until, self._whole_at],
            "times": self._times.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from another object's state.

        Raises:
            UsageError: where that one spent on something else.
        """
        if state["spend"] != self._spend:
            raise UsageError(
                f"the state of a loader with spend {state['spend']!r} received, expected "
                f"{self._spend!r}: sift the loader as it was when the state was saved"
            )
        self.lr_factor = state["lr_factor"]
        self._size = state["size"]
        self._steps, self._whole_until, self._whole_at = state["steps"]
        self._times.load_state_dict(state["times"])

    def _judge(self, batch_size: int) -> None:
        """Sizes above half of b differ too little from it for a judgement by noisy seconds."""
        size = self.size(batch_size)
        if size == batch_size:
            self._whole_at = self._steps
        whole, smaller = self._times.median(str(batch_size)), self._times.median(str(size))
        if whole is None or smaller is None or 2 * size > batch_size or smaller < whole:
            return
        fresh = self._steps - self._whole_at <= FRESH
        self._whole_until = 2 * self._steps if fresh else self._steps + MEASURED
