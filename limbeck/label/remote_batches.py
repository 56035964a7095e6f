"""Asking through a provider's batches: files of requests that are answered within a day, often at half the price.

    RUN/traces/batches.jsonl  what was submitted: the draws of each batch, its file, its id, and whether it is done

Every step is durable before the next one is taken: which requests a batch has before its file is uploaded, the file's
name before the batch is created, its id before it is waited for. A killed job finds its batches again (one that was
created in the very moment of the kill by its file) and submits nothing twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from limbeck.endpoint import batch_api
from limbeck.endpoint.budget import answer_cost, cost_of, most_prompt_tokens, most_reply_tokens
from limbeck.endpoint.messages import ApiReply
from limbeck.endpoint.retry import RequestOutcome
from limbeck.endpoint.status import RequestRejected, RetryLater
from limbeck.errors import BudgetError, Stopped, TeacherError
from limbeck.store.reply_log import ReplyLog
from limbeck.system.atomic import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from limbeck.endpoint.client import Endpoint
    from limbeck.endpoint.messages import ApiRequest
    from limbeck.recipe import OpenAITeacher

MOST_BYTES = 90 * 2**20
"""Of one file: providers take 100 to 200 MB."""

MOST_TRIES = 5
"""Batches from which a request may come back without a result."""

TICK = 0.2
"""Seconds between looks whether a stop was asked for."""


@dataclass(frozen=True)
class Request:
    """Some draws of a row: `name` is the trace id of the first one, `draws` their numbers."""

    name: str
    row: str
    draws: tuple[int, ...]
    ask: ApiRequest


class Sink(Protocol):
    """Where answers go: the job that keeps the journal of replies."""

    def request(self, row: str, draws: Sequence[int]) -> Request | None:
        """None for a row whose shard is whole already."""
        ...

    def todo(self) -> list[Request]:
        """What has neither an answer nor a final failure."""
        ...

    def take(self, request: Request, outcome: RequestOutcome) -> None: ...

    async def sync(self) -> None: ...

    def tell(self, waiting: int) -> None:
        """Progress: how many replies are known to be ready at the provider."""
        ...

    @property
    def spent(self) -> float: ...


@dataclass
class _SentBatch:
    """One batch: `name` is ours, `id` the provider's once it is known."""

    name: str
    requests: list[tuple[str, tuple[int, ...]]]  # row and draws of each
    file: str = ""
    id: str = ""
    done: bool = False


@dataclass
class _BatchLog:
    """What was submitted, over all sittings."""

    journal: ReplyLog
    sent: dict[str, _SentBatch] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)  # batches that a request was in, by its name

    @classmethod
    def open(cls, path: Path) -> _BatchLog:
        entries: list[dict[str, Any]] = []

        def on_entry(entry: dict[str, Any]) -> bool:
            entries.append(entry)
            return False

        book = cls(ReplyLog.open(path, on_entry))
        for entry in entries:
            book._apply(entry)
        return book

    def write(self, **entry: Any) -> None:
        """Durable when it returns."""
        self.journal.append({"keys": [], **entry})
        self.journal.sync()
        self._apply(entry)

    def _apply(self, entry: dict[str, Any]) -> None:
        name = entry["batch"]
        if "requests" in entry:
            requests = [(row, tuple(draws)) for row, draws in entry["requests"]]
            self.sent[name] = _SentBatch(name, requests)
            self.tries.update(entry["names"])
        sent = self.sent[name]
        sent.file, sent.id = entry.get("file", sent.file), entry.get("id", sent.id)
        sent.done = sent.done or "done" in entry

    @property
    def open_batches(self) -> list[_SentBatch]:
        return [sent for sent in self.sent.values() if not sent.done]


async def ask_in_batches(
    endpoint: Endpoint,
    sink: Sink,
    folder: Path,
    *,
    on_message: Callable[[str], None],
    stop_asked: Callable[[], bool],
) -> None:
    """Submit what is still to be asked, wait, and hand the answers to `sink`, until there is nothing left to ask.

    Raises Stopped when a stop was asked for (submitted batches go on at the provider), BudgetError before `max_cost`
    could be exceeded, TeacherError for what no batch will be spared.
    """
    book = _BatchLog.open(folder / "batches.jsonl")
    clerk = _BatchRunner(endpoint, endpoint.settings, sink, book, on_message)
    try:
        while True:
            await clerk.submit()
            if not book.open_batches:
                return
            await clerk.collect(stop_asked)
    finally:
        book.journal.close()


