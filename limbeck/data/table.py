"""Encoded rows on disk: one Parquet file, written whole or not at all, verified when it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import StoreError
from limbeck.system.atomic import atomic_path
from limbeck.types import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("topic", pa.string()),
        ("text", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("spans", pa.list_(pa.int32())),  # start, end, start, end ...
        ("source", pa.string()),
        ("messages", pa.string()),
        ("reference", pa.string()),
    ]
)
TEXTS = ("id", "split", "topic", "text", "source", "messages", "reference")
VERSION = 2
"""Of the rows file: a run whose rows are of another one makes them anew."""

DIGEST = b"limbeck.sha256"
GROUP_ROWS = 4096


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in order. Raises BudgetError when the disk is full; an older file stays until the new one is whole."""
    columns = {
        "ids": pa.array([row.ids for row in rows], pa.list_(pa.int32())),
        "spans": pa.array([[edge for span in row.spans for edge in span] for row in rows], pa.list_(pa.int32())),
    }
    for name in TEXTS:
        columns[name] = pa.array([getattr(row, name) for row in rows], pa.string())
    table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    table = table.replace_schema_metadata({DIGEST: _digest(rows)})
    with atomic_path(Path(path)) as tmp:
        pq.write_table(table, tmp, row_group_size=GROUP_ROWS, write_page_checksum=True)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, as they were written. Raises StoreError when it is missing or damaged anywhere."""
    advice = "Run the same command again with the stage file stages/data.json removed: the rows are made anew."
    if not Path(path).is_file():
        raise StoreError(f"there are no rows at {path}. Make them with `limbeck run` or `limbeck label`.")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        rows = [row for batch in table.select(SCHEMA.names).to_batches(GROUP_ROWS) for row in _rows(batch)]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}). {advice}") from error
    if (table.schema.metadata or {}).get(DIGEST) != _digest(rows):
        raise StoreError(f"{path} is damaged: its rows are not those that were written. {advice}")
    return rows


def _rows(batch: pa.RecordBatch) -> list[Row]:
    texts = {name: batch.column(name).to_pylist() for name in TEXTS}
    spans = [tuple(zip(edges[::2], edges[1::2], strict=True)) for edges in batch.column("spans").to_pylist()]
    ids = [np.array(one.values.to_numpy(), dtype=np.int32) for one in batch.column("ids")]
    return [
        Row(ids=ids[i], spans=spans[i], **{name: values[i] for name, values in texts.items()})
        for i in range(batch.num_rows)
    ]


def _digest(rows: Sequence[Row]) -> bytes:
    digest = hashlib.sha256()
    for row in rows:
        head = "\0".join((*(getattr(row, name) for name in TEXTS), str(row.spans), str(len(row.ids))))
        digest.update(head.encode())
        digest.update(np.ascontiguousarray(row.ids, dtype="<i4").tobytes())
    return digest.hexdigest().encode()
