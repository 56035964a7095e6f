"""Text from strangers, shown with its control characters spelt out."""

from __future__ import annotations

import unicodedata

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