@dataclass
class _BatchRunner:
    endpoint: Endpoint
    settings: OpenAITeacher
    sink: Sink
    book: _BatchLog
    on_message: Callable[[str], None]
    held: bool = False  # the account takes no more before one that is there has ended

    # ---- submitting ----

    async def submit(self) -> None:
        """Everything that is neither answered nor in a batch; and batches that a kill left half submitted."""
        for sent in self.book.open_batches:
            if not sent.id:
                await self._send(sent)
        if self.held:
            return
        under_way = {(row, draws) for sent in self.book.open_batches for row, draws in sent.requests}
        taken = {(row, draw) for row, draws in under_way for draw in draws}
        fresh = [each for each in self.sink.todo() if not any((each.row, draw) in taken for draw in each.draws)]
        for group in self._groups(self._within_budget(fresh)):
            name = fingerprint([request.name for request in group], self.book.journal.file.size)
            requests = [[request.row, list(request.draws)] for request in group]
            self.book.write(batch=name, requests=requests, names=[request.name for request in group])
            await self._send(self.book.sent[name])
            if self.held:
                return

    def _within_budget(self, requests: list[Request]) -> list[Request]:
        """As many as the budget allows in the worst case, what is under way included."""
        if self.settings.max_cost is None:
            return requests
        waiting = [request for sent in self.book.open_batches for request in self._requests(sent)]
        left = self.settings.max_cost - self.sink.spent - sum(self._worst(each.ask) for each in waiting)
        chosen = []
        for request in requests:
            left -= self._worst(request.ask)
            if left < 0:
                break
            chosen.append(request)
        if requests and not chosen and not waiting:
            raise BudgetError(
                f"teacher.max_cost is {self.settings.max_cost:g}: {self.sink.spent:.4f} is spent, and the next request "
                f"may cost {self._worst(requests[0].ask):.4f}. What was answered is kept. Raise teacher.max_cost, or "
                "lower trace.mode.max_tokens, trace.mode.n or data.limit, and run the same command again."
            )
        return chosen

    def _worst(self, ask: ApiRequest) -> float:
        return cost_of(self.settings.prices, most_prompt_tokens(self.settings, ask), most_reply_tokens(ask))

    def _groups(self, requests: list[Request]) -> list[list[Request]]:
        """Files of at most `batch_requests` lines and MOST_BYTES."""
        groups: list[list[Request]] = []
        room = 0
        for request in requests:
            size = len(batch_api.line_of(self.endpoint, request.name, request.ask))
            if not groups or size > room or len(groups[-1]) >= self.settings.batch_requests:
                groups.append([])
                room = MOST_BYTES
            groups[-1].append(request)
            room -= size
        return groups

    def _requests(self, sent: _SentBatch) -> list[Request]:
        found = (self.sink.request(row, draws) for row, draws in sent.requests)
        return [request for request in found if request is not None]

    async def _send(self, sent: _SentBatch) -> None:
        requests = self._requests(sent)
        if not sent.file:
            lines = b"".join(batch_api.line_of(self.endpoint, each.name, each.ask) for each in requests)
            self.book.write(batch=sent.name, file=await batch_api.upload(self.endpoint, sent.name, lines))
        made = await batch_api.submit(self.endpoint, sent.name, sent.file, batch_api.url_of(requests[0].ask))
        self.book.write(batch=sent.name, id=made.id)
        self.on_message(f"batch {made.id} of {len(requests)} requests is at {self.endpoint.where}")

    # ---- collecting ----

    async def collect(self, stop_asked: Callable[[], bool]) -> None:
        """Wait until a batch has ended, and take its answers."""
        while True:
            ready = 0
            for sent in self.book.open_batches:
                found = await batch_api.look(self.endpoint, sent.id)
                if found.ended:
                    await self._take(sent, found)
                    return
                ready += found.done
            self.sink.tell(ready)
            await self._pause(stop_asked)

    async def _pause(self, stop_asked: Callable[[], bool]) -> None:
        left = self.settings.batch_poll_seconds
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

    async def _take(self, sent: _SentBatch, found: batch_api.ApiBatch) -> None:
        if found.status == "failed" and found.code != batch_api.FULL:
            raise TeacherError(
                f"batch {found.id} at {self.endpoint.where} failed as a whole: {found.problem or 'no reason is told'}. "
                f"Cure the cause, delete its lines (batch {sent.name}) from {self.book.journal.path}, and run the same "
                "command again; what was answered is kept."
            )
        asked = {request.name: request for request in self._requests(sent)}
        left = {request.name for request in self.sink.todo()} & asked.keys()  # not those of an earlier sitting
        asks = {name: asked[name].ask for name in left}
        for file in (found.output, found.errors):
            if not file:
                continue
            lines = await batch_api.download(self.endpoint, file)
            for name, outcome in batch_api.results(self.endpoint, lines, asks):
                if name in left and self._settle(asked[name], outcome):
                    left.discard(name)
        await self.sink.sync()
        self.book.write(batch=sent.name, done=found.status)
        self.held = False
        if left:
            self._again(found, left)

    def _settle(self, request: Request, outcome: ApiReply | RetryLater | RequestRejected) -> bool:
        """Whether that is the end of the request; the provider bills answers only."""
        if isinstance(outcome, RetryLater):
            if self.book.tries[request.name] < self.settings.malformed_tries:
                return False
            outcome = RequestRejected(outcome.trouble, outcome.reason)
        worst = self._worst(request.ask)
        cost = answer_cost(self.settings.prices, outcome, worst) if isinstance(outcome, ApiReply) else 0.0
        self.sink.take(request, RequestOutcome(outcome, cost, self.book.tries[request.name]))
        return True

    def _again(self, found: batch_api.ApiBatch, left: set[str]) -> None:
        """What came back without a result goes into the next batch."""
        if found.code == batch_api.FULL:
            if not self.book.open_batches:
                raise TeacherError(
                    f"{self.endpoint.where} takes no batch: {found.problem}. Lower teacher.batch_requests."
                )
            self.held = True
        else:
            worn = [name for name in left if self.book.tries[name] >= MOST_TRIES]
            if worn:
                raise TeacherError(
                    f"{len(worn)} requests came back without a result from {MOST_TRIES} batches at "
                    f"{self.endpoint.where} (the last one: {found.status}). What was answered is kept."
                )
        self.on_message(f"batch {found.id} is {found.status}: {len(left)} requests have no result and are asked again")
