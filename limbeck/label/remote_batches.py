"""Asking through a provider's batches: files of requests that are answered within a day, often at half the price.

    RUN/traces/batches.jsonl  the draws of each batch, its file, its id, and whether it is done

Each step is durable before the next one: which requests a batch has before its file is uploaded, the file's name before
the batch is created, its id before it is waited for. A killed job finds its batches again (one that was created in the
very moment of the kill by its file) and submits nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from limbeck.endpoint import batch_api
from limbeck.endpoint.budget import charge_of, worst_cost
from limbeck.endpoint.messages import ApiReply
from limbeck.endpoint.retry import RequestOutcome
from limbeck.endpoint.status import RequestRejected, RetryLater
from limbeck.errors import BudgetError, Stopped, TeacherError
from limbeck.label.draws import Request
from limbeck.store.reply_log import ReplyLog
from limbeck.system.atomic import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from limbeck.endpoint.client import Endpoint
    from limbeck.endpoint.messages import ApiRequest
    from limbeck.label.session import AskSession


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
    """What was submitted, over all sittings. `tries` counts the batches that a request was in, by its name."""

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


MOST_BYTES = 90 * 2**20
"""Of one file: providers take 100 to 200 MB."""

MOST_TRIES = 5
"""Batches from which a request may come back without a result."""

TICK = 0.2
"""Seconds between looks whether a stop was asked for."""


@dataclass(frozen=True)
class BatchLine:
    """A request as a line of a batch's file: `name` is the trace id of its first draw."""

    name: str
    request: Request
    ask: ApiRequest


async def ask_in_batches(endpoint: Endpoint, session: AskSession, stop_asked: Callable[[], bool]) -> None:
    """Submit what is still to be asked, wait, and hand the answers to the session, until there is nothing left to ask.

    Raises Stopped when a stop was asked for (submitted batches go on at the provider), BudgetError before `max_cost`
    could be exceeded, TeacherError for what no batch will be spared.
    """
    homes = {row.id: Request(shard, row, ()) for shard in session.draws.work.shards for row in shard.rows}
    with contextlib.closing(BatchLog.open(session.folder / "batches.jsonl")) as log:
        runner = _BatchRunner(endpoint, session, log, homes)
        while True:
            await runner.submit()
            if not runner.open_batches:
                return
            await runner.collect(stop_asked)


