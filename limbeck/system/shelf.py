"""Results that are dear: FOLDER holds those of one settings, FOLDER-KEY beside it those of others.

Nothing here is ever deleted or written over. A folder is renamed when other settings come, and renamed back when its
own return, so that what was labelled, paid for or trained once is not made again. Between two renames there is no
FOLDER: a kill there leaves what the next claim puts right.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from limbeck.system.atomic import atomic_write, fingerprint, fsync_dir
from limbeck.system.sealed import line_value, sealed_line

logger = logging.getLogger(__name__)

MARKER = "fingerprint"
KEY = re.compile(rb"[0-9a-f]{16}")


@dataclass(frozen=True)
class Shelf:
    """One folder of results, and those of other settings beside it.

    `key_of` says whose results a folder holds, None where it holds nobody's or cannot tell. `progress` compares folders
    of the same settings: the one that is furthest is used.
    """

    folder: Path
    key_of: Callable[[Path], str | None]
    progress: Callable[[Path], tuple[int, ...]]

    def folders(self) -> list[Path]:
        """The folder itself, where it is there, and all that is set aside."""
        beside = sorted(self.folder.parent.glob(f"{self.folder.name}-*"))
        return [path for path in (self.folder, *beside) if path.is_dir()]

    def claim(self, key: str, on_message: Callable[[str], None], *, earlier: str | None = None) -> None:
        """Make FOLDER that of these settings: what is theirs is taken up, what is not is set aside first. The folder
        may be missing afterwards, or hold nothing yet. The stage's record must be forgotten by then. `earlier` is the
        key that an earlier version gave them."""
        mine = [path for path in self.folders() if self.key_of(path) in {key, earlier} - {None}]
        found = max(mine, key=self.progress, default=None)  # of equals the first: the folder itself
        if found == self.folder:
            return
        if self.folder.exists():
            why = "is less far than what was set aside" if self.folder in mine else "was made with other settings"
            self._set_aside(lambda name: on_message(f"{self.folder} {why}; it is kept as {name}"))
        if found is not None:
            on_message(f"{found.name} was made with these settings; it is taken up again as {self.folder.name}")
            self._rename(found, self.folder)

    def _set_aside(self, on_name: Callable[[str], None]) -> None:
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
            return
        base = f"{self.folder.name}-{self.key_of(self.folder) or 'unknown'}"
        names = (base if number == 1 else f"{base}-{number}" for number in count(1))
        aside = next(path for name in names if not os.path.lexists(path := self.folder.with_name(name)))
        on_name(aside.name)
        self._rename(self.folder, aside)

    def _rename(self, old: Path, new: Path) -> None:
        logger.info("%s becomes %s", old, new)
        os.rename(old, new)
        fsync_dir(new.parent)


def content_key(key: str, inputs: Mapping[str, str]) -> str:
    """The key of settings together with the content of what they name (digests by name)."""
    return fingerprint(key, dict(inputs)) if inputs else key


def marked_key(folder: Path) -> str | None:
    """The key that `mark` wrote into a folder; None where there is none. Earlier versions wrote it bare."""
    try:
        text = (folder / MARKER).read_bytes()
    except OSError:
        return None
    if KEY.fullmatch(text):
        return text.decode()
    lines = [line_value(line) for line in text.splitlines()]
    return next((str(line["key"]) for line in lines if isinstance(line, dict) and "key" in line), None)


def mark(folder: Path, key: str) -> None:
    """Say whose results a folder will hold, before anything else is written into it. It is said twice: results are
    dear, and nobody would know whose they are if it could not be read."""
    text = 2 * sealed_line({"key": key})
    if not (folder / MARKER).exists() or (folder / MARKER).read_bytes() != text:
        atomic_write(folder / MARKER, text)
