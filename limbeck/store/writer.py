"""Writing a store: whole shards or nothing, and a manifest line last.

    STORE/store.json           the header
    STORE/plan.json            which rows go into which shard, fixed once: a resumed job makes the same shards
    STORE/shard-00000.parquet  text, tokens and metadata, one row per trace (page checksums)
    STORE/shard-00000.targets  the records of those traces, one after the other; read through a memory map
    STORE/manifest.jsonl       one line per finished shard: counts, sizes, SHA-256

A shard exists when its manifest line does. What a kill leaves besides is swept at the next start.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import StoreError
from limbeck.store.header import SCHEMA, VERSION, StoreHeader
from limbeck.store.reply_log import JOURNAL
from limbeck.system.atomic import atomic_path, atomic_write, sha256_file
from limbeck.system.jsonl import append_durably
from limbeck.system.sealed import read_json, read_sealed, sealed_line, write_json
from limbeck.system.shelf import marked_key

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from limbeck.types import Trace


logger = logging.getLogger(__name__)

HEAL = "Run `limbeck label` (or `run`) with the same recipe again: what is damaged is made anew, and nothing else."


def read_header(path: Path) -> StoreHeader:
    """Raises StoreError when there is no store or one of another version."""
    file = path / "store.json"
    if not file.exists():
        raise StoreError(f"there is no trace store at {path} (store.json is missing). Make one with `limbeck label`.")
    facts = read_json(file, HEAL)
    if facts.get("version") != VERSION:
        raise StoreError(
            f"{path} is a store of version {facts.get('version')}; this Limbeck reads version {VERSION}. "
            "Move it away and label again."
        )
    try:
        return StoreHeader(**facts)
    except TypeError as error:
        raise StoreError(f"{file} is not a store header: {error}. Move {path} away and label again.") from error


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Finished shards, in order of their number. A last line that a kill cut short does not count. Raises StoreError
    when another one is damaged: nobody knows of which shard it was."""
    entries, damaged = _manifest(path)
    if damaged:
        raise StoreError(f"line {damaged[0]} of {path / 'manifest.jsonl'} is damaged. {HEAL}")
    return entries


