"""`limbeck review`: what was kept and what was left out, for a human's eyes; and the way back of a human's verdicts."""

from __future__ import annotations

import csv
import html
import io
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from limbeck.errors import DataError, RunDirError
from limbeck.rundir import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

CELL = 32_000
"""Most characters of a cell: spreadsheets cut longer ones."""


def review(run: Path, out: Path) -> int:
    """Write what was kept and left out for a human's eyes: `.csv` (a spreadsheet; fill the column verdict with keep or
    reject, and give it to the rule `verdicts`) or `.html`. Returns the number of replies.

    Raises RunDirError when the run was not curated, DataError for another ending.
    """
    file = run / "curate" / "rejected.parquet"
    if not file.exists():
        raise RunDirError(f"{run} has no curated replies. Give the recipe a `curate` list, and run it.")
    lines = pq.read_table(file, page_checksum_verification=True).to_pylist()
    if out.suffix == ".csv":
        atomic_write(out, _as_csv(lines))
    elif out.suffix == ".html":
        atomic_write(out, _as_html(lines, run.name))
    else:
        raise DataError(f"{out} ends in neither .csv nor .html; a review is one of the two.")
    return len(lines)


FOR_HUMANS = ("verdict", "note")
COLUMNS: tuple[str, ...] = (*FOR_HUMANS, "id", "topic", "prompt", "reply", "reference", "checked", "rule", "reason")


def _cells(line: dict[str, Any]) -> dict[str, str]:
    rule = f"{line['rule_number']} {line['rule']}" if line["rule_number"] else "kept"
    own = {"verdict": "", "note": "", "checked": line["verdict"], "rule": rule}
    return {name: own.get(name, str(line.get(name, ""))) for name in COLUMNS}


def _as_csv(lines: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS)
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _harmless(text) for name, text in _cells(line).items()})
    return buffer.getvalue()


def _harmless(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    cut = text if len(text) <= CELL else f"{text[:CELL]} ... ({len(text) - CELL} more characters)"
    return f"'{cut}" if cut.lstrip("\t\r\n ").startswith(("=", "+", "-", "@")) or cut.startswith(("\t", "\r")) else cut


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Review of {name}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>:root{{color-scheme:light dark}}
body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}}
article{{border-top:1px solid #8886;padding:1rem 0;display:grid;gap:.5rem 1.5rem;grid-template-columns:1fr 2fr}}
pre{{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:13px/1.45 ui-monospace,monospace;unicode-bidi:isolate}}
h2{{grid-column:1/-1;font-size:1rem;margin:0}}small{{opacity:.7;font-weight:400}}
@media(max-width:45rem){{article{{grid-template-columns:1fr}}}}</style>
<h1>Review of {name}</h1><p>{count} replies. To say otherwise: <code>limbeck review RUN --out review.csv</code>.</p>
"""


def _as_html(lines: list[dict[str, Any]], name: str) -> str:
    parts = [PAGE.format(name=html.escape(name), count=len(lines))]
    for line in lines:
        cell = {key: html.escape(_visible(text[:CELL])) for key, text in _cells(line).items()}
        head = " · ".join(text for text in (cell["rule"], cell["reason"], cell["checked"], cell["topic"]) if text)
        parts.append(
            f"<article><h2>{head} <small>{cell['id']}</small></h2>"
            f"<div><pre dir=auto>{cell['prompt']}</pre><p><small>reference</small></p>"
            f"<pre dir=auto>{cell['reference']}</pre></div><pre dir=auto>{cell['reply']}</pre></article>\n"
        )
    return "".join(parts)


def _visible(text: str) -> str:
    """Control and direction marks are shown, not obeyed."""
    return "".join(
        character
        if character in "\n\t" or (character.isprintable() or character == " ")
        else f"\\u{ord(character):04x}"
        for character in text
    )
