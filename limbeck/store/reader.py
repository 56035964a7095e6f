"""Reading a store: traces from Parquet, their distributions through a memory map."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import StoreError
from limbeck.store.codec import HASH_BYTES
from limbeck.store.header import StoreHeader, check_context
from limbeck.store.writer import damaged_shards, read_header, read_manifest
from limbeck.text.packing import labels_of
from limbeck.types import Dist, Trace

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class _RowPlace:
    shard: int
    offset: int
    size: int


class TraceStore:
    """A finished or growing store, read only. `open` verifies every shard unless told not to."""

    def __init__(self, path: Path, header: StoreHeader, entries: list[dict[str, Any]]) -> None:
        self.path, self.header, self.entries = path, header, entries
        self._places: dict[str, _RowPlace] = {}
        self._traces: list[Trace] = []
        self._rows: set[str] = set()
        self._maps: dict[int, np.ndarray] = {}
        for entry in entries:
            self._read_shard(entry["shard"])

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> TraceStore:
        """Raises StoreError for a missing store, another version, or a damaged shard (named)."""
        path = Path(path)
        header, entries = read_header(path), read_manifest(path)
        wrong = damaged_shards(path, entries) if verify else {}
        if wrong:
            names = "; ".join(f"shard {shard}: {why}" for shard, why in wrong.items())
            raise StoreError(f"{path}: {names}. Run `limbeck label` again: only those shards are labelled anew.")
        return cls(path, header, entries)

    def _read_shard(self, shard: int) -> None:
        file = self.path / f"shard-{shard:05d}.parquet"
        try:
            table = pq.read_table(file, page_checksum_verification=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(f"{file} cannot be read: {error}. Run `limbeck label` again to make it anew.") from error
        rows = table.to_pylist()
        for row in rows:
            if row["row_id"] in self._rows:  # a row of two shards (see `StoreWriter.want`): the first one counts
                continue
            spans = row["spans"]
            trace = Trace(
                id=row["id"],
                row_id=row["row_id"],
                split=row["split"],
                topic=row["topic"],
                text=row["text"],
                ids=np.asarray(row["ids"], dtype=np.int32),
                spans=tuple(zip(spans[::2], spans[1::2], strict=True)),
                lm=self.header.lm,
                tokenizer=self.header.tokenizer_hash,
                context_hash=row["context_hash"],
                meta=json.loads(row["meta"]),
            )
            self._traces.append(trace)
            self._places[trace.id] = _RowPlace(shard, row["offset"], row["size"])
        self._rows.update(row["row_id"] for row in rows)

    def traces(self, split: str | None = None) -> list[Trace]:
        """All traces in order of shard and row; of one split where given."""
        return [trace for trace in self._traces if split is None or trace.split == split]

    @property
    def positions(self) -> int:
        return sum(entry["positions"] for entry in self.entries)

    @property
    def target_bytes(self) -> int:
        """Bytes of all targets files."""
        return sum(f["bytes"] for entry in self.entries for name, f in entry["files"].items() if ".targets" in name)

    def dist(self, trace: Trace) -> Dist:
        return self.dists([trace])

    def dists(self, traces: Sequence[Trace]) -> Dist:
        """The distributions of several traces, one after the other, positions in order: N = sum of their supervised
        positions. Raises StoreError when a trace's tokens are not those that its record was computed on."""
        return self.header.codec.decode([(self._record(trace), labels_of(trace)) for trace in traces])

    def _record(self, trace: Trace) -> np.ndarray:
        place = self._places.get(trace.id)
        if place is None:
            raise StoreError(f"trace {trace.id} is not in the store {self.path}; run `limbeck label` first.")
        if place.shard not in self._maps:
            self._maps[place.shard] = np.memmap(self.path / f"shard-{place.shard:05d}.targets", np.uint8, mode="r")
        record = self._maps[place.shard][place.offset : place.offset + place.size]
        check_context(trace, record[:HASH_BYTES].tobytes().hex())
        return record
