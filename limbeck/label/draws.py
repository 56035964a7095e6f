"""What an endpoint is still to be asked: the draws of a work list that have no reply yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck.label.replies import failures_and_replies, reply_text
from limbeck.store import trace_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.label.committer import Shard, WorkList
    from limbeck.label.rejection import RejectionSampler
    from limbeck.store import StoreHeader
    from limbeck.store.reply_log import ReplyLog
    from limbeck.types import Row


@dataclass(frozen=True)
class Request:
    """Some draws of a row, asked for at once."""

    shard: Shard
    row: Row
    draws: tuple[int, ...]


@dataclass
class OpenDraws:
    """The draws of a work list that have neither a reply nor a final failure in the reply log, counted by shard.

    `done` draws of `total` are there, failed or spared; `taken` of them came in this process. A row is spared its other
    draws when it has as many right replies as rejection sampling wants.
    """

    work: WorkList
    log: ReplyLog
    header: StoreHeader
    num_draws: int
    rejection: RejectionSampler | None
    total: int = field(init=False)
    done: int = field(init=False)
    taken: int = field(default=0, init=False)
    left: dict[int, int] = field(default_factory=dict, init=False)  # by the shard's number
    spared: set[str] = field(default_factory=set, init=False)  # rows

    def __post_init__(self) -> None:
        if self.rejection:
            self.spared = {row.id for shard in self.work.shards for row in shard.rows if self._has_enough(row)}
        for shard in self.work.shards:
            self.left[shard.number] = sum(len(self.missing(row)) for row in shard.rows)
        self.total = self.num_draws * len(self.work.rows)
        self.done = self.total - sum(self.left.values())

    def key(self, row: Row, draw: int) -> str:
        """What a draw is called in the log: the id of its trace."""
        return trace_id(row.id, self.header, draw)

    def keys(self, row: Row) -> list[str]:
        return [self.key(row, draw) for draw in range(self.num_draws)]

    def missing(self, row: Row) -> list[int]:
        """Draws that are to be asked for."""
        if row.id in self.spared:
            return []
        return [draw for draw, key in enumerate(self.keys(row)) if key not in self.log]

    def requests(self, size: int) -> Iterator[Request]:
        """All of it in the order of the plan, at most `size` draws of a row at once."""
        for shard in self.work.shards:
            if not self.left[shard.number]:
                continue
            for row in shard.rows:
                draws = tuple(self.missing(row))
                for start in range(0, len(draws), size):
                    yield Request(shard, row, draws[start : start + size])

    def close(self, shard: Shard, num: int) -> bool:
        """Count `num` draws as answered, failed or spared; whether their shard is whole now."""
        self.done += num
        self.left[shard.number] -= num
        return not self.left[shard.number]

    def forget(self, shard: Shard) -> None:
        """Let go of what the log and the sampler keep of the rows of a shard."""
        for row in shard.rows:
            self.log.forget(self.keys(row))
            if self.rejection:
                self.rejection.forget(row)

    def _has_enough(self, row: Row) -> bool:
        """Whether a row of which some draws are there needs no more. Its replies are judged."""
        assert self.rejection is not None
        there = {draw: key for draw, key in enumerate(self.keys(row)) if key in self.log}
        if not 0 < len(there) < self.num_draws:
            return False
        _, replies = failures_and_replies(self.log, there)
        return any([self.rejection.add(row, reply_text(row, one.choice)) for one in replies])
