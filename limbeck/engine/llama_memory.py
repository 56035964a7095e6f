"""Sequences of a GGUF file in llama.cpp: one context for all of them, one computation for all that a turn reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from limbeck.engine.memory import context_within, token_bytes_of
from limbeck.engine.scheduler import FALLBACK_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from limbeck.engine.memory import Logits, SlotTokens
    from limbeck.models.llamacpp import LlamaLM

ROOM = 256  # tokens of each slot at first; llama.cpp takes multiples of that
BLOCK = 32  # rows of logits that are handed out at once


class LlamaMemory:
    """A `Memory`. llama.cpp keeps the slots apart, so that what stands in one cannot be had in another. Raises
    TeacherError for a `max_context` that does not fit."""

    copies = False

    def __init__(self, lm: LlamaLM, slots: int, max_context: int | None, memory_bytes: int) -> None:
        self._token_bytes = token_bytes_of(lm)
        own = lm.max_context or max_context or FALLBACK_CONTEXT
        fits = memory_bytes // (slots * self._token_bytes) // ROOM * ROOM
        self.most = context_within(lm.name, max_context, own, fits)
        self.most_bytes = slots * _whole(self.most) * self._token_bytes
        self._lm, self._num = lm, slots
        self._context: Any = None
        self.bytes = 0

    def keep(self, source: int, slot: int, tokens: int) -> int:
        if self._context is None:
            return 0
        whole = self._context.memory_seq_pos_min(slot) == 0  # a model of windows forgets what lies behind them
        if tokens and source == slot and whole and self._context.memory_seq_rm(slot, tokens, -1):
            return tokens
        self._context.memory_seq_rm(slot, -1, -1)
        return 0

    def read(self, parts: Sequence[SlotTokens], num_single: int, rows: list[int]) -> Logits:
        self._make_room(max(part.start + len(part.ids) for part in parts))
        wanted = set(rows)
        tokens = [(token, part.start + at, part.slot) for part in parts for at, token in enumerate(part.ids)]
        self._lm.compute(self._context, [(*token, index in wanted) for index, token in enumerate(tokens)])

        def logits(some: slice) -> Iterator[tuple[slice, Tensor]]:
            asked = rows[some]
            for start in range(0, len(asked), BLOCK):
                part = asked[start : start + BLOCK]
                yield slice(start, start + len(part)), torch.stack([self._lm.row(self._context, row) for row in part])

        return logits

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context, self.bytes = None, 0

    def _make_room(self, tokens: int) -> None:
        """Room for so many tokens in each slot; what was read so far is carried over."""
        old = self._context
        if old is not None and tokens <= old.n_ctx_seq:
            return
        room = max(tokens, min(ROOM if old is None else 2 * old.n_ctx_seq, self.most))
        larger = self._lm.make_context(_whole(room), self._num)
        if old is not None:
            for slot in range(self._num):
                if old.memory_seq_pos_max(slot) >= 0:
                    larger.set_state_seq_data(old.get_state_seq_data(slot), slot)
            old.close()
        self._context, self.bytes = larger, larger.n_ctx_seq * self._num * self._token_bytes


def _whole(tokens: int) -> int:
    return -(-tokens // ROOM) * ROOM
