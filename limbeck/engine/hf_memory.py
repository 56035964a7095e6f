"""Sequences of a model of transformers: keys and values in slots, one forward for all that is read in a turn."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.engine import kv_slots
from limbeck.engine.kv_slots import SlotMemory, SlotPiece, SlotPlan, forward
from limbeck.engine.memory import context_within
from limbeck.engine.scheduler import FALLBACK_CONTEXT
from limbeck.errors import TeacherError
from limbeck.losses.chunked import iter_logits
from limbeck.models.hf import attending
from limbeck.models.proof import row_error, tolerance_of, windows_narrowed
from limbeck.models.rotary import length_bound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from limbeck.engine.memory import Logits, SlotTokens
    from limbeck.models.hf import HfLM


class TorchMemory:
    """A `Memory`. While it is open the model is its own. Raises TeacherError for families whose logits slots do not
    reproduce (that is measured, not assumed), and for a `max_context` that does not fit."""

    copies = True

    def __init__(self, lm: HfLM, slots: int, max_context: int | None, memory_bytes: int) -> None:
        kv_slots.register()
        token_bytes = prove(lm)
        self.most = context_within(lm.name, max_context, own_context(lm), memory_bytes // (slots * token_bytes))
        self.most_bytes = slots * self.most * token_bytes
        self._lm, self._decoder, self._head = lm, lm.model.get_decoder(), lm.head
        self._num, self._slots = slots, SlotMemory(slots, self.most)
        self._attention = attending(lm.model, kv_slots.NAME)
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


logger = logging.getLogger(__name__)

# ---- which models can be written in batches, and how far: measured on the model itself -------------------------------

LENGTHS, TURN = (7, 12), 5


def prove(lm: HfLM) -> int:
    """Bytes of keys and values per token.

    Raises TeacherError, naming the family, unless two sequences in slots, read in pieces and written on together, have
    the logits that the model itself gives each alone.
    """
    rows = [np.arange(1, 1 + length) * 7919 % lm.vocab for length in LENGTHS]
    memory = SlotMemory(len(rows), max(LENGTHS))
    with windows_narrowed(lm.model), torch.inference_mode():
        try:
            ours = _in_slots(lm, rows, memory)
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise TeacherError(_unsupported(lm, str(error))) from error
        whole = [torch.from_numpy(row).to(lm.device)[None] for row in rows]
        theirs = [lm.model(ids_1T, use_cache=False).logits[0, :, : lm.vocab].float() for ids_1T in whole]
    for ours_TV, theirs_TV in zip(ours, theirs, strict=True):
        error = row_error(ours_TV, theirs_TV)
        logger.debug("%s: logits in slots differ by %.3g of their spread", lm.name, error)
        if not error <= tolerance_of(lm.model).own:
            raise TeacherError(_unsupported(lm, f"its logits differ by {error:.3g} of their spread"))
    return memory.bytes // (len(rows) * memory.room)


def _in_slots(lm: HfLM, rows: list[np.ndarray], memory: SlotMemory) -> list[Tensor]:
    """logits_TV of each row: pieces of the prompt, and its last two tokens one by one."""
    kv_slots.register()
    out: list[list[Tensor]] = [[] for _ in rows]
    fed = [0 for _ in rows]
    with torch.inference_mode(), attending(lm.model, kv_slots.NAME):
        while any(at < len(row) for at, row in zip(fed, rows, strict=True)):
            pieces = [_next(slot, at, len(rows[slot])) for slot, at in enumerate(fed) if at < len(rows[slot])]
            pieces.sort(key=lambda piece: piece.end - piece.start > 1)  # those of one token come first
            num = sum(piece.end - piece.start == 1 for piece in pieces)
            ids = [int(token) for piece in pieces for token in rows[piece.slot][piece.start : piece.end]]
            hidden_TD = forward(lm.model.get_decoder(), ids, SlotPlan(memory, pieces[:num], pieces[num:], lm.device))
            logits_TV = torch.cat([logits_nV.clone() for _, logits_nV in iter_logits(hidden_TD, lm.head)])
            parts = logits_TV.split([piece.end - piece.start for piece in pieces])
            for piece, part_TV in zip(pieces, parts, strict=True):
                out[piece.slot].append(part_TV)
                fed[piece.slot] = piece.end
    return [torch.cat(parts) for parts in out]


def _next(slot: int, at: int, length: int) -> SlotPiece:
    return SlotPiece(slot, at, at + max(min(TURN, length - 2 - at), 1))


def own_context(lm: HfLM) -> int:
    """Tokens that the model was made for, and up to which the position of each means the same in any batch. Some
    families (Phi-3's longrope, dynamic NTK) turn all sequences of a forward otherwise as soon as one is long."""
    most = lm.max_context or FALLBACK_CONTEXT
    return min(most, length_bound(lm.model.config) or most)


def _unsupported(lm: HfLM, why: str) -> str:
    return (
        f"the model family {lm.model.config.model_type!r} cannot be written in batches: keys and values in slots do "
        f"not reproduce its own logits ({why}). Export it to GGUF or ONNX: other programs run those."
    )