def _manifest(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The entries that can be believed, and the numbers of lines that cannot."""
    entries, damaged = dict[int, dict[str, Any]](), []
    for number, entry in read_sealed(path / "manifest.jsonl"):
        match entry:
            case {"shard": int(shard), "traces": int(), "positions": int(), "files": dict(files)} if all(
                isinstance(facts, dict) and {"bytes", "sha256"} <= facts.keys() for facts in files.values()
            ):
                entries[shard] = entry
            case _:
                damaged.append(number)
    return [entries[shard] for shard in sorted(entries)], damaged


def mend_manifest(path: Path) -> list[int]:
    """Take damaged lines out of the manifest, so that their shards are made again; returns their numbers."""
    entries, damaged = _manifest(path)
    if damaged:
        atomic_write(path / "manifest.jsonl", b"".join(map(sealed_line, entries)))
    return damaged


def damaged_shards(path: Path, entries: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Shard number -> what is wrong with it, for every finished shard whose files are not as they were written."""
    wrong: dict[int, str] = {}
    for entry in entries:
        for name, facts in entry["files"].items():
            file = path / name
            if not file.exists():
                wrong[entry["shard"]] = f"{name} is missing"
            elif file.stat().st_size != facts["bytes"]:
                wrong[entry["shard"]] = f"{name} has {file.stat().st_size} bytes instead of {facts['bytes']}"
            elif sha256_file(file) != facts["sha256"]:
                wrong[entry["shard"]] = f"{name} is damaged (its SHA-256 changed)"
    return wrong


def holds_rows(path: Path, rows: Iterable[str]) -> bool:
    """Whether a store is as it was written, and every one of these rows is in a shard that is finished."""
    entries = read_manifest(path)
    if damaged_shards(path, entries):
        return False
    plan, finished = read_plan(path), {entry["shard"] for entry in entries}
    return {id for number, shard in enumerate(plan) if number in finished for id in shard}.issuperset(rows)


def read_plan(path: Path) -> list[list[str]]:
    """The ids of each shard's rows; [] before there is a plan. Raises StoreError when it is damaged."""
    file = path / "plan.json"
    if not file.exists():
        return []
    found = read_json(file, HEAL, object)
    plan = found.get("shards") if isinstance(found, dict) else found  # earlier versions wrote the bare list
    if not isinstance(plan, list) or not all(isinstance(row, str) for shard in plan for row in shard):
        raise StoreError(f"{file} is no plan of shards. {HEAL}")
    return plan


def _mended_plan(path: Path, shards: Sequence[Sequence[str]]) -> list[list[str]]:
    """The plan; where it is damaged, that which the same rows have now, if the finished shards fit into it. Else the
    rows of finished shards stay together, and all others are planned anew."""
    try:
        return read_plan(path)
    except StoreError as error:
        logger.info("%s", error)
    made = {entry["shard"]: _rows_of(path, entry["shard"]) for entry in read_manifest(path)}
    plan = [list(shard) for shard in shards]
    if not all(number < len(plan) and rows.keys() <= set(plan[number]) for number, rows in made.items()):
        plan = [list(made.get(number, ())) for number in range(max(made) + 1)]
    _write_plan(path, plan)
    return plan


def _rows_of(path: Path, shard: int) -> dict[str, None]:
    """The rows of a finished shard, those without a usable reply too, in their order."""
    file = path / f"shard-{shard:05d}.parquet"
    answered = pq.read_table(file, columns=["row_id"]).column("row_id").to_pylist() if file.exists() else []
    failed = [line.get("row") for line in Failures.open(path / "failed.jsonl").lines if line["shard"] == shard]
    return dict.fromkeys(row for row in [*answered, *failed] if isinstance(row, str))


def _write_plan(path: Path, plan: list[list[str]]) -> None:
    write_json(path / "plan.json", {"shards": plan})


def store_key(path: Path) -> str | None:
    """The key that a store was marked with, or else the fingerprint of its header; None where neither can be read."""
    try:
        return marked_key(path) or read_header(path).fingerprint
    except StoreError:
        return None


def has_header(path: Path, header: StoreHeader) -> bool:
    """Whether a store is of exactly this teacher, target and sampling."""
    try:
        return read_header(path).fingerprint == header.fingerprint
    except StoreError:
        return False


def store_progress(path: Path) -> tuple[int, ...]:
    """How much a store holds: traces, and bytes of replies that were paid for."""
    journal = path / JOURNAL
    return sum(entry["traces"] for entry in _manifest(path)[0]), journal.stat().st_size if journal.exists() else 0


def begin_store(path: Path, header: StoreHeader) -> None:
    """Say in a new store whose it is, before anything else is written into it. Raises StoreError when the store is that
    of another header."""
    if not (path / "store.json").exists():
        write_json(path / "store.json", asdict(header))
    elif read_header(path).fingerprint != header.fingerprint:
        raise StoreError(f"{path} holds traces of another teacher, target or sampling; they cannot be mixed.")


def mend_header(path: Path, header: StoreHeader) -> None:
    """Write the header again where it is damaged. The caller knows, from the store's mark, that it was this one."""
    try:
        read_header(path)
    except StoreError as error:
        logger.info("%s", error)
        (path / "store.json").unlink(missing_ok=True)
        begin_store(path, header)


class StoreWriter:
    """A store being filled. `open` creates it, or continues one with the same header.

    `pending()` are the shards still to be made, as lists of row ids; `commit` makes one of them real.
    """

    def __init__(self, path: Path, header: StoreHeader, plan: list[list[str]], done: set[int]) -> None:
        self.path, self.header, self.plan, self.done = path, header, plan, done
        self._wanted: set[str] = set()

    @classmethod
    def open(cls, path: Path, header: StoreHeader, shards: Sequence[Sequence[str]]) -> StoreWriter:
        """`shards` says which rows belong together in a new store; in one that exists, see `want`. Raises StoreError
        when the header differs."""
        begin_store(path, header)
        mend_manifest(path)
        writer = cls(path, header, _mended_plan(path, shards), {entry["shard"] for entry in read_manifest(path)})
        writer.want(shards)
        writer._sweep()
        return writer

    def want(self, shards: Sequence[Sequence[str]]) -> None:
        """The store is to hold the rows of these shards. Its plan stays, and rows that are not in it are appended in
        the given grouping. Call it again when shards were dropped.

        A shard that is still to be made, and of which not all rows are wanted, is left to whoever wants them all: made
        of some of its rows, it would count as whole. The wanted ones among them get shards of their own.
        """
        self._wanted = {row for shard in shards for row in shard}
        kept = [shard for number, shard in enumerate(self.plan) if number in self.done or self._wants(shard)]
        known = {row for shard in kept for row in shard}
        fresh = [[row for row in shard if row not in known] for shard in shards]
        fresh = [shard for shard in fresh if shard]
        if fresh or not (self.path / "plan.json").exists():
            self.plan += fresh
            _write_plan(self.path, self.plan)

    def _wants(self, shard: Sequence[str]) -> bool:
        return self._wanted.issuperset(shard)

    def _sweep(self) -> None:
        for file in self.path.glob(".*.tmp"):
            logger.info("%s was left by a killed writer; removed", file)
            file.unlink(missing_ok=True)
        for file in self.path.glob("shard-*"):
            if int(file.name[6:11]) not in self.done:
                logger.info("%s is of a shard that is not finished; removed", file)
                file.unlink(missing_ok=True)

    def drop_damaged(self) -> dict[int, str]:
        """Forget shards whose files changed, so that they are labelled again; returns what was wrong with each."""
        wrong = damaged_shards(self.path, read_manifest(self.path))
        self.drop(wrong)
        return wrong

    def drop(self, shards: Iterable[int]) -> None:
        """Forget shards, so that they are made again."""
        gone = set(shards) & self.done
        if gone:
            logger.info("%s: %d shards are made again", self.path, len(gone))
            kept = [entry for entry in read_manifest(self.path) if entry["shard"] not in gone]
            atomic_write(self.path / "manifest.jsonl", b"".join(map(sealed_line, kept)))
            self.done -= gone
            self._sweep()

    def pending(self) -> list[tuple[int, list[str]]]:
        """Those of which every row is wanted, by number."""
        undone = ((shard, rows) for shard, rows in enumerate(self.plan) if shard not in self.done)
        return [(shard, rows) for shard, rows in undone if rows and self._wants(rows)]

    def commit(self, shard: int, traces: Sequence[Trace], records: Sequence[bytes]) -> None:
        """Make a shard real: both files are written, fsynced and renamed, then its manifest line is appended."""
        stem = f"shard-{shard:05d}"
        offsets = [0]
        for record in records:
            offsets.append(offsets[-1] + len(record))
        with atomic_path(self.path / f"{stem}.targets") as tmp, tmp.open("wb") as file:
            file.writelines(records)
        table = pa.Table.from_pylist(
            [
                _to_row(trace, offset, len(record))
                for trace, offset, record in zip(traces, offsets[:-1], records, strict=True)
            ],
            schema=SCHEMA,
        )
        with atomic_path(self.path / f"{stem}.parquet") as tmp:
            pq.write_table(table, tmp, compression="zstd", write_page_checksum=True)
        files = [self.path / f"{stem}.parquet", self.path / f"{stem}.targets"]
        entry = {
            "shard": shard,
            "traces": len(traces),
            "positions": sum(trace.num_supervised for trace in traces),
            "tokens": sum(len(trace.ids) for trace in traces),
            "files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in files},
        }
        append_durably(self.path / "manifest.jsonl", sealed_line(entry))
        self.done.add(shard)


def _to_row(trace: Trace, offset: int, size: int) -> dict[str, Any]:
    return {
        "id": trace.id,
        "row_id": trace.row_id,
        "split": trace.split,
        "topic": trace.topic,
        "text": trace.text,
        "ids": trace.ids,
        "spans": [index for span in trace.spans for index in span],
        "context_hash": trace.context_hash,
        "meta": json.dumps(trace.meta),
        "offset": offset,
        "size": size,
    }


@dataclass
class Failures:
    """Rows without a usable reply: STORE/failed.jsonl, one line each, in the order of the shards that lack them.

    A shard's lines are written before the shard is: `keep` takes away what a kill left of a shard that is not there.
    `damaged` are the numbers of lines that cannot be believed.
    """

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Failures:
        found = cls(path)
        for number, line in read_sealed(path):
            if isinstance(line, dict) and isinstance(line.get("shard"), int):
                found.lines.append(line)
            else:
                found.damaged.append(number)
        return found

    def shards(self) -> set[int]:
        """Numbers of the shards in which something is missing."""
        return {line["shard"] for line in self.lines}

    def keep(self, done: Container[int]) -> None:
        """Take away the lines of shards that are not there."""
        kept = [line for line in self.lines if line["shard"] in done]
        if self.path.exists():
            atomic_write(self.path, b"".join(map(sealed_line, kept)))
        self.lines = kept

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append, durably. Raises BudgetError when the disk is full."""
        if lines:
            append_durably(self.path, b"".join(map(sealed_line, lines)))
            self.lines += lines
