"""Numbers and foreign text as a reader wants them."""

from __future__ import annotations

import unicodedata

HUGE = 1e30
JOINERS = "\u200c\u200d"  # part of ordinary words and emoji


def visible(text: str, limit: int | None = None) -> str:
    """Text of models and files, safe to show: control characters, escape codes, bidirectional marks and lone surrogates
    are spelt out; newlines and tabs stay. Beyond `limit` characters it is cut, and says how much was left out."""
    rest = 0
    if limit is not None and len(text) > limit:
        rest, text = len(text) - limit, text[:limit]
    shown = "".join(char if _is_plain(char) else _spelt(char) for char in text)
    return f"{shown} … [{rest:,} more characters]" if rest else shown


def visible_end(text: str, limit: int) -> str:
    """As `visible`, keeping the end: what stands just before an answer."""
    if len(text) <= limit:
        return visible(text)
    return f"[{len(text) - limit:,} characters before] … {visible(text[-limit:])}"


def _is_plain(char: str) -> bool:
    return char in "\n\t" or char in JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _spelt(char: str) -> str:
    code = ord(char)
    return chr(0x2400 + code) if code < 0x20 else f"[U+{code:04X}]"


def shortened(text: str, limit: int) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(visible(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


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
