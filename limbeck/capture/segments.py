"""The store of a capture: a folder of JSON lines that only grows.

STORE/.lock                     held (flock) by the recorder
STORE/capture-00000.jsonl ...   one exchange a line; a new segment when one is long enough, and whenever one is opened

Nothing is ever written behind a line that may be half: a recorder that was killed leaves at most one half line, at the
end of its last segment, and readers pass it over. Files are for their owner's eyes only.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from limbeck.errors import RunDirError
from limbeck.system.jsonl import LineFile
from limbeck.system.lock import try_lock

if TYPE_CHECKING:
    from pathlib import Path

SEGMENT = re.compile(r"capture-(\d{5,})\.jsonl")


class SegmentWriter:
    """An open store. Every method that writes raises OSError; after that the journal must be closed and made anew."""

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        """Make the folder, lock it. Raises RunDirError when another recorder holds it, OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._segment_bytes = folder, segment_bytes
        self._segment: LineFile | None = None
        lock = try_lock(folder / ".lock", mode=0o600)
        if lock is None:
            raise RunDirError(
                f"the store {folder} is in use by another capture. Stop it, or give this one a folder of its own."
            )
        self._lock = lock
        self.num_bytes = sum(file.stat().st_size for file in segments(folder))

    def append(self, line: bytes) -> None:
        """Write a line; it is durable after the next `sync`."""
        if self._segment is None or self._segment.size + len(line) > self._segment_bytes:
            self._open_next()
        assert self._segment is not None
        self._segment.append(line)
        self.num_bytes += len(line)

    def _open_next(self) -> None:
        self.sync()
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        numbers = [int(SEGMENT.fullmatch(file.name)[1]) for file in segments(self._folder)]  # type: ignore[index]
        path = self._folder / f"capture-{max(numbers, default=-1) + 1:05d}.jsonl"
        self._segment = LineFile.open(path, mode=0o600, new=True)

    def sync(self) -> None:
        """Make everything durable. Raises FileNotFoundError when the segment is no longer where it was written: a
        deleted file takes writes without complaint."""
        if self._segment is None:
            return
        self._segment.sync()
        if not os.path.samestat(os.fstat(self._segment.fd), os.stat(self._segment.path)):
            raise FileNotFoundError(2, "the store's file was replaced", str(self._segment.path))

    def close(self) -> None:
        self._lock.release()
        if self._segment is not None:
            with contextlib.suppress(OSError):
                self._segment.close()
        self._segment = None


def segments(folder: Path) -> list[Path]:
    """The segments of a store, oldest first."""
    found = [(int(match[1]), file) for file in folder.iterdir() if (match := SEGMENT.fullmatch(file.name))]
    return [file for _, file in sorted(found)]
