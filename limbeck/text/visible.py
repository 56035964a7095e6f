"""Text from strangers, shown with its control characters spelt out."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

JOINERS = "\u200c\u200d"  # part of ordinary words and emoji
LINES = "\n\t"


def visible(text: str, limit: int | None = None, *, keep: str = "", end: bool = False) -> str:
    """Text of models and files, safe to show: what could steer a page or a terminal (control characters, escape codes,
    bidirectional marks, lone surrogates) is spelt as in Python; characters of `keep` stay. Beyond `limit` characters it
    is cut, its beginning where `end` is to be kept, and says how much was left out."""
    rest = 0 if limit is None else max(len(text) - limit, 0)
    part = text[rest:] if end else text[:limit]
    shown = "".join(char if char in keep or _is_plain(char) else _spelt(char) for char in part)
    if not rest:
        return shown
    return f"[{rest:,} characters before] … {shown}" if end else f"{shown} … [{rest:,} more characters]"


def _is_plain(char: str) -> bool:
    return char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs"


def _spelt(char: str) -> str:
    return char.encode("unicode_escape").decode()


def shortened(text: str, limit: int) -> str:
    """One line of at most `limit` characters."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def some(names: Sequence[str], most: int) -> str:
    """The first `most` of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
