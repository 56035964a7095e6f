"""Results that are dear: FOLDER holds those of one settings, FOLDER-KEY beside it those of others.

Nothing here is ever deleted or written over. A folder is renamed when other settings come, and renamed back when its
own return, so that what was labelled, paid for or trained once is not made again. Between two renames there is no
FOLDER: a kill there leaves what the next claim puts right.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from limbeck.system.atomic import atomic_write, fsync_dir

logger = logging.getLogger(__name__)

MARKER = "fingerprint"
KEY = re.compile(r"[0-9a-f]{16}")


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

    def claim(self, key: str, on_message: Callable[[str], None]) -> None:
        """Make FOLDER that of these settings: what is theirs is taken up, what is not is set aside first. The folder
        may be missing afterwards, or hold nothing yet. The stage's record must be forgotten by then."""
        mine = [path for path in self.folders() if self.key_of(path) == key]
        found = max(mine, key=self.progress, default=None)  # of equals the first: the folder itself
        if found == self.folder:
            return
        if self.folder.exists():
            self._set_aside(on_message)
        if found is not None:
            on_message(f"{found.name} was made with these settings; it is taken up again as {self.folder.name}")
            self._rename(found, self.folder)

    def _set_aside(self, on_message: Callable[[str], None]) -> None:
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
            return
        base = f"{self.folder.name}-{self.key_of(self.folder) or 'unknown'}"
        names = (base if number == 1 else f"{base}-{number}" for number in count(1))
        aside = next(path for name in names if not os.path.lexists(path := self.folder.with_name(name)))
        on_message(f"{self.folder} was made with other settings; it is kept as {aside.name}")
        self._rename(self.folder, aside)

    def _rename(self, old: Path, new: Path) -> None:
        logger.info("%s becomes %s", old, new)
        os.rename(old, new)
        fsync_dir(new.parent)


def marked_key(folder: Path) -> str | None:
    """The key that `mark` wrote into a folder; None where there is none."""
    try:
        found = (folder / MARKER).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return found if KEY.fullmatch(found) else None


def mark(folder: Path, key: str) -> None:
    """Say whose results a folder will hold, before anything else is written into it."""
    if marked_key(folder) != key:
        atomic_write(folder / MARKER, key)
