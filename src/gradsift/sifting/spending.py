"""What the table's gain is spent on, decided together with the source and kept as long."""

from collections.abc import Mapping
from typing import Any, get_args

from gradsift.errors import UsageError
from gradsift.gate import Decision
from gradsift.monitors.spending import equal_noise_batch, fastest_batch, lr_factor
from gradsift.monitors.timing import StepTimes
from gradsift.recipes.recipe import Recipe
from gradsift.records import Spend
from gradsift.sifting.ranks import AbstractRanks, Alone
from gradsift.sifting.setup import batch_norms

ALONE = Alone()

VISITS = 4
"""The whole batch and half of it take turns so often while a trial measures their seconds."""

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

    ``"batch"`` takes the eighth of b that makes most progress per second and is no noisier than b
    uniform examples, `gradsift.monitors.spending.fastest_batch`, at the lower end of the variance
    ratio. What a size costs is found out by a trial: b and half of it take turns, and the share
    of a step's seconds that its size does not change is ``φ = 2 t(b/2)/t(b) − 1``. A trial begins
    when half of b is quiet enough, and again when the steps so far have doubled; before the first
    one all of the gain is lower noise. Only shares matter, so a machine that becomes slower as a
    whole changes nothing. ``"lr"`` takes the noise-scale rule,
    `gradsift.monitors.spending.lr_factor`.

    Args:
        spend: "noise" leaves both as they are.

    Attributes:
        lr_factor: how many times larger a step may be.

    Example:
        >>> from gradsift.gate import Offer
        >>> table = Offer("table", 1.0, variance_ratio=4.2, lower=4.0)
        >>> decision = Decision(table, 2.0, "", noise_scale=float("inf"))
        >>> spending, sizes = Spending("batch"), []
        >>> for _ in range(5):
        ...     spending.decide(decision, batch_size=64)
        ...     sizes.append(spending.size(64))
        ...     for _ in range(32):
        ...         spending.timed(sizes[-1], seconds=0.1 * sizes[-1])
        >>> sizes
        [64, 32, 64, 32, 16]
    """

    def __init__(self, spend: Spend) -> None:
        self.lr_factor = 1.0
        self._spend = spend
        self._size: int | None = None
        self._steps = self._again_at = 0
        self._visits = 0
        self._fixed: float | None = None
        self._times = StepTimes(kept=30)

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
            signal = 1 / (1 + decision.noise_scale)
            equal = equal_noise_batch(batch_size, 1 / max(ratio, 1.0), 1.0, signal)
            found = self._on_trial(batch_size, equal)
            if found is None:
                sizes = [max(1, part * batch_size // EIGHTHS) for part in range(1, EIGHTHS + 1)]
                fixed = 1.0 if self._fixed is None else self._fixed
                found = fastest_batch(batch_size, equal, decision.noise_scale, fixed, sizes)
            self._size = ranks.lead(found)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, from which `load_state_dict` goes on."""
        return {
            "spend": self._spend,
            "lr_factor": self.lr_factor,
            "size": self._size,
            "steps": [self._steps, self._again_at, self._visits],
            "fixed": self._fixed,
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
        self._steps, self._again_at, self._visits = state["steps"]
        self._fixed = state["fixed"]
        self._times.load_state_dict(state["times"])

    def _on_trial(self, batch_size: int, equal: float) -> int | None:
        """The size that is to be measured next; None where no trial is under way."""
        half = batch_size // 2
        if half < 1 or equal > half or self._steps < self._again_at:
            self._visits = 0
            return None
        if self._visits < VISITS:
            self._visits += 1
            return batch_size if self._visits % 2 else half
        self._visits, self._again_at = 0, 2 * self._steps
        whole, halved = self._times.median(str(batch_size)), self._times.median(str(half))
        if whole and halved is not None:
            self._fixed = (halved / whole - half / batch_size) / (1 - half / batch_size)
        return None
