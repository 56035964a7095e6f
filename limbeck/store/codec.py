"""Targets as bytes: bit-packed, and unbiased although quantised.

One trace is one record, its streams one after the other, each padded to whole bytes:

    context hash   8 bytes
    head sizes     n x u8            hybrid only
    draw sizes     n x u8            with draws: distinct drawn tokens
    tail mass      n x u8            with a head
    entropy        n x u8            with draws
    head ids       sum(head) x b bits, b = bits of the vocabulary
    head mass      sum(head) x u8
    draw ids       sum(draw) x b bits
    draw counts    sum(draw) x c bits

A mass is a level of exp(-20 (c / 255)^2): fine near 1, coarse where it does not matter. It is rounded to one of its two
neighbours at random with the odds that keep its expectation, and what rounding adds or takes is given back by the
position's largest cell, so that every decoded distribution sums to 1 exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.types import Dist

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.losses.support import Support

LEVELS = np.exp(-20.0 * (np.arange(256) / 255.0) ** 2)
MAX_ENTROPY = 16.0  # nats; the entropy of 8.9 million equally likely tokens
HASH_BYTES = 8


@dataclass(frozen=True)
class Codec:
    """How one store's records are laid out: `head` 0 means sampled, `draws` 0 means top_k, both mean hybrid."""

    vocab: int
    head: int
    draws: int

    @property
    def id_bits(self) -> int:
        bits = max((self.vocab - 1).bit_length(), 1)
        return 16 if 12 < bits <= 16 else bits  # 16-bit ids are read by a view

    @property
    def count_bits(self) -> int:
        return self.draws.bit_length()

    @property
    def variable_head(self) -> bool:
        return self.head > 0 and self.draws > 0

    def encode(self, support: Support, context_hash: str, generator: np.random.Generator) -> bytes:
        """The record of one trace, from its n selected positions."""
        head_ids = support.head_ids_nH.cpu().numpy()
        valid = head_ids >= 0
        num = len(head_ids)
        sizes = valid.sum(1).astype(np.uint8)
        rows = support.draw_rows_Q.cpu().numpy()
        parts = [bytes.fromhex(context_hash)[:HASH_BYTES]]
        if self.variable_head:
            parts.append(sizes.tobytes())
        if self.draws:
            parts.append(np.bincount(rows, minlength=num).astype(np.uint8).tobytes())
        if self.head:
            parts.append(quantise(support.tail_n.cpu().numpy(), generator).tobytes())
        if self.draws:
            entropy = support.entropy_n.cpu().numpy() * (255 / MAX_ENTROPY)
            parts.append(np.floor(entropy + generator.random(num)).clip(0, 255).astype(np.uint8).tobytes())
        if self.head:
            parts.append(pack_bits(head_ids[valid], self.id_bits))
            parts.append(quantise(support.head_p_nH.cpu().numpy()[valid], generator).tobytes())
        if self.draws:
            parts.append(pack_bits(support.draw_ids_Q.cpu().numpy(), self.id_bits))
            parts.append(pack_bits(support.draw_counts_Q.cpu().numpy(), self.count_bits))
        return b"".join(parts)

    def decode(self, records: Sequence[tuple[np.ndarray, int]]) -> Dist:
        """Distributions of several traces, one after the other. `records` are (bytes, number of positions)."""
        columns = [self._columns(buffer, num) for buffer, num in records]
        heads, drawn, tail, entropy, head_ids, head_codes, draw_ids, draw_counts = (
            np.concatenate(column) for column in zip(*columns, strict=True)
        )
        num = len(heads)
        width = int((heads + drawn).max(initial=1))
        ids_NK = np.full((num, width), -1, dtype=np.int64)
        p_NK = np.zeros((num, width + 1))
        head_rows, head_cols = _ragged(heads)
        ids_NK[head_rows, head_cols] = head_ids
        p_NK[head_rows, head_cols] = LEVELS[head_codes]
        tail_N = LEVELS[tail] if self.head else np.ones(num)
        p_NK[:, -1] = tail_N
        largest_N = p_NK.argmax(1)
        p_NK[np.arange(num), largest_N] += 1.0 - p_NK.sum(1)
        np.maximum(p_NK, 1e-12, out=p_NK, where=p_NK < 0)
        if self.draws:
            rows, cols = _ragged(drawn)
            per_position = np.bincount(rows, weights=draw_counts, minlength=num)
            ids_NK[rows, cols + heads[rows]] = draw_ids
            p_NK[rows, cols + heads[rows]] = p_NK[rows, -1] * draw_counts / per_position[rows]
            p_NK[drawn > 0, -1] = 0.0
        with np.errstate(divide="ignore"):
            logp_NK = np.log(p_NK).astype(np.float32)
        return Dist(
            torch.from_numpy(ids_NK),
            torch.from_numpy(np.ascontiguousarray(logp_NK[:, :-1])),
            torch.from_numpy(np.ascontiguousarray(logp_NK[:, -1])),
            torch.from_numpy(entropy.astype(np.float32) * (MAX_ENTROPY / 255)) if self.draws else None,
        )

    def _columns(self, buffer: np.ndarray, num: int) -> tuple[np.ndarray, ...]:
        """The streams of one record as arrays; absent ones as constants."""
        at = HASH_BYTES
        none = np.zeros(num, dtype=np.uint8)

        def take(count: int, bits: int) -> np.ndarray:
            nonlocal at
            size = (count * bits + 7) // 8
            at += size
            return unpack_bits(buffer[at - size : at], count, bits)

        heads = take(num, 8) if self.variable_head else np.full(num, min(self.head, self.vocab), dtype=np.uint8)
        drawn = take(num, 8) if self.draws else none
        tail = take(num, 8) if self.head else none
        entropy = take(num, 8) if self.draws else none
        num_head, num_drawn = int(heads.sum(dtype=np.int64)), int(drawn.sum(dtype=np.int64))
        head_ids = take(num_head, self.id_bits)
        head_codes = take(num_head, 8)
        draw_ids = take(num_drawn, self.id_bits)
        draw_counts = take(num_drawn, self.count_bits or 8)
        sizes = heads.astype(np.int64), drawn.astype(np.int64)
        return (*sizes, tail, entropy, head_ids, head_codes, draw_ids, draw_counts)


