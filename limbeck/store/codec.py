"""Targets as bytes: bit-packed, and unbiased although quantised.

One trace is one record. Its reader knows the trace, so a token that really follows (the label) is never written:

    context hash   8 bytes
    others         u32 of each set of ids below: how many are not labels
    entropy        n x 4 bits      with draws
    tail mass      n x 8 bits      with a head, unless it is renormalised away
    head ids       a set of ids at each position
    head mass      sum(head) x 8 bits
    draw ids       a set of ids at each position
    draw counts    Elias gamma; without a head all but the first of a position, which is what is left of all draws.
                   Votes keep all of them: fewer replies go on at every position, and shares are exact.

`bits.set_bits` says how a set is written. Streams follow one another bit by bit; a record is padded to whole bytes.

A mass is a level of exp(-20 (c / 255)^2): fine near 1, coarse where it does not matter; an entropy is one of 16 levels.
Each is rounded to one of its two neighbours at random with the odds that keep its expectation, and what rounding adds
or takes of a position's mass is given back by its largest cell: decoded distributions sum to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.store.bits import PAD, IdClasses, IdSets, Streams, count_bits, field_bits, ranges, set_bits
from limbeck.types import Dist

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.losses.support import Support

LEVELS = np.exp(-20.0 * (np.arange(256) / 255.0) ** 2)
HASH_BYTES = 8
ENTROPY_BITS = 4


@dataclass(frozen=True)
class Codec:
    """How one store's records are laid out: `head` 0 means draws only, `draws` 0 a head only; both mean hybrid.

    `rest` is what becomes of the mass outside a head when it is read: `tail` (one cell of its own, or the draws),
    `gold` (given to the label), `spread` (evenly on all other tokens), `renormalise` (cut off). `votes` are draws only:
    shares of at most `draws` replies, in a support that is complete.
    """

    vocab: int
    head: int
    draws: int
    rest: str = "tail"

    @cached_property
    def classes(self) -> IdClasses:
        return IdClasses.of(self.vocab)

    @cached_property
    def entropy_levels(self) -> np.ndarray:
        """In nats: fine where the teacher is certain."""
        most = math.log(max(self.vocab, 2))
        return most * np.linspace(0.0, 1.0, 1 << ENTROPY_BITS) ** 2

    @property
    def keeps_tail(self) -> bool:
        return self.head > 0 and self.rest != "renormalise"

    @property
    def keeps_entropy(self) -> bool:
        return self.draws > 0 and self.rest != "votes"

    def encode(self, support: Support, labels: np.ndarray, context_hash: str, generator: np.random.Generator) -> bytes:
        """The record of one trace, from its n selected positions and the n tokens that really follow."""
        streams: list[np.ndarray] = []
        others: list[int] = []
        if self.keeps_entropy:
            levels = self.entropy_levels
            entropy = support.entropy_n.cpu().numpy().astype(np.float64).clip(0.0, levels[-1])
            streams.append(field_bits(round_to(levels, entropy, generator.random()), ENTROPY_BITS))
        if self.keeps_tail:
            streams.append(field_bits(quantise(support.tail_n.cpu().numpy(), generator.random()), 8))
        if self.head:
            ids = support.head_ids_nH.cpu().numpy()
            rows, columns = np.nonzero(ids >= 0)
            masses = support.head_p_nH.cpu().numpy()[rows, columns]
            masses = self._set(rows, ids[rows, columns], masses, labels, streams, others)
            streams.append(field_bits(quantise(masses, generator.random()), 8))
        if self.draws:
            rows = support.draw_rows_Q.cpu().numpy()
            counts = support.draw_counts_Q.cpu().numpy()
            counts = self._set(rows, support.draw_ids_Q.cpu().numpy(), counts, labels, streams, others)
            if not self.head and self.rest != "votes":
                counts = counts[np.diff(rows, prepend=-1) == 0]
            streams.append(count_bits(counts))
        fixed = bytes.fromhex(context_hash)[:HASH_BYTES] + np.array(others, dtype="<u4").tobytes()
        return fixed + np.packbits(np.concatenate(streams), bitorder="little").tobytes()

    def _set(
        self,
        rows: np.ndarray,
        ids: np.ndarray,
        values: np.ndarray,
        labels: np.ndarray,
        streams: list[np.ndarray],
        others: list[int],
    ) -> np.ndarray:
        """Write a set of ids; returns `values` in the order in which they are read."""
        order = np.argsort(rows * (self.vocab + 1) + np.where(ids == labels[rows], 0, ids + 1))
        bits, other = set_bits(rows[order], ids[order], labels, self.classes)
        streams.append(bits)
        others.append(other)
        return values[order]

    def decode(self, records: Sequence[tuple[np.ndarray, np.ndarray]]) -> Dist:
        """Distributions of several traces, one after the other. `records` are (bytes, labels of its positions).

        Raises ValueError for an empty list."""
        if not records:
            raise ValueError("nothing to decode: the list of records is empty")
        labels = np.concatenate([each for _, each in records]).astype(np.int64)
        sizes = np.array([len(each) for _, each in records], dtype=np.int64)
        ends = np.cumsum([0, *(len(buffer) for buffer, _ in records)])
        buffer = np.concatenate([*(buffer for buffer, _ in records), np.zeros(PAD, dtype=np.uint8)])
        num_sets = (self.head > 0) + (self.draws > 0)
        at = ends[:-1] + HASH_BYTES
        others = buffer[at[:, None] + np.arange(4 * num_sets)].view("<u4").astype(np.int64).T
        streams = Streams(buffer, 8 * (at + 4 * num_sets), sizes)
        entropy = self.entropy_levels[streams.numbers(sizes, ENTROPY_BITS)] if self.keeps_entropy else None
        if self.head:
            ids_NK, p_NC = self._read_heads(streams, others, labels)
            with np.errstate(divide="ignore"):
                logp_NC = np.log(p_NC).astype(np.float32)
            logp_NK, tail_N = np.ascontiguousarray(logp_NC[:, :-1]), np.ascontiguousarray(logp_NC[:, -1])
        else:
            sets, counts = self._read_draws(streams, others[-1], labels)
            flat, width = _cells(sets.sizes)
            ids_NK = _filled(len(labels), width, flat, sets.ids, -1)
            shares = counts / np.repeat(self._ballots(sets.sizes, counts), sets.sizes)
            logp_NK = _filled(len(labels), width, flat, np.log(shares).astype(np.float32), -np.inf)
            tail_N = np.full(len(labels), -np.inf, dtype=np.float32)
        entropy_N = None if entropy is None else torch.from_numpy(entropy.astype(np.float32))
        return Dist(
            torch.from_numpy(ids_NK),
            torch.from_numpy(logp_NK),
            torch.from_numpy(tail_N),
            entropy_N,
            self.rest == "spread",
        )

    def _read_heads(self, streams: Streams, others: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and, with one more column for the tail, masses: of a head, its tail, and draws from it."""
        num = len(labels)
        tail_N = LEVELS[streams.numbers(streams.sizes, 8)] if self.keeps_tail else np.zeros(num)
        head = streams.sets(others[0], labels, self.classes)
        per_record = streams.per_record(head.sizes)
        masses = LEVELS[streams.numbers(per_record, 8)]
        tail_N[head.sizes == self.vocab] = 0.0  # nothing is outside
        drawn, counts = IdSets(np.zeros(num, dtype=np.int64), np.zeros(0, dtype=np.int64)), None
        if self.draws:
            drawn, counts = self._read_draws(streams, others[1], labels)
        extra = self.rest == "gold"
        width = int((head.sizes + drawn.sizes).max(initial=1)) + extra
        rows = np.arange(num)
        at = ranges(rows * width, head.sizes)
        ids_NK = _filled(num, width, at, head.ids, -1)
        p_NC = np.zeros((num, width + 1))
        p_NC[:, -1] = tail_N
        p_NC.reshape(-1)[ranges(rows * (width + 1), head.sizes)] = masses
        if self.rest == "renormalise":
            return ids_NK, p_NC / p_NC.sum(1, keepdims=True)
        p_NC[rows, p_NC.argmax(1)] += 1.0 - p_NC.sum(1)
        np.maximum(p_NC, 0.0, out=p_NC)
        if extra:
            has = (ids_NK[:, 0] == labels) & (head.sizes > 0)
            column = np.where(has, 0, head.sizes)
            ids_NK[rows, column] = labels
            p_NC[rows, column] += p_NC[:, -1]
            p_NC[:, -1] = 0.0
        if counts is not None:
            ids_NK.reshape(-1)[ranges(rows * width + head.sizes, drawn.sizes)] = drawn.ids
            of = np.repeat(rows, drawn.sizes)
            per_position = np.bincount(of, weights=counts, minlength=num)
            share = p_NC[of, -1] * counts / per_position[of]
            p_NC.reshape(-1)[ranges(rows * (width + 1) + head.sizes, drawn.sizes)] = share
            p_NC[drawn.sizes > 0, -1] = 0.0
        return ids_NK, p_NC

    def _ballots(self, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """All draws of each position."""
        if self.rest != "votes":
            return np.full(len(sizes), self.draws)
        return np.bincount(np.repeat(np.arange(len(sizes)), sizes), weights=counts, minlength=len(sizes))

    def _read_draws(self, streams: Streams, others: np.ndarray, labels: np.ndarray) -> tuple[IdSets, np.ndarray]:
        """Drawn ids and how often each was drawn."""
        sets = streams.sets(others, labels, self.classes)
        per_record = streams.per_record(sets.sizes)
        if self.head or self.rest == "votes":
            return sets, streams.counts(per_record)
        counts = np.zeros(len(sets.ids), dtype=np.int64)
        first = np.cumsum(sets.sizes) - sets.sizes
        later = np.ones(len(sets.ids), dtype=np.bool_)
        later[first] = False
        counts[later] = streams.counts(per_record - streams.sizes)
        if len(first):
            counts[first] = self.draws - np.add.reduceat(counts, first)
        return sets, counts


def quantise(p: np.ndarray, start: float) -> np.ndarray:
    """Codes of masses, so that the mean of LEVELS[code] over `start` (uniform in [0, 1)) is p. Below the last level
    (2e-9) the last code is used."""
    return 255 - round_to(LEVELS[::-1], p.astype(np.float64), start)


def round_to(levels: np.ndarray, values: np.ndarray, start: float) -> np.ndarray:
    """Index of the level below or above each value, in ascending `levels`. Each one is rounded up with the odds that
    keep its expectation; systematically, one number for all, so that what neighbours gain and lose nearly cancels."""
    low = np.clip(np.searchsorted(levels, values, side="right") - 1, 0, len(levels) - 2)
    odds = np.clip((values - levels[low]) / (levels[low + 1] - levels[low]), 0.0, 1.0)
    return low + np.diff(np.floor(np.cumsum(odds) + start), prepend=0.0).astype(np.int64)


def _cells(sizes: np.ndarray) -> tuple[np.ndarray, int]:
    """Flat places of rows of the given sizes, padded to one width."""
    width = int(sizes.max(initial=1))
    return ranges(np.arange(len(sizes)) * width, sizes), width


def _filled(num: int, width: int, flat: np.ndarray, values: np.ndarray, empty: float) -> np.ndarray:
    out = np.full((num, width), empty, dtype=values.dtype)
    out.reshape(-1)[flat] = values
    return out
