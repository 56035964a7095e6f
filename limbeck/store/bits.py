"""Bits, a whole batch of them at a time: fields of any width, sets of ids, small counts. Nothing loops over positions.

Bits are in little-endian order within a byte, the lowest of a number first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CLASS_BITS = 3
CLASSES = 1 << CLASS_BITS
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
    out = view[at >> 3].view(np.int64)
    out >>= at & 7
    out &= (1 << np.asarray(widths, dtype=np.int64)) - 1
    return out


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
    """A cursor over the records of a batch: every method takes the next stream of all records at once.

    `buffer` are all records, one after the other, and PAD bytes; `at` the bit at which each one is to be read on;
    `sizes` their numbers of positions.
    """

    def __init__(self, buffer: np.ndarray, at: np.ndarray, sizes: np.ndarray) -> None:
        self.view = windows(buffer)
        self.bits = np.unpackbits(buffer, bitorder="little").view(np.bool_)  # numpy finds ones among bools much faster
        self.at, self.sizes, self.ends = at, sizes, np.cumsum(sizes)

    def per_record(self, values: np.ndarray) -> np.ndarray:
        """The sums over each record of a value of each position."""
        upto = np.concatenate([[0], np.cumsum(values)])
        return upto[self.ends] - upto[self.ends - self.sizes]

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
        steps = np.flatnonzero(walk)
        steps -= np.arange(len(steps))  # zeros before each one
        which = steps & (CLASSES - 1)
        widths = classes.widths.take(which)
        ids = read_fields(self.view, self._varying(others, widths), widths)
        ids += classes.edges.take(which)
        steps >>= CLASS_BITS
        sizes = np.bincount(steps, minlength=len(labels)) + flags
        given = np.zeros(int(sizes.sum()), dtype=np.bool_)
        given[(np.cumsum(sizes) - sizes)[flags]] = True
        out = np.empty(len(given), dtype=np.int64)
        out[given] = labels[flags]
        np.logical_not(given, out=given)
        out[given] = ids
        return IdSets(sizes, out)

    def counts(self, count: np.ndarray) -> np.ndarray:
        """`count` numbers from 1 of each record, as Elias wrote them: the length in unary, then the other bits."""
        limit = np.concatenate([self.at[1:], [len(self.bits)]])
        found = [
            np.flatnonzero(self.bits[start:stop])[:num]
            for start, stop, num in zip(self.at.tolist(), limit.tolist(), count.tolist(), strict=True)
        ]
        ones = np.concatenate(found)
        lengths = np.diff(ones, prepend=0) - 1  # zeros between a one and the last
        filled = count > 0
        first = (np.cumsum(count) - count)[filled]
        lengths[first] = ones[first]
        self.at = self.at + np.array([int(each[-1]) + 1 if len(each) else 0 for each in found])
        values = np.ones(len(lengths), dtype=np.int64)
        long = np.flatnonzero(lengths)
        at = self._varying(count, lengths)[long]
        lengths = lengths[long]
        values[long] = (1 << lengths) + read_fields(self.view, at, lengths)
        return values

    def _varying(self, count: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Offsets of `count` fields of each record, each of its own width."""
        ends = np.zeros(len(widths) + 1, dtype=np.int64)
        np.cumsum(widths, out=ends[1:])
        cuts = np.cumsum(count)
        skipped = ends[cuts - count]
        at = np.repeat(self.at - skipped, count)
        at += ends[:-1]
        self.at = self.at + ends[cuts] - skipped
        return at


def count_bits(counts: np.ndarray) -> np.ndarray:
    """The bits of numbers from 1: the inverse of `Streams.counts`."""
    lengths = np.frexp(counts.astype(np.float64))[1].astype(np.int64) - 1
    unary = np.zeros(int(lengths.sum()) + len(lengths), dtype=np.uint8)
    unary[np.cumsum(lengths) + np.arange(len(lengths))] = 1
    return np.concatenate([unary, field_bits(counts - (1 << lengths), lengths)])
