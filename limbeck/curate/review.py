"""`limbeck review`: what was kept and what was left out, for a human's eyes; and the way back of a human's verdicts."""

from __future__ import annotations

import csv
import hashlib
import html
import io
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from limbeck.errors import DataError, RunDirError
from limbeck.system.atomic import atomic_write
from limbeck.text.visible import LINES, visible

if TYPE_CHECKING:
    from pathlib import Path

FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""What a formula begins with; some spreadsheets know the full-width forms too."""

CELL = 32_000
"""Most characters of a text that are shown: spreadsheets cut longer cells."""

MOST = 1000
"""Replies on a page, unless another number is asked for: browsers bear no more than some thousands."""


def review(run: Path, out: Path, most: int | None = None) -> tuple[int, int]:
    """Write what was kept and left out for a human's eyes: `.csv` (a spreadsheet; fill the column verdict with keep or
    reject, and give it to the rule `verdicts`) or `.html`. Returns the number of replies written, and of all.

    At most `most` replies are written: as many of each rule as can be, drawn by a hash of their ids. None is all in a
    table, and `MOST` on a page. Raises RunDirError when the run was not curated, DataError for another ending.
    """
    file = run / "curate" / "rejected.parquet"
    if not file.exists():
        raise RunDirError(f"{run} has no curated replies. Give the recipe a `curate` list, and run it.")
    lines = pq.read_table(file, page_checksum_verification=True).to_pylist()
    if out.suffix == ".csv":
        shown = lines if most is None else _drawn(lines, most)
        atomic_write(out, _as_csv(shown))
    elif out.suffix == ".html":
        shown = _drawn(lines, MOST if most is None else most)
        atomic_write(out, _as_html(shown, lines, run.resolve().name))
    else:
        raise DataError(f"{out} ends in neither .csv nor .html; a review is one of the two.")
    return len(shown), len(lines)


def _drawn(lines: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """In their order. The first of each rule come before the second of any."""
    if len(lines) <= most:
        return lines
    by_hash = sorted(range(len(lines)), key=lambda at: hashlib.sha256(lines[at]["id"].encode()).digest())
    seen: Counter[int] = Counter()
    turns = []
    for at in by_hash:
        number = lines[at]["rule_number"]
        turns.append((seen[number], number, at))
        seen[number] += 1
    return [lines[at] for at in sorted(at for _, _, at in sorted(turns)[:most])]


FOR_HUMANS = ("verdict", "note")
COLUMNS: tuple[str, ...] = (*FOR_HUMANS, "id", "topic", "prompt", "reply", "reference", "checked", "rule", "reason")


def _cells(line: dict[str, Any]) -> dict[str, str]:
    rule = f"{line['rule_number']} {line['rule']}" if line["rule_number"] else "kept"
    own = {"verdict": "", "note": "", "checked": line["verdict"], "rule": rule}
    return {name: visible(own.get(name, str(line.get(name) or "")), CELL, keep=LINES) for name in COLUMNS}


def _as_csv(lines: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    buffer.write("\ufeff")  # without it, spreadsheets take UTF-8 for an older encoding
    writer = csv.DictWriter(buffer, COLUMNS, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _harmless(text) for name, text in _cells(line).items()})
    return buffer.getvalue()


def _harmless(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip().startswith(FORMULA) or text.startswith(("\t", "\n")) else text


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Review of {name}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>:root{{color-scheme:light dark}}
body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}}
article{{border-top:1px solid #8886;padding:1rem 0;display:grid;gap:.5rem 1.5rem;grid-template-columns:1fr 2fr}}
pre{{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:13px/1.45 ui-monospace,monospace;unicode-bidi:isolate}}
h2{{grid-column:1/-1;font-size:1rem;margin:0}}small{{opacity:.7;font-weight:400}}
@media(max-width:45rem){{article{{grid-template-columns:1fr}}}}</style>
<h1>Review of {name}</h1>
<p>{shown} of {count} replies{how}. To say otherwise: <code>limbeck review RUN --out review.csv</code>.</p>
"""


def _as_html(shown: list[dict[str, Any]], lines: list[dict[str, Any]], name: str) -> str:
    how = ", drawn evenly from all rules (--most)" if len(shown) < len(lines) else ""
    parts = [PAGE.format(name=html.escape(visible(name)), shown=len(shown), count=len(lines), how=how)]
    counts = Counter((line["rule_number"], line["rule"]) for line in lines)
    links = [f'<a href="#rule{at}">{html.escape(rule or "kept")}</a> {count}' for (at, rule), count in counts.items()]
    parts.append(f"<nav>{' · '.join(links)}</nav>\n")
    before = None
    for line in shown:
        cell = {key: html.escape(text) for key, text in _cells(line).items()}
        anchor = "" if line["rule_number"] == before else f' id="rule{line["rule_number"]}"'
        before = line["rule_number"]
        head = " · ".join(text for text in (cell["rule"], cell["reason"], cell["checked"], cell["topic"]) if text)
        parts.append(
            f"<article{anchor}><h2>{head} <small>{cell['id']}</small></h2>"
            f"<div><pre dir=auto>{cell['prompt']}</pre><p><small>reference</small></p>"
            f"<pre dir=auto>{cell['reference']}</pre></div><pre dir=auto>{cell['reply']}</pre></article>\n"
        )
    return "".join(parts)
