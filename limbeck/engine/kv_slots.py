"""Keys and values of many sequences, and attention of one forward's tokens to those of their own sequence.

A forward is one packed row, as in training: the next token of every sequence that is being written, and pieces of
prompts. Each sequence has a slot: the row of every layer's memory where its keys and values stand. Sequences that are
written attend together, padded to the longest of them; ones that are much longer than the rest attend alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.models import attention
from limbeck.models.attention import attend, seen_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.models.attention import ScoreRule

NAME = "limbeck_slots"
BLOCK = 128  # tokens by which memory grows, at least
CALL = 200  # tokens whose keys and values are read in the time that one more call takes (measured: about 15 us)
MINUS = float("-inf")


def register() -> None:
    """Make `attn_implementation="limbeck_slots"` known to transformers. Idempotent."""
    attention.register(NAME, _attend_slots)


class SlotPiece(NamedTuple):
    """Tokens `start` to `end` of the sequence in `slot`: some that are new, all of them after what stands there."""

    slot: int
    start: int
    end: int


class SlotMemory:
    """Keys and values of every layer: [slots, room, kv heads, d] each. `room` grows to `most` tokens by and by."""

    def __init__(self, slots: int, most: int) -> None:
        self.slots, self.most, self.room = slots, most, min(BLOCK, most)
        self._layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.bytes = 0  # a number that other threads may read

    def grow(self, tokens: int) -> None:
        """Make room for sequences of so many tokens, at most `most`."""
        if tokens <= self.room:
            return
        room = min(max(-(-tokens // BLOCK) * BLOCK, self.room * 3 // 2), self.most)
        for layer, pair in self._layers.items():
            self._layers[layer] = (_grown(pair[0], room), _grown(pair[1], room))
        self.bytes = self.bytes // self.room * room
        self.room = room

    def copy(self, source: int, slot: int, tokens: int) -> None:
        """The first tokens of one slot into another."""
        for pair in self._layers.values():
            for tensor in pair:
                tensor[slot, :tokens] = tensor[source, :tokens]

    def store(self, layer: nn.Module, key: Tensor, value: Tensor, rows_T: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values [1, kv heads, T, d] into rows of (slots x room); returns all of the layer's."""
        if layer not in self._layers:
            self._layers[layer] = (self._new(key), self._new(value))
            self.bytes += sum(memory.nbytes for memory in self._layers[layer])
        pair = self._layers[layer]
        for memory, new in zip(pair, (key, value), strict=True):
            memory.view(-1, *memory.shape[2:]).index_copy_(0, rows_T, new[0].transpose(0, 1))
        return pair

    def _new(self, like: Tensor) -> Tensor:
        # Zeros: what no sequence has written is masked, but 0 x NaN would be NaN.
        return like.new_zeros(self.slots, self.room, like.shape[1], like.shape[3])


def _grown(tensor: Tensor, room: int) -> Tensor:
    out = tensor.new_zeros(tensor.shape[0], room, *tensor.shape[2:])
    out[:, : tensor.shape[1]] = tensor
    return out


