"""Readers of files: JSON lines, Parquet, CSV and plain text. Rows are streamed and numbered; nothing is read whole."""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.data.columns import ROW_BYTES, Columns
from limbeck.errors import DataError
from limbeck.text.encode import Example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Refuse = Callable[[str], None]

BATCH_ROWS = 64
BATCH_BYTES = 2**28
"""Parquet is unpacked in batches of BATCH_ROWS rows, which may take at most BATCH_BYTES: small files can hide much."""

BAD_UTF8 = re.compile("[\udc80-\udcff]")


def find_files(path: str) -> list[Path]:
    """The data files that a file, folder or glob names, sorted. Raises DataError when there are none, and when a folder
    mixes tables and plain text, because a README beside a table is no row."""
    root = Path(path).expanduser()
    if root.is_file():
        files = [root]
    elif root.is_dir():
        files = [file for file in root.rglob("*") if not _hidden(file.relative_to(root)) and suffix_of(file) in READERS]
        texts = [file.name for file in files if suffix_of(file) in TEXTS]
        if texts and len(texts) < len(files):
            raise DataError(
                f"{path} holds both tables and texts ({min(texts)} ...). Choose with a glob, such as {path}/*.jsonl."
            )
    else:
        files = [Path(file) for file in glob.glob(str(root), recursive=True) if Path(file).is_file()]
    if not files:
        raise DataError(_nothing(root, path))
    wrong = [file for file in files if suffix_of(file) not in READERS]
    if wrong:
        packed = wrong[0].suffix.lower() in PACKED
        advice = "It is packed: unpack it." if packed else "Convert or rename it."
        raise DataError(f"{wrong[0]}: {wrong[0].suffix or 'no'} extension; allowed are {ALLOWED}. {advice}")
    return sorted(files)


def suffix_of(file: Path) -> str:
    """The extension, in small letters."""
    return file.suffix.lower()


def _hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _nothing(root: Path, path: str) -> str:
    if root.is_dir():
        return f"the folder {path} holds no data files; allowed are {ALLOWED}."
    if glob.has_magic(path):
        return f"no file matches {path}; the current folder is {Path.cwd()}."
    near = sorted(file.name for file in root.parent.glob("*") if suffix_of(file) in READERS)[:5]
    beside = f" Beside it are {', '.join(near)}." if near else ""
    return f"there is no file or folder {path}; the current folder is {Path.cwd()}.{beside}"


def read_file(file: Path, columns: Columns, refuse: Refuse) -> Iterator[Example]:
    """The examples of one file, by its extension. Malformed rows go to `refuse`, with file and row number; DataError
    when the file cannot be read at all or lacks a column."""
    try:
        yield from READERS[suffix_of(file)](file, columns, refuse)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}.") from error


def count_file(file: Path) -> int:
    """Rows of a file, without reading them: of Parquet exactly, of lines about."""
    if suffix_of(file) in TEXTS:
        return 1
    if suffix_of(file) == ".parquet":
        return _open_parquet(file).metadata.num_rows
    with file.open("rb") as handle:
        return sum(block.count(b"\n") for block in iter(lambda: handle.read(2**20), b""))


# ---- JSON lines ------------------------------------------------------------------------------------------------------


def read_jsonl(file: Path, columns: Columns, refuse: Refuse) -> Iterator[Example]:
    """One JSON object per line. Rows are numbered by line, from 1."""
    blank: list[int] = []
    number = 0
    with file.open("rb") as handle:
        for number, line in _lines(handle):
            source = f"{file}:{number}"
            if line is None:
                refuse(f"{source}: the line is longer than {ROW_BYTES:,} bytes.")
            elif not line.strip():
                blank.append(number)
            else:
                for empty in blank:  # only blank lines at the end are nothing
                    refuse(f"{file}:{empty}: the line is empty.")
                blank = []
                try:
                    row = _object(line, source)
                    yield columns.resolve(row, source).example(row, source)
                except DataError as error:
                    refuse(str(error))
    if number == len(blank):
        refuse(f"{file}: the file is empty.")


