"""The road of every label stage: a plan becomes a work list, a runner makes its shards, a committer makes them visible.

A runner is one file: `local` labels in this process, `remote` by an endpoint, live or in batches. Another one, such as
a cluster, is a function that takes a work list and a committer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.label.plan import plan_shards
from limbeck.recipe import OpenAITeacher, Recipe
from limbeck.store import StoreHeader, StoreWriter, TraceStore
from limbeck.store.writer import Failures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from limbeck.types import Row, Trace


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
        """The shards that are still to be made for these rows."""
        by_id = {row.id: row for row in rows}
        pending = [Shard(number, tuple(by_id[id] for id in ids)) for number, ids in writer.pending()]
        planned = dict.fromkeys(id for ids in writer.plan for id in ids if id in by_id)
        return cls(tuple(pending), tuple(by_id[id] for id in planned))


class BuiltShard(NamedTuple):
    """What a shard holds: traces with their records, and the lines of `failed.jsonl` about what it lacks."""

    traces: Sequence[Trace]
    records: Sequence[bytes]
    failed: Sequence[dict[str, Any]] = ()


@dataclass
class Committer:
    """Shards become visible in the order of the plan, whatever the order in which they are made: a killed job and one
    that was not killed write the same files. A shard is built when its turn comes, so that few are in memory."""

    writer: StoreWriter
    failures: Failures
    waiting: deque[Shard]  # those that are not there, in the order of the plan
    ready: dict[int, Callable[[], BuiltShard]] = field(default_factory=dict)  # by number

    def add(self, shard: Shard, build: Callable[[], BuiltShard]) -> None:
        """Say that all is there to build a shard. May be called while another thread commits."""
        self.ready[shard.number] = build

    def commit_ready(self) -> list[Shard]:
        """Commit every shard whose turn it is; returns them. Raises BudgetError when the disk is full."""
        committed = []
        while self.waiting and self.waiting[0].number in self.ready:
            number = self.waiting[0].number
            built = self.ready[number]()
            self.failures.add(built.failed)  # before the shard: `Failures.keep` clears up after a kill between the two
            self.writer.commit(number, built.traces, built.records)
            del self.ready[number]
            committed.append(self.waiting.popleft())
        return committed


def fill_store(
    recipe: Recipe,
    path: Path,
    *,
    header: StoreHeader,
    rows: Sequence[Row],
    runner: Callable[[WorkList, Committer], None],
    on_message: Callable[[str], None],
) -> TraceStore:
    """Fill the store at `path` with the traces of `rows`; what is there already is verified and kept.

    `runner` makes the shards of a work list in any order, adds each to the committer, and commits ready ones now and
    then. What a shard holds may depend on its rows, the recipe and the teacher alone.

    Damaged shards are named and made anew, alone; with `teacher.retry_failed` also those that lack a reply. Raises what
    the runner raises, and StoreError when `path` holds another teacher's traces.
    """
    shards = plan_shards(recipe, rows)
    writer = StoreWriter.open(path, header, shards)
    for shard, why in writer.drop_damaged().items():
        on_message(f"shard {shard} of {path.name} is made again: {why}")
    failures = Failures.open(path / "failed.jsonl")
    for line in failures.damaged:
        on_message(f"line {line} of failed.jsonl is damaged and left out: the row that it names has no usable reply")
    if isinstance(recipe.teacher, OpenAITeacher) and recipe.teacher.retry_failed:
        writer.drop(failures.shards())
    writer.want(shards)  # what was dropped is made again, as far as it is wanted
    failures.keep(writer.done)
    work = WorkList.of(writer, rows)
    runner(work, Committer(writer, failures, deque(work.shards)))
    return TraceStore.open(path, verify=False)
