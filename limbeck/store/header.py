"""What a store says about itself, and how a trace is identified."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from limbeck.errors import StoreError
from limbeck.store.codec import Codec
from limbeck.system.atomic import fingerprint
from limbeck.types import Row, Span, Trace

VERSION = 2


@dataclass(frozen=True)
class StoreHeader:
    """The identity of a store: everything that its distributions depend on besides the tokens themselves.

    `kind` is top_k, sampled or hybrid, `head`, `draws`, `min_prob` its sizes, `rest` how the mass outside a
    head is read (`Codec`); `temperature` the one the distributions were taken at; `dtype` the teacher's.
    """

    version: int
    kind: str
    head: int
    draws: int
    min_prob: float
    rest: str
    vocab: int
    temperature: float
    dtype: str
    lm: str
    lm_name: str
    tokenizer_hash: str
    template_hash: str
    mode: dict[str, Any]
    seed: int

    @property
    def codec(self) -> Codec:
        return Codec(self.vocab, self.head, self.draws, self.rest)

    @property
    def fingerprint(self) -> str:
        return fingerprint(asdict(self))


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("row_id", pa.string()),
        ("split", pa.string()),
        ("topic", pa.string()),
        ("text", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("spans", pa.list_(pa.int32())),  # start, end, start, end ...
        ("context_hash", pa.string()),
        ("meta", pa.string()),  # JSON
        ("offset", pa.int64()),  # of the trace's record in the shard's targets file
        ("size", pa.int64()),
    ]
)


def trace_id(row_id: str, header: StoreHeader, draw: int) -> str:
    """Hash of the prompt, the LM, the sampling and the draw."""
    return fingerprint(row_id, header.lm, header.mode, header.seed, draw)


def context_hash(ids: np.ndarray, spans: tuple[Span, ...]) -> str:
    """16 hex digits over exactly the tokens and the supervised positions that a record belongs to."""
    digest = hashlib.sha256(np.ascontiguousarray(ids, dtype="<i4").tobytes())
    digest.update(np.asarray(spans, dtype="<i4").tobytes())
    return digest.hexdigest()[:16]


def check_context(item: Row | Trace, stored_hash: str) -> None:
    """Raise StoreError unless `item` has the very tokens that the stored distributions were computed on."""
    found = context_hash(item.ids, item.spans)
    if found != stored_hash:
        raise StoreError(
            f"trace {item.id}: its stored distributions were computed on other tokens (context hash {stored_hash}, "
            f"found {found}). Targets only fit the tokens they were made for; label again with `limbeck label`."
        )
