"""Text as words, and runs of words as numbers: what duplicates, contamination and loops are found by."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

# Han and kana stand without spaces between words: each character is one.
ALONE = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Vowel signs and points, which are no letters to Python: they belong to their words.
SIGNS = "\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8"
SIGNS += "\u0900-\u0963\u0966-\u0dff"
# A sign before a number is no punctuation: 5+8 is another problem than 5-8.
OPERATOR = r"[-+*/^=<>\u00d7\u00f7\u2212](?=\s*\d)"
WORD = re.compile(rf"[{ALONE}]|(?:[^\W{ALONE}]|[{SIGNS}])+|{OPERATOR}")
ASCII_WORD = re.compile(rf"\w+|{OPERATOR}")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: nothing is lost in products modulo 2^64


def words(text: str) -> list[str]:
    """Words in order: compatible forms, case and punctuation aside. A character of Han or kana is a word, and so is an
    operator before a number."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return (ASCII_WORD if folded.isascii() else WORD).findall(folded)


def runs(words: Sequence[str], n: int) -> np.ndarray:
    """Every run of `n` words as a number of 64 bits, in order: uint64 [len(words) - n + 1], none for fewer words."""
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, np.uint64)
    each = np.fromiter(map(_number, words), np.uint64, len(words))
    numbers = each[:count].copy()
    for offset in range(1, n):
        numbers = numbers * FACTOR + each[offset : offset + count]
    return numbers


@lru_cache(1 << 18)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest())
