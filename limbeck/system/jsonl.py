"""Files of JSON lines that only grow: appended whole, brought to the disk, read past a line that a kill cut short.

A line is whole when its newline is there. Half a line at the end is passed over by readers, and taken away by whoever
opens the file to append: the next line must not be glued to it. A checked line carries the CRC-32 of its entry:

    {"crc":"0a1b2c3d","entry":{...}}
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.system.atomic import fsync_dir
from limbeck.system.refusals import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

CHECKED = b'{"crc":"%08x","entry":'
CHECKED_BYTES = len(CHECKED % 0)
BLOCK_BYTES = 2**16


@dataclass
class LineFile:
    """A file open to append; `size` are its bytes. One writer at a time, by a lock of its folder's owner."""

    path: Path
    fd: int
    size: int

    @classmethod
    def open(cls, path: Path, *, mode: int = 0o666, new: bool = False) -> LineFile:
        """The file is made where there is none; with `new`, one that is there is an error. Raises OSError."""
        fresh = not path.exists()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | (os.O_EXCL if new else 0), mode)
        try:
            if fresh:
                fsync_dir(path.parent)
            size = _whole_bytes(path)
            if size < os.fstat(fd).st_size:
                logger.info("%s: half a line at its end is removed", path)
                os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, size)

    def append(self, lines: bytes) -> None:
        """Add whole lines: they survive a kill at once, and a power cut after the next `sync`. After an OSError nothing
        of them is left: the next line must not continue them, and the bytes may be what a full disk needs."""
        done = 0
        try:
            while done < len(lines):
                done += os.write(self.fd, lines[done:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.size)
            raise
        self.size += len(lines)

    def sync(self) -> None:
        """Make durable all that was appended before. Raises OSError: nothing is known to be safe then."""
        os.fsync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


def append_durably(path: Path, lines: bytes) -> None:
    """Append whole lines to a file that is open no longer than that, and bring them to the disk. Raises BudgetError
    when it is full, RunDirError when it refuses."""
    with disk_errors(path):
        file = LineFile.open(path)
        try:
            file.append(lines)
            file.sync()
        finally:
            file.close()


def whole_lines(path: Path, longest: int = -1) -> Iterator[tuple[int, bytes]]:
    """Every whole line with the byte where it begins. Reading ends before a line of more than `longest` bytes, where
    that is given. Raises OSError."""
    offset = 0
    with path.open("rb") as file:
        while (line := file.readline(longest)).endswith(b"\n"):
            yield offset, line
            offset += len(line)


def read_values(path: Path) -> Iterator[Any]:
    """The values of all lines that are JSON; none where there is no file."""
    for _, line in whole_lines(path) if path.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:
            logger.info("%s: a line that is no JSON is skipped", path)
        else:
            yield value


def json_line(value: Any) -> bytes:
    return json_text(value) + b"\n"


def compact_line(value: Any) -> bytes:
    """A number that JSON does not have (NaN, an infinity) becomes null."""
    try:
        return json_text(value, separators=(",", ":"), allow_nan=False) + b"\n"
    except ValueError:
        return json_text(_finite(value), separators=(",", ":"), allow_nan=False) + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return {name: _finite(one) for name, one in value.items()} if isinstance(value, dict) else value


def checked_line(entry: Any) -> bytes:
    """Raises ValueError for a number that JSON does not have."""
    text = json_text(entry, separators=(",", ":"), allow_nan=False)
    return CHECKED % zlib.crc32(text) + text + b"}\n"


def read_checked(line: bytes) -> Any | None:
    """The entry of a checked line; None when it is not as it was written."""
    text = line[CHECKED_BYTES:-2]
    return json.loads(text) if line == CHECKED % zlib.crc32(text) + text + b"}\n" else None


def json_text(value: Any, **form: Any) -> bytes:
    """As `json.dumps` with the settings `form`. Half characters, which JSON can smuggle in and UTF-8 does not have, are
    written as escapes."""
    try:
        return json.dumps(value, ensure_ascii=False, **form).encode()
    except UnicodeEncodeError:
        return json.dumps(value, **form).encode()


def _whole_bytes(path: Path) -> int:
    """Where the last whole line ends."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(end - BLOCK_BYTES, 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
