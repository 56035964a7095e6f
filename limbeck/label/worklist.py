"""What is left to label: the shards of the plan that the store lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.store import StoreWriter
    from limbeck.types import Row


@dataclass(frozen=True)
class Shard:
    """One shard of the plan: its number, and its rows in order."""

    number: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class WorkList:
    """`shards` are to be made, in the order of the plan; `rows` are those of all shards, finished ones included."""

    shards: tuple[Shard, ...]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, writer: StoreWriter, rows: Sequence[Row]) -> WorkList:
        """A shard of which no row is wanted any more is left out."""
        by_id = {row.id: row for row in rows}
        pending = [Shard(number, tuple(by_id[id] for id in ids if id in by_id)) for number, ids in writer.pending()]
        planned = tuple(by_id[id] for ids in writer.plan for id in ids if id in by_id)
        return cls(tuple(shard for shard in pending if shard.rows), planned)
