"""Durations, sizes and counts as people read them."""

from __future__ import annotations

import re

SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def duration(seconds: float) -> str:
    """ "0.4 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float) -> str:
    """Bytes in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1023.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def num_bytes(text: str) -> int:
    """Bytes of "500M", "2GiB", "1.5G", "1000" (powers of 1024). Raises ValueError for what is no size."""
    found = SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no size, such as 500M or 2G")
    return round(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " "))


def count(value: float) -> str:
    """ "134.5M", "17.0M", "812"."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"
