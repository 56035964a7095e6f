"""SHA-256 of large files, taken once: a digest is believed while size, times and inode of its file are the same."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.system.atomic import sha256_file
from limbeck.system.sealed import read_json_or, write_json

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass
class FileHashes:
    """Digests by file, kept in the file `cache`. Not for what is checked for damage: a disk that forgets a bit changes
    no time."""

    cache: Path
    known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, cache: Path) -> FileHashes:
        return cls(cache, read_json_or(cache, dict[str, Any]()))

    def of(self, file: Path) -> str:
        """Raises OSError."""
        facts = file.stat()
        stamp = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
        name = str(file.resolve())
        entry = self.known.get(name)
        if not isinstance(entry, dict) or entry.get("stamp") != stamp:
            logger.debug("hashing %s", file)
            entry = self.known[name] = {"stamp": stamp, "sha256": sha256_file(file)}
            write_json(self.cache, self.known)
        return str(entry["sha256"])
