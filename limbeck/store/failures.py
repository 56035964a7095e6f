"""Rows without a usable reply: RUN/traces/failed.jsonl, one line each, in the order of the shards that they lack in.

A shard's lines are written before the shard is: what a kill left of a shard that is not there is taken away when the
file is opened again, and written anew.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.system.atomic import atomic_write, raise_if_full

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
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:  # a kill cut it short: its shard is not there
                continue
        return cls(path, found)

    def shards(self) -> set[int]:
        """Numbers of the shards in which something is missing."""
        return {line["shard"] for line in self.lines}

    def keep(self, done: Container[int]) -> None:
        """Take away the lines of shards that are not there."""
        kept = [line for line in self.lines if line["shard"] in done]
        if self.path.exists():
            atomic_write(self.path, "".join(map(_line, kept)))
        self.lines = kept

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append, durably. Raises BudgetError when the disk is full."""
        if not lines:
            return
        try:
            with self.path.open("a") as file:
                file.write("".join(map(_line, lines)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise_if_full(error, self.path)
            raise
        self.lines += lines


def _line(facts: dict[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False) + "\n"
