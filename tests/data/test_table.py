from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.data.table import read_rows, write_rows
from limbeck.errors import StoreError
from limbeck.types import Row

if TYPE_CHECKING:
    from pathlib import Path


def rows(num: int) -> list[Row]:
    draw = np.random.default_rng(0)
    out = []
    for index in range(num):
        ids = draw.integers(0, 2**31 - 1, size=2 + index % 50).astype(np.int32)
        spans = () if index % 7 == 3 else ((1, len(ids)),) if index % 2 else ((1, 2), (2, len(ids)))[: len(ids) - 1]
        out.append(
            Row(
                f"{index:016x}",
                ("train", "heldout")[index % 2],
                "tö",
                f"text\n{index}\0é",
                ids,
                spans,
                "f:1",
                "[]" * (index % 2),
                "é\0" * (index % 3),
            )
        )
    return out


def same(a: Row, b: Row) -> bool:
    plain = [field.name for field in fields(Row) if field.name != "ids"]
    return (
        all(getattr(a, name) == getattr(b, name) for name in plain)
        and a.ids.dtype == b.ids.dtype
        and np.array_equal(a.ids, b.ids)
    )


@pytest.mark.parametrize("num", [0, 1, 9000])
def test_what_is_written_is_read(tmp_path: Path, num: int) -> None:
    written = rows(num)
    write_rows(tmp_path / "data" / "rows.parquet", written)
    found = read_rows(tmp_path / "data" / "rows.parquet")
    assert len(found) == num and all(same(a, b) for a, b in zip(written, found, strict=True))
    assert all(row.ids.flags.owndata for row in found)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["rows.parquet"]


def test_the_same_rows_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / name, rows(100))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_missing_rows(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there are no rows at .*limbeck run"):
        read_rows(tmp_path / "rows.parquet")


def test_every_flipped_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    """A changed byte is refused, or it changed nothing: unused bytes of the footer."""
    file = tmp_path / "rows.parquet"
    written = rows(20)
    write_rows(file, written)
    whole = file.read_bytes()
    refused = 0
    for at in range(0, len(whole), 23):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        try:
            found = read_rows(file)
        except StoreError:
            refused += 1
        else:
            assert all(same(a, b) for a, b in zip(written, found, strict=True))
    assert refused > 0.6 * len(range(0, len(whole), 23))
    for cut in (0, 4, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(StoreError, match="is damaged"):
            read_rows(file)


def test_pages_carry_checksums(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    write_rows(file, rows(20))
    whole = bytearray(file.read_bytes())
    whole[60] ^= 1
    file.write_bytes(whole)
    with pytest.raises(StoreError, match="is damaged.*[Cc][Rr][Cc]"):
        read_rows(file)


def test_rows_changed_by_another_program_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    write_rows(file, rows(3))
    table = pq.read_table(file)
    changed = [replace(row, topic="other") for row in rows(3)]
    pq.write_table(table.set_column(2, "topic", pa.array([row.topic for row in changed])), file)
    with pytest.raises(StoreError, match="not those that were written"):
        read_rows(file)
    pq.write_table(table.set_column(5, "spans", pa.array([[1, 2]] * 3, pa.list_(pa.int32()))), file)
    with pytest.raises(StoreError, match="not those that were written"):
        read_rows(file)
    pq.write_table(table.drop_columns(["spans"]), file)
    with pytest.raises(StoreError, match="is damaged"):
        read_rows(file)
