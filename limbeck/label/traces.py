"""A trace of what an LM said to a row, wherever it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck.store import StoreHeader, context_hash, trace_id
from limbeck.types import Trace

if TYPE_CHECKING:
    import numpy as np

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
