"""How numbers are written in tables and sentences."""

import math

MISSING = "none"


def share(value: float) -> str:
    """A share as percent, with two digits that count.

    Example:
        >>> share(0.0197), share(0.456), share(0.0)
        ('1.97 %', '45.6 %', '0.00 %')
    """
    percent = 100 * value
    return f"{percent:.1f} %" if percent >= 10 else f"{percent:.2f} %"


def quantity(value: float) -> str:
    """Any number with three digits that count.

    Example:
        >>> quantity(0.12345), quantity(1234.5), quantity(0.00001234), quantity(0.0)
        ('0.123', '1,234', '1.23e-05', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    """Seconds with a unit.

    Example:
        >>> seconds(9.96), seconds(0.123), seconds(3600.0)
        ('10.0 s', '0.12 s', '3,600 s')
    """
    if value >= 1000:
        return f"{value:,.0f} s"
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"
