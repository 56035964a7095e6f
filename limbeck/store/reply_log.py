"""What an endpoint was paid for: one line per request that was answered or finally failed, only ever appended.

    {"crc":"0a1b2c3d","entry":{"keys":["..."],"cost":0.0012,"answer":{...}}}

A line is handed to the system as soon as there is an answer, so that a killed process loses none; `sync` makes all that
was written durable at once, so that one fsync serves all lines of a moment. A last line that was cut short is taken
away when the journal is opened. A line that was changed since (its CRC-32 differs) is passed over and told.

The file is read once, when it is opened. Lines stay in memory until they are forgotten: shards hold them by then. Of
what goes beyond `HELD_BYTES` (log-probs of many replies, batches that end in another order) only the places stay, and
such a line is read again when it is wanted.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.errors import StoreError
from limbeck.system.jsonl import LineFile, checked_line, read_checked, whole_lines
from limbeck.system.refusals import raise_if_full

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

JOURNAL = "journal.jsonl"
HELD_BYTES = 256 * 2**20
Entry = dict[str, Any]


@dataclass
class ReplyLog:
    """An open journal: `open` reads it once, then lines are appended. One process at a time (the run folder's lock)."""

    file: LineFile
    room: int  # bytes of lines that may still be held
    written: int = 0  # lines of this sitting
    synced: int = 0  # those of them that are durable
    damaged: list[int] = field(default_factory=list)  # numbers of lines that were changed since
    _places: dict[str, tuple[int, int]] = field(default_factory=dict)
    _held: dict[int, bytes] = field(default_factory=dict)  # lines by their places
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def path(self) -> Path:
        return self.file.path

    @classmethod
    def open(cls, path: Path, on_entry: Callable[[Entry], bool], room: int = HELD_BYTES) -> ReplyLog:
        """Read every line, oldest first; `on_entry` says whether its keys are to be remembered. Of two entries with
        one key the later counts. Raises StoreError for a file that is no journal."""
        journal = cls(LineFile.open(path, mode=0o600), room)
        number = 0
        for number, (offset, line) in enumerate(whole_lines(path), 1):
            entry = read_checked(line)
            if entry is None:
                journal.damaged.append(number)
            elif on_entry(entry):
                journal._remember(entry, offset, line)
        if journal.damaged and len(journal.damaged) == number:
            journal.close()
            raise StoreError(f"{path} is no journal: not one of its {number} lines is whole. Move it away.")
        return journal

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def append(self, entry: Entry) -> None:
        """Add a line: it survives a kill at once, and a power cut after the next `sync`. Raises BudgetError when the
        disk is full, StoreError when it cannot be written."""
        line, offset = checked_line(entry), self.file.size
        try:
            self.file.append(line)
        except OSError as error:
            raise_if_full(error, self.path)
            raise StoreError(
                f"{self.path} cannot be written: {error}. Nothing that was written before is lost."
            ) from error
        self._remember(entry, offset, line)
        self.written += 1

    def sync(self) -> int:
        """Make durable all that was written before the call; returns how many lines of this sitting are. May be called
        from another thread. Raises StoreError when the disk does not confirm it: nothing is known to be safe then."""
        with self._lock:
            upto = self.written
            if upto > self.synced:
                try:
                    self.file.sync()
                except OSError as error:
                    raise_if_full(error, self.path)
                    raise StoreError(f"the disk does not confirm {self.path}: {error}. Check the disk.") from error
                self.synced = upto
            return self.synced

    def read(self, key: str) -> Entry:
        """The entry of a key. Raises KeyError, and StoreError when a line that is read again was changed meanwhile."""
        offset, size = self._places[key]
        line = self._held.get(offset)
        entry = read_checked(os.pread(self.file.fd, size, offset) if line is None else line)
        if entry is None:
            raise StoreError(
                f"{self.path} was changed at byte {offset} while it was in use. Run the same command again."
            )
        return entry

    def forget(self, keys: Iterable[str]) -> None:
        """Let go of entries, each with all of its keys."""
        for key in keys:
            offset, _ = self._places.pop(key, (-1, 0))
            self.room += len(self._held.pop(offset, b""))

    def close(self) -> None:
        self.file.close()

    def _remember(self, entry: Entry, offset: int, line: bytes) -> None:
        if not entry["keys"]:
            return
        for key in entry["keys"]:
            self._places[key] = (offset, len(line))
        if len(line) <= self.room:
            self._held[offset] = line
            self.room -= len(line)
