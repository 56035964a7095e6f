"""The store of a capture: a folder of JSON lines that only grows.

STORE/.lock                     held (flock) by the recorder
STORE/capture-00000.jsonl ...   one exchange a line; a new segment when one is long enough, and whenever one is opened

Nothing is ever written behind a line that may be half: a recorder that was killed leaves at most one half line, at the
end of its last segment, and readers pass it over. Files are for their owner's eyes only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from typing import TYPE_CHECKING

from limbeck.errors import RunDirError

if TYPE_CHECKING:
    from pathlib import Path

SEGMENT = re.compile(r"capture-(\d{5,})\.jsonl")


class SegmentWriter:
    """An open store. Every method that writes raises OSError; after that the journal must be closed and made anew."""

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        """Make the folder, lock it. Raises RunDirError when another recorder holds it, OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._segment_bytes = folder, segment_bytes
        self._segment: int | None = None
        self._path = folder
        self._segment_length = 0
        self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise RunDirError(
                f"the store {folder} is in use by another capture. Stop it, or give this one a folder of its own."
            ) from error
        self.num_bytes = sum(file.stat().st_size for file in segments(folder))

    def append(self, line: bytes) -> None:
        """Write a line; it is durable after the next `sync`."""
        if self._segment is None or self._segment_length + len(line) > self._segment_bytes:
            self._open_next()
        assert self._segment is not None
        done = 0
        try:
            while done < len(line):
                done += os.write(self._segment, line[done:])
        except OSError:
            # Readers could do with the half line, but the bytes may be what a full disk needs.
            with contextlib.suppress(OSError):
                os.ftruncate(self._segment, self._segment_length)
            raise
        self._segment_length += len(line)
        self.num_bytes += len(line)

    def _open_next(self) -> None:
        self.sync()
        if self._segment is not None:
            os.close(self._segment)
            self._segment = None
        numbers = [int(SEGMENT.fullmatch(file.name)[1]) for file in segments(self._folder)]  # type: ignore[index]
        self._path = self._folder / f"capture-{max(numbers, default=-1) + 1:05d}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._segment = os.open(self._path, flags, 0o600)
        self._segment_length = 0
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def sync(self) -> None:
        """Make everything durable. Raises FileNotFoundError when the segment is no longer where it was written: a
        deleted file takes writes without complaint."""
        if self._segment is None:
            return
        os.fsync(self._segment)
        if not os.path.samestat(os.fstat(self._segment), os.stat(self._path)):
            raise FileNotFoundError(2, "the store's file was replaced", str(self._path))

    def close(self) -> None:
        for fd in (self._segment, self._lock):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._segment = None


def segments(folder: Path) -> list[Path]:
    """The segments of a store, oldest first."""
    found = [(int(match[1]), file) for file in folder.iterdir() if (match := SEGMENT.fullmatch(file.name))]
    return [file for _, file in sorted(found)]
