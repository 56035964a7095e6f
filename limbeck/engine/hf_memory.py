"""Sequences of a model of transformers: keys and values in slots, one forward for all that is read in a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.engine import kv_slots as slot_memory
from limbeck.engine.compat import own_context, prove
from limbeck.engine.kv_slots import SlotMemory, SlotPiece, SlotPlan, forward
from limbeck.engine.memory import context_within
from limbeck.losses.chunked import iter_logits
from limbeck.models.hf import attending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.engine.memory import Logits, SlotTokens
    from limbeck.models.hf import HfLM


class TorchMemory:
    """A `Memory`. While it is open the model is its own. Raises TeacherError for families whose logits slots do not
    reproduce (that is measured, not assumed), and for a `max_context` that does not fit."""

    copies = True

    def __init__(self, lm: HfLM, slots: int, max_context: int | None, memory_bytes: int) -> None:
        slot_memory.register()
        token_bytes = prove(lm)
        self.most = context_within(lm.name, max_context, own_context(lm), memory_bytes // (slots * token_bytes))
        self.most_bytes = slots * self.most * token_bytes
        self._lm, self._decoder, self._head = lm, lm.model.get_decoder(), lm.head
        self._num, self._slots = slots, SlotMemory(slots, self.most)
        self._attention = attending(lm.model, slot_memory.NAME)
        self._attention.__enter__()

    @property
    def bytes(self) -> int:
        return self._slots.bytes

    def keep(self, source: int, slot: int, tokens: int) -> int:
        if tokens and source != slot:
            self._slots.copy(source, slot, tokens)
        return tokens

    def read(self, parts: Sequence[SlotTokens], num_single: int, rows: list[int]) -> Logits:
        self._slots.grow(max(part.start + len(part.ids) for part in parts))
        places = [SlotPiece(part.slot, part.start, part.start + len(part.ids)) for part in parts]
        plan = SlotPlan(self._slots, places[:num_single], places[num_single:], self._lm.device)
        hidden_TD = forward(self._decoder, [token for part in parts for token in part.ids], plan)
        hidden_ND = hidden_TD if rows == list(range(len(hidden_TD))) else hidden_TD[rows]
        return lambda some: iter_logits(hidden_ND[some], self._head)

    def close(self) -> None:
        self._attention.__exit__(None, None, None)
        self._slots = SlotMemory(self._num, self.most)
