"""Scores of one model at the supervised positions of a row: by itself, or against another model's distributions.

`T` tokens of a row, `n` supervised positions of a block, `V` vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.metrics.fidelity import PositionScores, own_scores, reference, score_against

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.types import LocalLM, Span

CHUNK_BYTES = 64 * 2**20  # of one block of logits in float64; a few such exist at a time


def row_scores(
    lm: LocalLM, ids: np.ndarray | Sequence[int], spans: Sequence[Span], *, source: LocalLM | None = None
) -> PositionScores:
    """Scores of `lm` in float64, position by position in the order of `spans`: compared with `source`, or, without one,
    by itself (KL 0, agreement 1). Logits of a whole row exist at once."""
    ids_T = np.asarray(ids, dtype=np.int32)
    logits_TV = lm.logits(ids_T)
    theirs_TV = logits_TV if source is None else source.logits(ids_T)
    labels_T = torch.from_numpy(ids_T).long()
    places = torch.tensor([place for start, end in spans for place in range(start, end)])
    blocks = []
    for at in places.split(max(CHUNK_BYTES // (8 * logits_TV.shape[1]), 1)):
        known = reference(theirs_TV[at - 1].double())
        if source is None:
            blocks.append(own_scores(known, labels_T[at]))
        else:
            blocks.append(score_against(logits_TV[at - 1].double(), known, labels_T[at]))
    return PositionScores(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))
