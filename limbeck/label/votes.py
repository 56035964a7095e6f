"""Replies to the same prompt become votes: distinct replies once, weighed, with shares at every position."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from limbeck.losses.votes import tally

if TYPE_CHECKING:
    from collections.abc import Iterable

    from limbeck.losses.support import Support
    from limbeck.types import Trace


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
