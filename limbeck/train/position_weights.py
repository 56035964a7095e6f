"""How much each position counts, from its token and its place: the weights of a batch that need no teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from limbeck.recipe import FirstTokens, PlaceRamp, TokenWeights
from limbeck.text.token_bytes import bytes_of, is_byte_level
from limbeck.types import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.recipe import PositionWeights
    from limbeck.types import Row

CLASSES = tuple(TokenWeights.model_fields)


def token_text(token: str, *, byte_level: bool) -> str:
    """What a token of a vocabulary stands for, as text."""
    return bytes_of(token, byte_level=byte_level).decode("utf-8", "replace")


def class_of(text: str) -> str:
    """The class of a token that is not special."""
    bare = text.strip()
    if not bare:
        return "whitespace"
    if bare.isdecimal():
        return "digits"
    # A replaced character is part of a letter of more than one byte.
    return "words" if any(char.isalnum() or char == "\ufffd" for char in bare) else "punctuation"


def token_classes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The class of every token id, as an index into `CLASSES`: int64 [V]."""
    byte_level = is_byte_level(tokenizer)
    vocabulary = tokenizer.get_vocab()
    classes = np.full(max(vocabulary.values()) + 1, CLASSES.index("words"))
    for token, index in vocabulary.items():
        classes[index] = CLASSES.index(class_of(token_text(token, byte_level=byte_level)))
    special = {index for index, added in tokenizer.added_tokens_decoder.items() if added.special}
    classes[sorted(special | set(tokenizer.all_special_ids))] = CLASSES.index("special")
    end: object = tokenizer.eos_token_id
    if isinstance(end, int):
        classes[end] = CLASSES.index("end")
    return classes


def place_weights(by: FirstTokens | PlaceRamp, length: int) -> np.ndarray:
    """Weights of the first `length` supervised tokens of a document or reply: float64 [length]."""
    place = np.arange(length)
    if isinstance(by, FirstTokens):
        return np.where(place < by.tokens, by.weight, 1.0)
    return by.start + (by.end - by.start) * np.minimum(place / max(by.tokens - 1, 1), 1.0)


def weigher(
    by: PositionWeights, tokenizer: Callable[[], PreTrainedTokenizerBase]
) -> Callable[[Sequence[Row | Trace]], np.ndarray] | None:
    """From documents to the weights of their supervised positions, in order: float32 [N]. None when all are 1. The
    tokenizer is only asked for where classes of tokens count."""
    tokens, place = by.tokens, by.place
    if tokens is None and place is None:
        return None
    table = None
    if tokens is not None:
        table = np.array([float(getattr(tokens, name)) for name in CLASSES])[token_classes(tokenizer())]

    def weights(items: Sequence[Row | Trace]) -> np.ndarray:
        parts = [np.zeros(0)]
        for item in items:
            for start, end in item.spans:
                own = np.ones(end - start) if table is None else table[item.ids[start:end]]
                parts.append(own if place is None else own * place_weights(place, end - start))
        return np.concatenate(parts).astype(np.float32)

    return weights


def trace_weigher(items: Sequence[Row | Trace]) -> Callable[[Sequence[Row | Trace]], np.ndarray] | None:
    """Each document's own weight (`meta.weight`: its share of votes) at all its positions: float32 [N]. Scaled so that
    the mean over the positions of all `items` is 1: a step divides by the number of positions, so loss and rate are
    those of a data set in which each document stands as often as it counts. None when all count alike."""
    own = [_own_weight(item) for item in items]
    total = sum(weight * item.num_supervised for weight, item in zip(own, items, strict=True))
    if len(set(own)) < 2 or not total:
        return None
    scale = sum(item.num_supervised for item in items) / total

    def weights(chosen: Sequence[Row | Trace]) -> np.ndarray:
        each = np.array([scale * _own_weight(item) for item in chosen])
        return np.repeat(each, [item.num_supervised for item in chosen]).astype(np.float32)

    return weights


def _own_weight(item: Row | Trace) -> float:
    return float(item.meta.get("weight", 1.0)) if isinstance(item, Trace) else 1.0
