"""Rows without a usable reply: RUN/traces/failed.jsonl, one line each, in the order of the shards that they lack in.

A shard's lines are written before the shard is: what a kill left of a shard that is not there is taken away when the
file is opened again, and written anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.system.atomic import atomic_write
from limbeck.system.jsonl import append_durably, json_line, read_values

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from pathlib import Path


@dataclass
class Failures:
    """The file at `path`; `lines` are what is in it."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Failures:
        return cls(path, list(read_values(path)))

    def shards(self) -> set[int]:
        """Numbers of the shards in which something is missing."""
        return {line["shard"] for line in self.lines}

    def keep(self, done: Container[int]) -> None:
        """Take away the lines of shards that are not there."""
        kept = [line for line in self.lines if line["shard"] in done]
        if self.path.exists():
            atomic_write(self.path, b"".join(map(json_line, kept)))
        self.lines = kept

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append, durably. Raises BudgetError when the disk is full."""
        if lines:
            append_durably(self.path, b"".join(map(json_line, lines)))
            self.lines += lines