def _lines(handle: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None for one beyond the byte budget, which is passed over."""
    number = 0
    while line := handle.readline(ROW_BYTES + 1):
        number += 1
        whole = len(line) <= ROW_BYTES
        while not line.endswith(b"\n") and (rest := handle.readline(ROW_BYTES)):
            line = rest
        yield number, line.removeprefix(b"\xef\xbb\xbf") if whole else None


def _object(line: bytes, source: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: the line is not valid UTF-8 (byte {error.start + 1}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: the line is not JSON: {error}; each line must be one JSON object.") from error
    if not isinstance(row, dict):
        raise DataError(f"{source}: the line holds a JSON {type(row).__name__}; each line must be one JSON object.")
    return row


# ---- CSV -------------------------------------------------------------------------------------------------------------


def read_csv(file: Path, columns: Columns, refuse: Refuse) -> Iterator[Example]:
    """Comma-separated values with a header. Rows are numbered by the line they begin on."""
    limit = csv.field_size_limit(ROW_BYTES)
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            yield from _csv_rows(file, csv.reader(handle, strict=True), columns, refuse)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(file: Path, reader: Any, columns: Columns, refuse: Refuse) -> Iterator[Example]:
    lines = _csv_lines(file, reader, refuse)
    first = next(lines, None)
    if first is None:
        refuse(f"{file}: the file is empty.")
        return
    source, header = first
    columns = columns.resolve(header, str(file))
    _refuse_twice(header, columns, source)
    rows = 0
    for source, values in lines:
        rows += 1
        try:
            yield columns.example(_csv_row(header, values, source), source)
        except DataError as error:
            refuse(str(error))
    if not rows:
        refuse(f"{file}: the file has a header and no rows.")


def _refuse_twice(names: list[str], columns: Columns, where: str) -> None:
    """Of columns that are read: which of the two is meant cannot be told."""
    if repeated := [name for name in columns.names if names.count(name) > 1]:
        raise DataError(f"{where}: the header has the column {repeated[0]!r} twice; rename one.")


def _csv_lines(file: Path, reader: Any, refuse: Refuse) -> Iterator[tuple[str, list[str]]]:
    """Rows that are CSV and not blank, with where they begin."""
    while True:
        source = f"{file}:{reader.line_num + 1}"
        try:
            values = next(reader, None)
        except csv.Error as error:
            refuse(f"{source}: the row is not CSV: {error}.")
            continue
        if values is None:
            return
        if values:
            yield source, values


def _csv_row(header: list[str], values: list[str], source: str) -> dict[str, str]:
    if len(values) != len(header):
        raise DataError(f"{source}: the row has {len(values)} fields; the header has {len(header)}.")
    for name, value in zip(header, values, strict=True):
        if BAD_UTF8.search(value):
            raise DataError(f"{source}: column {name!r} is not valid UTF-8.")
    return dict(zip(header, values, strict=True))


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}. Is it whole?") from error


def read_parquet(file: Path, columns: Columns, refuse: Refuse) -> Iterator[Example]:
    """Rows are numbered from 1. Page checksums are verified where the file has them."""
    number = 0
    with contextlib.closing(_open_parquet(file)) as table:
        names = table.schema_arrow.names
        columns = columns.resolve(names, str(file))
        _refuse_twice(names, columns, str(file))
        batches = table.iter_batches(batch_size=BATCH_ROWS, columns=columns.names)
        while (batch := _next_batch(batches, file, number)) is not None:
            for index in range(batch.num_rows):
                number += 1
                source = f"{file}:{number}"
                try:
                    row = {name: batch.column(name)[index].as_py() for name in columns.names}
                    yield columns.columnar(row, source)
                except DataError as error:
                    refuse(str(error))
                except UnicodeDecodeError:
                    refuse(f"{source}: the row is not valid UTF-8.")
    if not number:
        refuse(f"{file}: the file has no rows.")


def _next_batch(batches: Iterator[pa.RecordBatch], file: Path, number: int) -> pa.RecordBatch | None:
    try:
        batch = next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: damaged behind row {number}: {error}. Copy or download it again.") from error
    if batch is not None and batch.nbytes > BATCH_BYTES:
        raise DataError(
            f"{file}: the rows {number + 1} to {number + batch.num_rows} unpack to {batch.nbytes:,} bytes; at most "
            f"{BATCH_BYTES:,} are allowed. Split long rows."
        )
    return batch


# ---- plain text ------------------------------------------------------------------------------------------------------


def read_text(file: Path, columns: Columns, refuse: Refuse) -> Iterator[Example]:
    """The whole file is one row."""
    if columns.names:
        raise DataError(
            f"{file} is plain text and has no column {columns.names[0]!r}; remove the columns from data.source."
        )
    size = file.stat().st_size
    if size > ROW_BYTES:
        refuse(f"{file}: the file has {size:,} bytes and is one row; at most {ROW_BYTES:,} are allowed. Split it.")
        return
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(f"{file}: the file is not valid UTF-8 (byte {error.start + 1}).")
        return
    yield Example(text=text, source=str(file))


READERS: dict[str, Callable[[Path, Columns, Refuse], Iterator[Example]]] = {
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".txt": read_text,
    ".md": read_text,
}
TEXTS = (".txt", ".md")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
ALLOWED = f"{', '.join(list(READERS)[:-1])} and {list(READERS)[-1]}"
