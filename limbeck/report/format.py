"""Numbers and foreign text as a reader wants them."""

from __future__ import annotations

HUGE = 1e30
MISSING = "\u2013"


def number(value: object) -> float | None:
    """A number that something measured can have, or None for anything else (text, NaN, infinities)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < HUGE else None


def percent(share: float) -> str:
    """ "71.2 %"."""
    return f"{100 * share:.1f}%"


def perplexity(value: float) -> str:
    """ "10.31", "4.2e+09"."""
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"


def signed(value: float, digits: int) -> str:
    """ "+0.29", "−0.29", with a real minus sign."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def times(ratio: float) -> str:
    """ "1.3×", "12×"."""
    digits = 0 if ratio >= 9.95 else 1 if ratio >= 0.995 else 2
    return f"{ratio:.{digits}f}\u00d7"
