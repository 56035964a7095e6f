"""Who is held out, and who is used: pure functions of a row's content and the seed.

The split of a row depends on nothing but its text, or on its prompt where several different rows have that one: they
stay on one side. Duplicates share it, and it does not change when the data is reordered, or is read from another file.
When the data grows it changes for rows alone whose prompt was not shared before.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.types import Row


def row_id(text: str) -> str:
    """16 hex digits of the SHA-256 of a row's rendered text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_of(id: str, holdout: float) -> str:
    """ "heldout" for the share `holdout` of all ids, else "train"."""
    return "heldout" if int(id, 16) < holdout * 2.0**64 else "train"


@dataclass
class Sample:
    """At most `limit` of the rows that are added (all when None): a function of the seed and the set of their ids, not
    of their order. Keeps no more than `limit` rows in memory."""

    limit: int | None
    seed: int
    added: int = 0
    _heap: list[tuple[int, int, Row]] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Ids must be added once only."""
        rank = int(hashlib.sha256(f"{self.seed}:{row.id}".encode()).hexdigest(), 16)
        entry = (-rank, self.added, row)
        self.added += 1
        if self.limit is None or len(self._heap) < self.limit:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def rows(self) -> list[Row]:
        """The chosen rows, in the order in which they were added."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[1])]