@dataclass
class SlotPlan:
    """What the tokens of one forward attend to. The first tokens are those of `written`, one each; `pieces` follow."""

    memory: SlotMemory
    written: list[SlotPiece]
    pieces: list[SlotPiece]
    device: torch.device
    _masks: dict[object, Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        room, parts = self.memory.room, [*self.written, *self.pieces]
        self.positions_T = torch.tensor([t for part in parts for t in range(part.start, part.end)], device=self.device)
        rows = [part.slot * room + t for part in parts for t in range(part.start, part.end)]
        self.rows_T = torch.tensor(rows, device=self.device)
        self.together, self.alone = _split(self.written)
        together = [self.written[at] for at in self.together]
        self.height = max((piece.slot for piece in together), default=-1) + 1
        self.length = max((piece.end for piece in together), default=0)
        # rows of memory <-> tokens: the same where slots have no holes
        self.even = self.together == [piece.slot for piece in together] == list(range(len(self.written)))
        if not self.even:
            order = [0] * self.height
            for at in self.together:
                order[self.written[at].slot] = at
            self.order = torch.tensor(order, device=self.device)
            self.slots = torch.tensor([piece.slot for piece in together], device=self.device)
            self.tokens = torch.tensor(self.together, device=self.device)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores of those written together: [height, 1, 1, length]; None where all is seen."""
        window = window if window is not None and window < self.length else None
        key = (window, dtype)
        if key not in self._masks:
            ends = [1] * self.height  # rows of slots that write nothing see one token: no NaN, and nobody reads them
            for at in self.together:
                ends[self.written[at].slot] = self.written[at].end
            self._masks[key] = self._mask(ends, window, dtype)
        return self._masks[key]

    def _mask(self, ends: list[int], window: int | None, dtype: torch.dtype) -> Tensor | None:
        if window is None and min(ends) == self.length:
            return None
        at_L, end_B = torch.arange(self.length, device=self.device), torch.tensor(ends, device=self.device)[:, None]
        seen_BL = at_L < end_B
        if window is not None:
            seen_BL &= at_L >= end_B - window
        mask_BL = torch.zeros(seen_BL.shape, dtype=dtype, device=self.device).masked_fill_(~seen_BL, MINUS)
        return mask_BL[:, None, None]

    def piece_mask(self, piece: SlotPiece, window: int | None) -> Tensor | None:
        """True where a token of the piece sees one of its sequence: [new, all]; None where that is just causal."""
        window = window if window is not None and window < piece.end else None
        if piece.start == 0 and window is None:
            return None
        key = (piece, window)
        if key not in self._masks:
            self._masks[key] = seen_mask(piece.end - piece.start, piece.end, window, self.device)
        return self._masks[key]


def forward(decoder: Any, ids: Sequence[int], plan: SlotPlan) -> Tensor:
    """hidden_TD (after the final norm) of the plan's tokens, which stand in memory afterwards."""
    ids_T = torch.tensor(ids, device=plan.device)
    out = decoder(input_ids=ids_T[None], position_ids=plan.positions_T[None], use_cache=False, plan=plan)
    return out.last_hidden_state[0]


def _split(written: Sequence[SlotPiece]) -> tuple[list[int], list[int]]:
    """Which attend together and which alone, so that least is read: those together read as much as the longest and the
    highest slot of them would, each alone costs a call."""
    order = sorted(range(len(written)), key=lambda at: written[at].end)
    alone = sum(piece.end + CALL for piece in written)
    best, cut, height = alone, 0, 0
    for num, at in enumerate(order, start=1):
        alone -= written[at].end + CALL
        height = max(height, written[at].slot + 1)
        cost = alone + height * written[at].end + CALL
        if cost <= best:
            best, cut = cost, num
    return sorted(order[:cut]), sorted(order[cut:])


def _attend_slots(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule, passed: dict[str, Any]
) -> Tensor:
    """Attention of each token to its own sequence. query [1, heads, T, d], key and value [1, kv heads, T, d], of new
    tokens only. Returns [1, T, heads, d]. Sliding windows, grouped heads and soft-capped scores are honoured.

    Raises ValueError without `plan`: a model that drops it would attend to other sequences.
    """
    plan: SlotPlan | None = passed.get("plan")
    if plan is None:
        raise ValueError("slot attention was called without a plan")
    keys, values = plan.memory.store(module, key, value, plan.rows_T)
    rule = rule._replace(dropout=0.0)  # nothing is trained here
    outs = []
    begin = len(plan.written)
    if begin:
        # The heads that share keys are the rows of one product: nothing is repeated, and keys are read once.
        q = query[0, :, :begin].transpose(0, 1).unflatten(1, (key.shape[1], -1))
        outs.append(_written(q, keys, values, plan, rule))
    for piece in plan.pieces:
        end = begin + piece.end - piece.start
        k, v = (memory[piece.slot, None, : piece.end].transpose(1, 2) for memory in (keys, values))
        mask = plan.piece_mask(piece, rule.window)
        outs.append(attend(query[:, :, begin:end], k, v, rule, mask, causal=mask is None)[0].transpose(0, 1))
        begin = end
    return (outs[0] if len(outs) == 1 else torch.cat(outs))[None]


def _written(q: Tensor, keys: Tensor, values: Tensor, plan: SlotPlan, rule: ScoreRule) -> Tensor:
    """The sequences' next tokens: q [tokens, kv heads, group, d] -> [tokens, heads, d]."""
    if plan.even:
        k, v = (memory[: plan.height, : plan.length].transpose(1, 2) for memory in (keys, values))
        return attend(q, k, v, rule, plan.mask(rule.window, q.dtype)).flatten(1, 2)
    out = q.new_empty(*q.shape[:3], values.shape[-1])
    if plan.together:
        k, v = (memory[: plan.height, : plan.length].transpose(1, 2) for memory in (keys, values))
        together = attend(q[plan.order], k, v, rule, plan.mask(rule.window, q.dtype))
        out[plan.tokens] = together[plan.slots]
    for at in plan.alone:
        piece = plan.written[at]
        first = 0 if rule.window is None else max(piece.end - rule.window, 0)
        k, v = (memory[piece.slot, None, first : piece.end].transpose(1, 2) for memory in (keys, values))
        out[at] = attend(q[at, None], k, v, rule, None)[0]
    return out.flatten(1, 2)