@dataclass
class _BatchRunner:
    endpoint: Endpoint
    session: AskSession
    log: BatchLog
    homes: dict[str, Request]  # of rows, without draws
    held: bool = False  # the account takes no more before one that is there has ended
    excess: float = 1.0  # what an answer cost beyond its worst case is expected of those that follow
    strange: set[str] = field(default_factory=set)  # states of batches in words that are not known, once told
    shared: set[str] = field(default_factory=set)  # batches that were taken, and have answers to rows of other data

    @property
    def open_batches(self) -> list[SentBatch]:
        """Those with a row that is still wanted. Others wait for the run whose rows they have: they are paid for."""
        found = [sent for sent in self.log.open_batches if sent.name not in self.shared]
        return [sent for sent in found if any(row in self.homes for row, _ in sent.requests)]

    # ---- submitting ----

    async def submit(self) -> None:
        """Everything that is neither answered nor in a batch; and batches that a kill left half submitted."""
        for sent in self.open_batches:
            if not sent.id:
                await self._send(sent)
        if self.held:
            return
        under_way = {(row, draw) for sent in self.log.open_batches for row, draws in sent.requests for draw in draws}
        fresh = [
            request
            for request in self.session.requests()
            if not any((request.row.id, draw) in under_way for draw in request.draws)
        ]
        for group in self._groups(self._within_budget(self._lines(fresh))):
            name = fingerprint([line.name for line in group], self.log.lines.file.size)
            requests = [[line.request.row.id, list(line.request.draws)] for line in group]
            self.log.write(batch=name, requests=requests, names=[line.name for line in group])
            await self._send(self.log.sent[name])
            if self.held:
                return

    def _within_budget(self, lines: list[BatchLine]) -> list[BatchLine]:
        """As many as the budget allows in the worst case, what is under way included."""
        most, spent = self.session.settings.max_cost, self.session.tally.cost
        if most is None:
            return lines
        waiting = [line for sent in self.open_batches for line in self._lines_of(sent)]
        left = most - spent - sum(self._worst(line.ask) for line in waiting)
        chosen = []
        for line in lines:
            left -= self._worst(line.ask)
            if left < 0:
                break
            chosen.append(line)
        if lines and not chosen and not waiting:
            raise BudgetError(
                f"teacher.max_cost is {most:g}: {spent:.4f} is spent, and the next request may cost "
                f"{self._worst(lines[0].ask):.4f}. What was answered is kept. Raise teacher.max_cost, or lower "
                "trace.mode.max_tokens, trace.mode.n or data.limit, and run the same command again."
            )
        return chosen

    def _worst(self, ask: ApiRequest) -> float:
        return worst_cost(self.session.settings, ask) * self.excess

    def _groups(self, lines: list[BatchLine]) -> list[list[BatchLine]]:
        """Files of at most `batch_requests` lines and MOST_BYTES."""
        groups: list[list[BatchLine]] = []
        room = 0
        for line in lines:
            size = len(batch_api.line_of(self.endpoint, line.name, line.ask))
            if not groups or size > room or len(groups[-1]) >= self.session.settings.batch_requests:
                groups.append([])
                room = MOST_BYTES
            groups[-1].append(line)
            room -= size
        return groups

    def _lines(self, requests: Iterable[Request]) -> list[BatchLine]:
        return [BatchLine(self._name(one), one, self.session.ask_of(one)) for one in requests]

    def _name(self, request: Request) -> str:
        return self.session.draws.key(request.row, request.draws[0])

    def _lines_of(self, sent: SentBatch) -> list[BatchLine]:
        """Without those of rows whose shards are there already."""
        homes = self.homes
        return self._lines(replace(homes[row], draws=draws) for row, draws in sent.requests if row in homes)

    async def _send(self, sent: SentBatch) -> None:
        lines = self._lines_of(sent)
        if not sent.file:
            content = b"".join(batch_api.line_of(self.endpoint, line.name, line.ask) for line in lines)
            self.log.write(batch=sent.name, file=await batch_api.upload(self.endpoint, sent.name, content))
        made = await batch_api.submit(self.endpoint, sent.name, sent.file, batch_api.url_of(lines[0].ask))
        self.log.write(batch=sent.name, id=made.id)
        self.session.on_message(f"batch {made.id} of {len(lines)} requests is at {self.endpoint.where}")

    # ---- collecting ----

    async def collect(self, stop_asked: Callable[[], bool]) -> None:
        """Wait until a batch has ended, and take its answers."""
        while True:
            ready = 0
            for sent in self.open_batches:
                found = await batch_api.look(self.endpoint, sent.id)
                if found.ended:
                    await self._take(sent, found)
                    return
                self._tell_strange(found)
                ready += found.done
            self.session.report(ready=float(ready))
            await self._pause(stop_asked)

    def _tell_strange(self, found: batch_api.ApiBatch) -> None:
        if not found.is_understood and found.status not in self.strange:
            self.strange.add(found.status)
            self.session.on_message(
                f"batch {found.id} has the state {found.status!r}, which is not known; it is waited for"
            )

    async def _pause(self, stop_asked: Callable[[], bool]) -> None:
        left = self.session.settings.batch_poll_seconds
        while True:
            if stop_asked():
                raise Stopped(
                    "stopped while batches are under way; they go on at the provider. Run the same command again to "
                    "collect them."
                )
            if left <= 0:
                return
            await asyncio.sleep(min(left, TICK))
            left -= TICK

    async def _take(self, sent: SentBatch, found: batch_api.ApiBatch) -> None:
        if found.status == "failed" and found.code != batch_api.FULL:
            raise TeacherError(
                f"batch {found.id} at {self.endpoint.where} failed as a whole: {found.problem or 'no reason is told'}. "
                f"Cure the cause, delete its lines (batch {sent.name}) from {self.log.lines.path}, and run the same "
                "command again; what was answered is kept."
            )
        asked = {line.name: line for line in self._lines_of(sent)}
        left = {self._name(one) for one in self.session.requests()} & asked.keys()  # not those of an earlier sitting
        asks = {name: asked[name].ask for name in left}
        for file in (found.output, found.errors):
            if not file:
                continue
            lines = await batch_api.download(self.endpoint, file)
            for name, outcome in batch_api.results(self.endpoint, lines, asks):
                if name in left and self._settle(asked[name], outcome):
                    left.discard(name)
        if found.status == "cancelled":
            self._give_up(found, [asked[name] for name in sorted(left)])
            left = set()
        await self.session.sync()
        rows = {row.id for row in self.session.draws.work.rows}
        if all(row in rows for row, _ in sent.requests):
            self.log.write(batch=sent.name, done=found.status)
        else:
            self.shared.add(sent.name)
        self.held = False
        self.session.judge_failures()
        if left:
            self._again(found, left)

    def _settle(self, line: BatchLine, outcome: ApiReply | RetryLater | RequestRejected) -> bool:
        """Whether that is the end of the request. An answer that cannot be read may have been billed as well."""
        worst, cost = worst_cost(self.session.settings, line.ask), charge_of(self.session.settings, line.ask, outcome)
        if isinstance(outcome, RetryLater):
            if self.log.tries[line.name] < self.session.settings.malformed_tries:
                if cost:
                    self.session.write({"keys": [], "cost": cost})
                return False
            outcome = RequestRejected(outcome.trouble, outcome.reason)
        if isinstance(outcome, ApiReply) and worst > 0:
            self.excess = max(self.excess, cost / worst)
        self.session.take(line.request, RequestOutcome(outcome, cost, self.log.tries[line.name]))
        return True

    def _give_up(self, found: batch_api.ApiBatch, lines: list[BatchLine]) -> None:
        """Whoever cancelled a batch does not want its requests to be sent again."""
        if lines:
            self.session.on_message(
                f"batch {found.id} was cancelled at the provider: {len(lines)} requests have no result and are set "
                "aside. To ask them again, set teacher.retry_failed=true"
            )
        for line in lines:
            rejected = RequestRejected("cancelled", f"batch {found.id} was cancelled at the provider")
            self.session.record(line.request, RequestOutcome(rejected, 0.0, self.log.tries[line.name]))

    def _again(self, found: batch_api.ApiBatch, left: set[str]) -> None:
        """What came back without a result goes into the next batch."""
        if found.code == batch_api.FULL:
            if not self.open_batches:
                raise TeacherError(
                    f"{self.endpoint.where} takes no batch: {found.problem}. Lower teacher.batch_requests."
                )
            self.held = True
        else:
            worn = [name for name in left if self.log.tries[name] >= MOST_TRIES]
            if worn:
                raise TeacherError(
                    f"{len(worn)} requests came back without a result from {MOST_TRIES} batches at "
                    f"{self.endpoint.where} (the last one: {found.status}). What was answered is kept."
                )
        self.session.on_message(
            f"batch {found.id} is {found.status}: {len(left)} requests have no result and are asked again"
        )
