"""Bits, a whole batch of them at a time: fields of any width, sets of ids, small counts. Nothing loops over positions.

Bits are in little-endian order within a byte, the lowest of a number first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CLASSES = 8
PAD = 8  # bytes behind a buffer, so that a window of 64 bits can begin at its last byte


def field_bits(values: np.ndarray, widths: np.ndarray | int) -> np.ndarray:
    """The bits (uint8, 0 or 1) of unsigned numbers, one after the other, each in its own width."""
    widths = np.broadcast_to(np.asarray(widths, dtype=np.int64), values.shape)
    start = np.cumsum(widths) - widths
    place = np.arange(int(widths.sum())) - np.repeat(start, widths)
    return (np.repeat(values.astype(np.int64), widths) >> place & 1).astype(np.uint8)


def windows(buffer: np.ndarray) -> np.ndarray:
    """A view of a buffer (uint8, with PAD bytes to spare): the 64-bit number that begins at each byte."""
    return np.ndarray(len(buffer) - PAD, "<u8", buffer, strides=(1,))


def read_fields(view: np.ndarray, at: np.ndarray, widths: np.ndarray | int) -> np.ndarray:
    """The numbers at the bit offsets `at`, of at most 56 bits: int64."""
    return (view[at >> 3].astype(np.int64) >> (at & 7)) & ((1 << np.asarray(widths, dtype=np.int64)) - 1)


def pieces(flat: np.ndarray, start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Slices of a flat array, one after the other."""
    return np.concatenate([flat[a : a + n] for a, n in zip(start.tolist(), size.tolist(), strict=True)])


def ranges(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1 ..., `size[0]` of them, then those of the next."""
    return np.repeat(start - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))


class IdClasses(NamedTuple):
    """Ids in eight classes, the first of eight ids, each next one four times as wide, the last one the rest.

    A tokenizer numbers frequent tokens first (pair merges in the order they were learned), so this is nearly a
    code by frequency: an id costs about log2(id) bits, whatever the vocabulary.
    """

    widths: np.ndarray  # bits within the class
    edges: np.ndarray  # the first id of each class

    @classmethod
    def of(cls, vocab: int) -> IdClasses:
        widths = [3 + 2 * number for number in range(CLASSES - 1)]
        edges = np.cumsum([0, *(1 << width for width in widths)])
        widths.append(max(int(vocab - edges[-1] - 1), 0).bit_length())
        return cls(np.array(widths, dtype=np.int64), edges)


class IdSets(NamedTuple):
    """The ids of many positions: `sizes` of each, and all of them in order (the label first, then ascending)."""

    sizes: np.ndarray
    ids: np.ndarray


def set_bits(rows: np.ndarray, ids: np.ndarray, labels: np.ndarray, classes: IdClasses) -> tuple[np.ndarray, int]:
    """The bits of a set of ids at each position, given in the order of `IdSets`, and how many of them are not labels.

    Labels are known to the reader: whether it is in the set is one bit. The others are sorted, so their classes are
    written as a walk: a 1 is another id of this class, a 0 goes to the next class, eight of them to the next position.
    """
    given = ids == labels[rows]
    flags = np.zeros(len(labels), dtype=np.uint8)
    flags[rows[given]] = 1
    rows, ids = rows[~given], ids[~given]
    which = np.searchsorted(classes.edges, ids, side="right") - 1
    walk = np.zeros(len(ids) + CLASSES * len(labels), dtype=np.uint8)
    walk[np.arange(len(ids)) + rows * CLASSES + which] = 1
    return np.concatenate([flags, walk, field_bits(ids - classes.edges[which], classes.widths[which])]), len(ids)


class Streams:
    """A cursor over the records of a batch: every `read` takes the next stream of all records at once.

    `buffer` are all records, one after the other, and PAD bytes; `at` the bit at which each one is to be read on;
    `sizes` their numbers of positions.
    """

    def __init__(self, buffer: np.ndarray, at: np.ndarray, sizes: np.ndarray) -> None:
        self.view, self.bits = windows(buffer), np.unpackbits(buffer, bitorder="little")
        self.at, self.sizes = at, sizes
        self.record = np.repeat(np.arange(len(sizes)), sizes)  # of each position

    def numbers(self, count: np.ndarray, width: int) -> np.ndarray:
        """`count` numbers of one width of each record."""
        total = int(count.sum())
        at = np.repeat(self.at - width * (np.cumsum(count) - count), count) + width * np.arange(total)
        self.at = self.at + count * width
        return read_fields(self.view, at, width)

    def sets(self, others: np.ndarray, labels: np.ndarray, classes: IdClasses) -> IdSets:
        """The inverse of `set_bits`; `others` are its second result, of each record."""
        flags = pieces(self.bits, self.at, self.sizes)
        length = others + CLASSES * self.sizes
        walk = pieces(self.bits, self.at + self.sizes, length)
        self.at = self.at + self.sizes + length
        ones = np.flatnonzero(walk)
        number = np.arange(len(ones))
        steps = ones - number
        rows, which = steps // CLASSES, steps % CLASSES
        widths = classes.widths[which]
        ids = classes.edges[which] + read_fields(self.view, self._varying(others, widths), widths)
        before = np.cumsum(flags, dtype=np.int64)
        sizes = np.bincount(rows, minlength=len(labels)) + flags
        out = np.empty(len(ones) + (int(before[-1]) if len(before) else 0), dtype=np.int64)
        given = np.flatnonzero(flags)
        out[(np.cumsum(sizes) - sizes)[given]] = labels[given]
        out[number + before[rows]] = ids
        return IdSets(sizes, out)

    def counts(self, count: np.ndarray) -> np.ndarray:
        """`count` numbers from 1 of each record, as Elias wrote them: the length in unary, then the other bits."""
        limit = np.concatenate([self.at[1:], [len(self.bits)]])
        ones, ends = [], []
        for start, stop, num in zip(self.at.tolist(), limit.tolist(), count.tolist(), strict=True):
            found = np.flatnonzero(self.bits[start:stop])[:num]
            ones.append(np.diff(found, prepend=-1))
            ends.append(start + int(found[-1]) + 1 if num else start)
        lengths = np.concatenate(ones) - 1
        self.at = np.array(ends, dtype=np.int64)
        at = self._varying(count, lengths)
        values = np.ones(len(lengths), dtype=np.int64)
        long = np.flatnonzero(lengths)
        values[long] = (1 << lengths[long]) + read_fields(self.view, at[long], lengths[long])
        return values

    def _varying(self, count: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Offsets of `count` fields of each record, each of its own width."""
        ends = np.concatenate([[0], np.cumsum(widths)])
        cuts = np.cumsum(count)
        at = np.repeat(self.at - ends[cuts - count], count) + ends[:-1]
        self.at = self.at + ends[cuts] - ends[cuts - count]
        return at


def count_bits(counts: np.ndarray) -> np.ndarray:
    """The bits of numbers from 1: the inverse of `Streams.counts`."""
    lengths = np.frexp(counts.astype(np.float64))[1].astype(np.int64) - 1
    unary = np.zeros(int(lengths.sum()) + len(lengths), dtype=np.uint8)
    unary[np.cumsum(lengths) + np.arange(len(lengths))] = 1
    return np.concatenate([unary, field_bits(counts - (1 << lengths), lengths)])
