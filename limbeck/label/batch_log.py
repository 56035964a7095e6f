"""What was submitted to a provider's batch interface, over all sittings.

    RUN/traces/batches.jsonl  the draws of each batch, its file, its id, and whether it is done

Every step is durable before the next one is taken: which requests a batch has before its file is uploaded, the file's
name before the batch is created, its id before it is waited for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.store.reply_log import ReplyLog

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class SentBatch:
    """One batch: `name` is ours, `id` the provider's once it is known."""

    name: str
    requests: list[tuple[str, tuple[int, ...]]]  # row and draws of each
    file: str = ""
    id: str = ""
    done: bool = False


@dataclass
class BatchLog:
    """An open log. `tries` counts the batches that a request was in, by its name."""

    lines: ReplyLog
    sent: dict[str, SentBatch] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)

    @classmethod
    def open(cls, path: Path) -> BatchLog:
        entries: list[dict[str, Any]] = []
        log = cls(ReplyLog.open(path, lambda entry: bool(entries.append(entry))))
        for entry in entries:
            log._apply(entry)
        return log

    def write(self, **entry: Any) -> None:
        """Durable when it returns."""
        self.lines.append({"keys": [], **entry})
        self.lines.sync()
        self._apply(entry)

    def close(self) -> None:
        self.lines.close()

    def _apply(self, entry: dict[str, Any]) -> None:
        name = entry["batch"]
        if "requests" in entry:
            requests = [(row, tuple(draws)) for row, draws in entry["requests"]]
            self.sent[name] = SentBatch(name, requests)
            self.tries.update(entry["names"])
        sent = self.sent[name]
        sent.file, sent.id = entry.get("file", sent.file), entry.get("id", sent.id)
        sent.done = sent.done or "done" in entry

    @property
    def open_batches(self) -> list[SentBatch]:
        return [sent for sent in self.sent.values() if not sent.done]
