"""A prompt as a sparse vector: hashed n-grams of characters and words. Nothing is downloaded, nothing is learnt but how
often each bucket occurs; all of it is a handful of numpy calls, whatever the length.

`C` characters read, `M` buckets that a prompt fills, `B` buckets in all.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

HEAD, TAIL = 3072, 1024  # characters read from the beginning and the end of a longer prompt
CHARS, WORDS = (2, 3, 4, 5), (1, 2)  # lengths of n-grams
BITS = 16  # 2**16 buckets
SKETCH = 256
SPACE = 32

# A number of 64 bits for every run of characters, by prefix sums of a polynomial: odd, so it has an inverse.
BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 1 << 64)
LONGEST = HEAD + TAIL + 3


def _powers(base: int) -> np.ndarray:
    out, value = np.empty(LONGEST + 1, np.uint64), 1
    for at in range(LONGEST + 1):
        out[at], value = value, value * base % (1 << 64)
    return out


POWERS, INVERSES = _powers(BASE), _powers(INVERSE)


class Vector(NamedTuple):
    """`buckets_M` int64 ascending, `values_M` fp32 of length 1 (or both empty)."""

    buckets_M: np.ndarray
    values_M: np.ndarray


def plain(prompt: str) -> str:
    """What is read of a prompt: its first 3,072 and last 1,024 characters, compatible forms and case aside, every run
    of white space a blank. Lone surrogates are kept: nothing that is a `str` is refused."""
    if len(prompt) > HEAD + TAIL:
        prompt = f"{prompt[:HEAD]} {prompt[-TAIL:]}"
    if not prompt.isascii():
        prompt = unicodedata.normalize("NFKC", prompt)
    return " ".join(prompt.casefold().split())[: HEAD + TAIL]


class Features(Protocol):
    """What makes a prompt a vector: `Hashing`, or an encoder (`router_encoder.TextEncoder`)."""

    @property
    def size(self) -> int:
        """Buckets in all."""
        ...

    @property
    def hash(self) -> str:
        """Of the files behind it, "" where there are none."""
        ...

    def counts(self, prompt: str) -> Vector:
        """A prompt's buckets, before they are weighted. Any text has a vector."""
        ...


@dataclass(frozen=True)
class Hashing:
    """n-grams to buckets: `bits` of a hash that `seed` changes. The same on every machine."""

    bits: int = BITS
    seed: int = 0

    @property
    def size(self) -> int:
        return 1 << self.bits

    @property
    def hash(self) -> str:
        return ""

    def counts(self, prompt: str) -> Vector:
        """How often each bucket occurs, as 1 + log(count). Not yet of length 1."""
        text = f" {plain(prompt)} "
        codes_C = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        if len(codes_C) < 3:
            return Vector(np.empty(0, np.int64), np.empty(0, np.float32))
        sums_C = np.zeros(len(codes_C) + 1, np.uint64)
        np.cumsum((codes_C + np.uint64(1)) * POWERS[: len(codes_C)], out=sums_C[1:])
        parts = [self._runs(sums_C, n) for n in CHARS if n <= len(codes_C)]
        blanks = np.flatnonzero(codes_C == SPACE)
        starts, ends = blanks[:-1] + 1, blanks[1:]
        parts += [
            self._spread(_between(sums_C, starts[: len(starts) - n + 1], ends[n - 1 :]), 64 + n)
            for n in WORDS
            if n <= len(starts)
        ]
        buckets = np.concatenate(parts)
        buckets.sort()
        first = np.flatnonzero(np.concatenate(([True], buckets[1:] != buckets[:-1])))
        times = np.diff(first, append=len(buckets))
        return Vector(buckets[first].astype(np.int64), (1.0 + np.log(times)).astype(np.float32))

    def _runs(self, sums_C: np.ndarray, n: int) -> np.ndarray:
        starts = np.arange(len(sums_C) - n)
        return self._spread(_between(sums_C, starts, starts + n), n)

    def _spread(self, runs: np.ndarray, kind: int) -> np.ndarray:
        """The finisher of splitmix64 (Steele et al. 2014): every bit of a run's number reaches every bit of the
        bucket."""
        mixed = runs ^ np.uint64((self.seed * 0x9E3779B97F4A7C15 + kind * 0xD1B54A32D192ED03) % (1 << 64))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (mixed >> np.uint64(64 - self.bits)).astype(np.uint32)


def _between(sums_C: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return (sums_C[ends] - sums_C[starts]) * INVERSES[starts]


def sketch(vector: Vector) -> np.ndarray:
    """The vector in 256 dimensions, fp32: every bucket is added to one of them, with a sign that its number gives
    (Charikar et al. 2002). Inner products are kept on average, within about 0.06."""
    spread = vector.buckets_M.astype(np.uint64) * np.uint64(INVERSE)
    place, sign = (spread >> np.uint64(56)).astype(np.int64), (spread >> np.uint64(55)) & np.uint64(1)
    signed = np.where(sign == 1, vector.values_M, -vector.values_M)
    return np.bincount(place, signed, SKETCH).astype(np.float32)


def rarity(counted: Iterable[Vector], size: int) -> np.ndarray:
    """Per bucket, fp32 [size]: log((1 + prompts) / (1 + prompts that fill it)) + 1. What was never seen weighs most."""
    seen, total = np.zeros(size), 0
    for vector in counted:
        seen[vector.buckets_M] += 1
        total += 1
    return (np.log((1 + total) / (1 + seen)) + 1).astype(np.float32)


def weighted(counted: Vector, rarity_B: np.ndarray) -> Vector:
    """Counts times rarity, of Euclidean length 1."""
    values = counted.values_M * rarity_B[counted.buckets_M]
    length = float(np.sqrt(values @ values))
    return Vector(counted.buckets_M, values / length if length else values)
