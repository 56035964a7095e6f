"""Traces of what an LM said to a row, wherever it runs; equal replies to one prompt become votes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from limbeck.losses.votes import tally
from limbeck.store import StoreHeader, context_hash, trace_id
from limbeck.types import Trace

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from limbeck.losses.support import Support
    from limbeck.types import Row, Span


def make_trace(
    row: Row, header: StoreHeader, ids: np.ndarray, spans: tuple[Span, ...], text: str, draw: int, meta: dict[str, Any]
) -> Trace:
    """What an LM said to a row: `ids` are prompt and reply, `spans` the reply, `text` both."""
    return Trace(
        id=trace_id(row.id, header, draw),
        row_id=row.id,
        split=row.split,
        topic=row.topic,
        text=text,
        ids=ids,
        spans=spans,
        lm=header.lm,
        tokenizer=header.tokenizer_hash,
        context_hash=context_hash(ids, spans),
        meta={"source": row.source, **meta},
    )


def bare_record(trace: Trace) -> bytes:
    """The record of a trace of which nothing but text is kept."""
    return bytes.fromhex(trace.context_hash)


def vote(traces: Iterable[Trace]) -> list[tuple[Trace, Support]]:
    """The distinct ones among `traces`, in order, each with its votes. Traces of one row are replies to one prompt (all
    tokens from the first supervised one on). What stays is the first of equal replies, with `votes` (how many there
    are) and `weight` (their share, by which training weighs the trace) in its meta.

    Replies that were cut off at different lengths or ended otherwise are different replies.
    """
    by_row: dict[str, list[Trace]] = {}
    for trace in traces:
        by_row.setdefault(trace.row_id, []).append(trace)
    voted = []
    for own in by_row.values():
        for ballot in tally([trace.ids[trace.spans[0][0] :] for trace in own]):
            meta = {"votes": len(ballot.draws), "weight": ballot.share}
            first = own[ballot.draws[0]]
            voted.append((replace(first, meta=first.meta | meta), ballot.support))
    return voted
