"""Exports and what they lost, for the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from limbeck.report.format import MISSING, number, percent
from limbeck.system.units import size
from limbeck.text.visible import shortened

COLUMNS = ("KL to the student", "bound", "same first choice", "size", "writing")


@dataclass(frozen=True)
class ExportTable:
    """`rows` are (name, cells), a cell for each of `columns`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    note: str


def export_table(exports: Any) -> ExportTable | None:
    """The summary's exports, as far as they are as they should be; None when there are none."""
    found = [one for one in exports if isinstance(one, dict)] if isinstance(exports, list) else []
    if not found:
        return None
    rows = tuple((shortened(f"{one.get('format')} {one.get('quant')}", 40), _cells(one)) for one in found)
    texts = ", ".join(dict.fromkeys(shortened(str(one.get("text")), 80) for one in found))
    positions = number(found[0].get("positions"))
    where = f" on {positions:,.0f} positions of {texts}" if positions else ""
    note = f"Each was reopened and compared with the student{where}. Writing: tokens per second, one by one."
    return ExportTable(COLUMNS, rows, note)


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    kl, bound, agreement = (number(one.get(key)) for key in ("kl", "kl_bound", "agreement"))
    small, large = number(one.get("bytes")), number(one.get("source_bytes"))
    fast, slow = number(one.get("tokens_per_second")), number(one.get("source_tokens_per_second"))
    return (
        MISSING if kl is None else f"{kl:.2g}",
        MISSING if bound is None else f"{bound:g}",
        MISSING if agreement is None else percent(agreement),
        MISSING if not small or not large else f"{size(small)} ({percent(small / large)})",
        MISSING if not fast or not slow else f"{fast:,.1f} (student {slow:,.1f})",
    )
