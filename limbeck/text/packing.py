"""Documents into one packed row, without padding. The only place where positions are shifted.

A packed row holds several documents end to end; `positions_T` restart in each, and attention stays within each
(`models.attention`). Token j of a document is predicted by hidden row j - 1: that shift is done here, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.types import Batch, Row, Target, Trace

if TYPE_CHECKING:
    from collections.abc import Sequence


def pack(items: Sequence[Row | Trace], target: Target | None = None, device: torch.device | str = "cpu") -> Batch:
    """Pack documents in the given order. `target`, when given, has one distribution per supervised position in order.

    Raises ValueError for an empty list.
    """
    if not items:
        raise ValueError("nothing to pack: the list of documents is empty")
    lengths = tuple(len(item.ids) for item in items)
    ids_T = np.concatenate([item.ids for item in items]).astype(np.int64)
    positions_T = np.concatenate([np.arange(length) for length in lengths])
    starts = np.cumsum((0, *lengths[:-1]))
    predicted = [start + label_positions(item) for start, item in zip(starts, items, strict=True)]
    predicted_N = np.concatenate(predicted).astype(np.int64)
    return Batch(
        ids_T=torch.from_numpy(ids_T).to(device),
        positions_T=torch.from_numpy(positions_T).to(device),
        lengths=lengths,
        rows_N=torch.from_numpy(predicted_N - 1).to(device),
        labels_N=torch.from_numpy(ids_T[predicted_N]).to(device),
        target=target,
        trace_ids=tuple(item.id for item in items),
    )


def label_positions(item: Row | Trace) -> np.ndarray:
    """Token indices of one document that are predicted, in order: int64 [N]."""
    if not item.spans:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([np.arange(start, end, dtype=np.int64) for start, end in item.spans])


def labels_of(item: Row | Trace) -> np.ndarray:
    """The tokens that are predicted, in order: int64 [N]."""
    return item.ids[label_positions(item)].astype(np.int64)


def plan_batches(lengths: Sequence[int], batch_tokens: int, *, order: Sequence[int] | None = None) -> list[list[int]]:
    """Group indices into batches of at most `batch_tokens` tokens, greedily in `order` (default: as given).

    A document longer than `batch_tokens` gets a batch of its own: nothing is cut here.
    """
    plan: list[list[int]] = []
    room = 0
    for index in order if order is not None else range(len(lengths)):
        if not plan or lengths[index] > room:
            plan.append([])
            room = batch_tokens
        plan[-1].append(int(index))
        room -= lengths[index]
    return plan
