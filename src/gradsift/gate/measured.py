"""Progress per second, out of measured variance, noise and seconds: which source pays, if any.

A source of examples is an offer: so much less variance for so many seconds. Variance is worth
something only where noise limits the step. With ``B_n = trΣ/‖μ‖²`` (the noise scale) a step of b
examples at the step size that suits its noise makes progress in proportion to
``1/(1 + B_n/(b·R))`` (`gradsift.monitors.progress`), and what counts is that over its seconds. The
user's own order has R = 1. An offer is taken at the *lower* end of what was measured of it, so
that opening late is the error that can happen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradsift.errors import UsageError
from gradsift.monitors.spending import progress_per_second
from gradsift.records import Source


@dataclass(frozen=True)
class Offer:
    """One way to get the examples of a step, with what was measured of it.

    Attributes:
        source: "off" is the user's own order.
        seconds: of a whole step, loading, drawing and scoring included.
        variance_ratio: R, uniform over drawn, as estimated.
        lower: R at the lower end of its interval; what a decision to open uses.
        candidates: r, scored examples per trained one; 1 where none is scored.
    """

    source: Source
    seconds: float
    variance_ratio: float = 1.0
    lower: float = 1.0
    candidates: float = 1.0


@dataclass(frozen=True)
class Decision:
    """What the next steps use, and why.

    Attributes:
        offer: the one that was taken.
        gain: its progress per second over that of the user's own order.
        reason: in one sentence, with the numbers.
        noise_scale: B_n, that it was decided with.
    """

    offer: Offer
    gain: float
    reason: str
    noise_scale: float


@dataclass(frozen=True)
class MeasuredGate:
    """Takes the offer with the most progress per second among those that slow no step down.

    A source that is off opens where its gain at the lower end of its interval exceeds one by
    ``margin``; one that is on shuts where its gain as estimated falls below one. Between the two
    it stays as it is. The better of two open ones is changed only for a gain of ``margin`` too.

    The gain is that of steps whose size suits their noise. A gate cannot know the step size, and
    at a fixed one a slower step loses signal for certain and wins noise that may not matter: on
    Fashion-MNIST pools with a gain of 1.4 by the formula lost to the plain order
    (``docs/results``). So an offer that slows a step by more than ``tolerance`` is not taken.

    Args:
        margin: the hysteresis, as a share of the gain.
        tolerance: how much longer than a plain step another may take, as a share.
        allowance: share of all time that finding out may take while nothing is chosen by score.

    Raises:
        UsageError: for a negative share.

    Reference:
        The criterion of the gain is that of an optimal step under noise: McCandlish, Kaplan,
        Amodei, *An Empirical Model of Large-Batch Training*, 2018, https://arxiv.org/abs/1812.06162.

    Example:
        >>> off, table = Offer("off", 0.010), Offer("table", 0.0101, 2.1, lower=1.9)
        >>> gate = MeasuredGate()
        >>> decision = gate.decide([off, table], in_use="off", noise_scale=640.0, batch_size=64)
        >>> decision.offer.source, round(decision.gain, 2)
        ('table', 1.89)
        >>> print(decision.reason)
        table: a variance ratio of 2.10 (at least 1.90) at 1.01 times the seconds, needs 1.01
    """

    margin: float = 0.02
    tolerance: float = 0.1
    allowance: float = 0.005

    def __post_init__(self) -> None:
        for name in ("margin", "tolerance", "allowance"):
            if not (share := getattr(self, name)) >= 0:
                raise UsageError(f"{name} {share} received, expected a share of at least 0")

    def decide(
        self, offers: Sequence[Offer], *, in_use: Source, noise_scale: float, batch_size: int
    ) -> Decision:
        """The offer for the next steps.

        Args:
            offers: one of them is "off".
            in_use: the source of the steps so far.
            noise_scale: B_n, in examples; infinity where no signal was seen above the noise.
            batch_size: b.
        """
        plain = next(offer for offer in offers if offer.source == "off")
        slowest = (1 + self.tolerance) * plain.seconds

        def gain(offer: Offer, ratio: float) -> float:
            rate = progress_per_second(ratio, noise_scale, batch_size, offer.seconds)
            return rate / progress_per_second(1.0, noise_scale, batch_size, plain.seconds)

        def judged(offer: Offer) -> float:
            if offer.source == "off":
                return 1.0
            if offer.source == in_use:
                return gain(offer, offer.variance_ratio)
            return gain(offer, offer.lower) / (1 + self.margin)

        allowed = [offer for offer in offers if offer is plain or offer.seconds <= slowest]
        best = max(allowed, key=judged)
        others = [offer for offer in allowed if offer is not plain] or [
            offer for offer in offers if offer is not plain
        ]
        shown = max(others, key=judged, default=plain)
        needed = needed_ratio(shown.seconds / plain.seconds, noise_scale, batch_size)
        reason = _reason(shown, plain, needed if shown in allowed else math.inf)
        return Decision(best, gain(best, best.variance_ratio), reason, noise_scale)


def needed_ratio(relative_seconds: float, noise_scale: float, batch_size: int) -> float:
    """The variance ratio from which an offer makes more progress per second than the plain order.

    It solves ``(1 + x)/(1 + x/R) = c`` with ``x = B_n/b`` and c the seconds over those of a plain
    step: ``R = x/((1 + x)/c − 1)``. Where noise is everything that is ``c``; where it is little,
    no ratio is enough.

    Example:
        >>> needed_ratio(1.5, noise_scale=640.0, batch_size=64)
        1.578...
        >>> needed_ratio(2.0, noise_scale=32.0, batch_size=64)
        inf
    """
    if relative_seconds <= 1:
        return 1.0
    if math.isinf(noise_scale):
        return relative_seconds
    x = noise_scale / batch_size
    room = (1 + x) / relative_seconds - 1
    return x / room if room > 0 else math.inf


def _reason(offer: Offer, plain: Offer, needed: float) -> str:
    if offer.source == "off":
        return "nothing is measured yet"
    named = offer.source if offer.candidates == 1 else f"{offer.source} of {offer.candidates:g}"
    found = (
        f"{named}: a variance ratio of {offer.variance_ratio:.2f} (at least {offer.lower:.2f}) at "
        f"{offer.seconds / plain.seconds:.2f} times the seconds"
    )
    return (
        f"{found}, needs {needed:.2f}" if math.isfinite(needed) else f"{found}, which is too slow"
    )
