"""Progress per second, out of measured variance, noise and seconds: which source pays, if any.

A source of examples is an offer: so much less variance for so many seconds. Variance is worth
something only where noise limits the step, and a step whose size stays as it is gains at most a
factor of two by losing its noise. With ``B_n = trΣ/‖μ‖²`` (the noise scale), batches of b and c the
seconds over those of a plain step, the user's own step size being the best for plain batches, an
offer with the variance ratio R makes

    (2 − (1 + B_n/(b R)) / (1 + B_n/b)) / c

times the progress per second of the user's own order (`gradsift.monitors.spending`). An offer is
taken at the *lower* end of what was measured of it, so that opening late is the error that can
happen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradsift.errors import UsageError
from gradsift.monitors.spending import kept_step_gain
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
        final: whether it stands to the end of the run.
    """

    offer: Offer
    gain: float
    reason: str
    noise_scale: float
    final: bool = False


@dataclass(frozen=True)
class MeasuredGate:
    """Takes the offer with the most progress per second.

    A source that is off opens where its gain at the lower end of its interval exceeds one by
    ``margin``; one that is on shuts where its gain as estimated falls below one. Between the two
    it stays as it is. The better of two open ones is changed only for a gain of ``margin`` too.

    The gain is that of an unchanged step size. With steps that are lengthened as noise allows, a
    pool with R = 2.2 for 1.6 times the seconds would gain 1.4; at the same step size it loses, and
    so it did on Fashion-MNIST (``docs/log.md``).

    Args:
        margin: the hysteresis, as a share of the gain.
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
        ('table', 1.46)
        >>> print(decision.reason)
        table: a variance ratio of 2.10 (at least 1.90) at 1.01 times the seconds, needs 1.01
    """

    margin: float = 0.02
    allowance: float = 0.01

    def __post_init__(self) -> None:
        for name in ("margin", "allowance"):
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

        def judged(offer: Offer) -> float:
            if offer.source == "off":
                return 1.0
            if offer.source == in_use:
                return gain(offer, plain, noise_scale, batch_size)
            return gain(offer, plain, noise_scale, batch_size, lower=True) / (1 + self.margin)

        best = max(offers, key=judged)
        others = [offer for offer in offers if offer is not plain]
        shown = max(others, key=judged, default=plain)
        needed = needed_ratio(shown.seconds / plain.seconds, noise_scale, batch_size)
        reason = _reason(shown, plain, needed)
        return Decision(best, gain(best, plain, noise_scale, batch_size), reason, noise_scale)


def gain(
    offer: Offer, plain: Offer, noise_scale: float, batch_size: int, *, lower: bool = False
) -> float:
    """Progress per second over that of the user's own order, at an unchanged step size, >= 0.

    Args:
        offer: what is judged.
        plain: the user's own order.
        noise_scale: B_n, in examples.
        batch_size: b.
        lower: whether to take the variance ratio at the lower end of its interval.

    Example:
        >>> pool = Offer("pool", 1.6, 2.2, lower=2.0, candidates=3)
        >>> round(gain(pool, Offer("off", 1.0), math.inf, 64), 2)
        0.97
    """
    ratio = max(offer.lower, 0.0) if lower else offer.variance_ratio
    kept = max(kept_step_gain(ratio, noise_scale, batch_size), 0.0)
    return kept * plain.seconds / offer.seconds


def needed_ratio(relative_seconds: float, noise_scale: float, batch_size: int) -> float:
    """The variance ratio from which an offer makes more progress per second than the plain order.

    It solves ``2 − (1 + x/R)/(1 + x) = c`` with ``x = B_n/b`` and c the seconds over those of a
    plain step: ``R = x/((2 − c)(1 + x) − 1)``, and ``1/(2 − c)`` where noise is everything. From
    twice the seconds on no ratio is enough, and where noise is little not from less.

    Example:
        >>> needed_ratio(1.5, noise_scale=640.0, batch_size=64)
        2.222...
        >>> needed_ratio(1.5, noise_scale=64.0, batch_size=64)
        inf
    """
    if relative_seconds <= 1:
        return 1.0
    left = 2 - relative_seconds
    if math.isinf(noise_scale):
        return 1 / left if left > 0 else math.inf
    x = noise_scale / batch_size
    room = left * (1 + x) - 1
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