def quantise(p: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Codes of masses, rounded at random to a neighbouring level so that E[LEVELS[code]] == p. Below the last level
    (2e-9) the last code is used."""
    with np.errstate(divide="ignore"):
        code = np.floor(255.0 * np.sqrt(np.clip(-np.log(p.astype(np.float64)), 0.0, 20.0) / 20.0)).astype(np.int64)
    code = np.minimum(code, 254)
    upper, lower = LEVELS[code], LEVELS[code + 1]
    up = (upper - p) > generator.random(p.shape) * (upper - lower)
    return (code + up).astype(np.uint8)


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Unsigned integers below 2**bits, little-endian bit order, padded to whole bytes."""
    if bits in (8, 16, 32):
        return values.astype(f"<u{bits // 8}").tobytes()
    spread = (values.astype(np.uint64)[:, None] >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(spread.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack_bits(buffer: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The inverse of `pack_bits`, for at most 24 bits (or exactly 32)."""
    if bits in (8, 16, 32):
        return np.frombuffer(buffer.tobytes(), dtype=f"<u{bits // 8}", count=count)
    padded = np.concatenate([np.asarray(buffer, dtype=np.uint8), np.zeros(4, dtype=np.uint8)]).astype(np.uint32)
    start = np.arange(count, dtype=np.int64) * bits
    byte = start >> 3
    window = padded[byte] | padded[byte + 1] << 8 | padded[byte + 2] << 16 | padded[byte + 3] << 24
    return (window >> (start & 7).astype(np.uint32)) & np.uint32((1 << bits) - 1)


def _ragged(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every entry of rows with the given sizes."""
    rows = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.cumsum(sizes) - sizes
    return rows, np.arange(len(rows)) - starts[rows]
