"""Between event loops, where requests come from, and the one thread that has the model.

Loops put jobs on the desk and iterate over what comes back; the thread takes them, makes turns with its worker, and
hands out what each turn brought. Everything shared is behind one lock. When the model fails, every request hears of it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from limbeck.engine.api import GenerateRequest, Scored, Stats
from limbeck.errors import DataError, EngineError, EngineFull, LongRow
from limbeck.models.sampling import TokenDecoder
from limbeck.types import GeneratedToken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from limbeck.types import LocalLM

logger = logging.getLogger(__name__)

EngineEvent = GeneratedToken | Scored | Exception
MEMORY = 2 * 2**30  # bytes of keys and values
FALLBACK_CONTEXT = 2048  # for models that do not say
RATE_SECONDS = 5.0
PROBE = 8  # tokens that tell what one of them takes
DRAIN_SECONDS = 0.02  # between two looks whether all are done


@dataclass(eq=False)
class EngineRequest:
    """A request under way: `ids` to read, and a `writer` for its reply; without one its ids are scored, with `top`."""

    ids: np.ndarray
    writer: TokenDecoder | None
    top: int
    inbox: Inbox


@dataclass(eq=False)
class Inbox:
    """What has come for a request and was not read yet. Touched in its own loop only."""

    loop: asyncio.AbstractEventLoop
    events: deque[EngineEvent] = field(default_factory=deque)
    reader: asyncio.Future[None] | None = None

    def put(self, event: EngineEvent) -> None:
        self.events.append(event)
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)


class Stream:
    """A reply as its reader sees it (`Writing`). Closed, or forgotten, it ends the job."""

    def __init__(self, job: EngineRequest, cancel: Callable[[EngineRequest], None]) -> None:
        self._job, self._cancel, self._done = job, cancel, False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> GeneratedToken:
        event = await self.event()
        assert isinstance(event, GeneratedToken)
        self._done = event.finish_reason is not None
        return event

    async def event(self) -> GeneratedToken | Scored:
        inbox = self._job.inbox
        if self._done:
            raise StopAsyncIteration
        while not inbox.events:
            inbox.reader = inbox.loop.create_future()
            await inbox.reader
        event = inbox.events.popleft()
        if isinstance(event, Exception):
            self._done = True
            raise event
        return event

    async def aclose(self) -> None:
        self._end()

    def _end(self) -> None:
        if not self._done:
            self._done = True
            self._cancel(self._job)

    def __del__(self) -> None:
        self._end()


class Worker(Protocol):
    """What runs a model: `batch.BatchWorker`, `serial.SerialWorker`. Used by one thread only."""

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes that sequences take now, and at most."""
        ...

    def admit(self, job: EngineRequest) -> None:
        """Give it a slot: there is one."""
        ...

    def drop(self, job: EngineRequest) -> None:
        """Its slot is free."""
        ...

    def turn(self) -> list[tuple[EngineRequest, EngineEvent]]:
        """A bounded piece of work for those that are admitted, and what it brought. Jobs that end lose their slot."""
        ...

    def close(self) -> None: ...


class EngineThread:
    """An `Engine` around a worker."""

    def __init__(self, lm: LocalLM, worker: Worker, *, slots: int, max_context: int, most_waiting: int) -> None:
        self.lm, self.max_context, self._vocab = lm, max_context, lm.vocab
        self._worker, self._slots, self._most_waiting = worker, slots, most_waiting
        self._changed = threading.Condition()
        self._waiting: deque[EngineRequest] = deque()
        self._running: set[EngineRequest] = set()
        self._gone: deque[EngineRequest] = deque()  # whose reader left
        self._closing = self._draining = False
        self._dead = ""
        self._tokens, self._recent = 0, deque[tuple[float, int]]()
        self._thread = threading.Thread(target=self._work, name=f"engine of {lm.name}", daemon=True)
        self._thread.start()

    # ---- in event loops ----

    @property
    def stats(self) -> Stats:
        with self._changed:
            since = time.monotonic() - RATE_SECONDS
            recent = sum(num for at, num in self._recent if at >= since)
            counts = len(self._running), len(self._waiting), self._slots, self._tokens
            return Stats(*counts, recent / RATE_SECONDS, *self._worker.memory, self._dead)

    def write(self, ask: GenerateRequest) -> Stream:
        self._check(ask.ids, room=1)
        sampling = ask.sampling
        if sampling.n != 1 or sampling.max_tokens < 1 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
            raise DataError(
                f"an engine writes one reply (n={sampling.n}) of one token at least (max_tokens={sampling.max_tokens}) "
                f"at a temperature of 0 or more ({sampling.temperature}) and top_p in (0, 1] ({sampling.top_p}); "
                "ask once per reply, and score tokens where none is to be written."
            )
        room = self.max_context - len(ask.ids)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        ends = self.lm.end_ids
        writer = TokenDecoder(self.lm.tokenizer, ask.ids, sampling, ends, draw_index=ask.draw_index, top=ask.top)
        return self._submit(ask.ids, writer, ask.top)

    async def score(self, ids: np.ndarray, top: int = 0) -> Scored:
        self._check(ids, room=0)
        stream = self._submit(ids, None, top)
        try:
            event = await stream.event()
        finally:
            await stream.aclose()
        assert isinstance(event, Scored)
        return event

    async def drain(self) -> None:
        with self._changed:
            self._draining = True
        while self._running or self._waiting:
            await asyncio.sleep(DRAIN_SECONDS)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _check(self, ids: np.ndarray, *, room: int) -> None:
        if len(ids) == 0:
            raise DataError("a request without any token; a prompt has one at least (the text's begin token will do).")
        if len(ids) + room > self.max_context:
            raise LongRow(
                f"the prompt has {len(ids):,} tokens, and this engine's context is {self.max_context:,}"
                f"{' with the reply' if room else ''}; shorten the prompt."
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self._vocab:
            raise DataError(f"token ids from {ids.min()} to {ids.max()}; this model knows 0 to {self._vocab - 1}.")

    def _submit(self, ids: np.ndarray, writer: TokenDecoder | None, top: int) -> Stream:
        job = EngineRequest(ids, writer, top, Inbox(asyncio.get_running_loop()))
        with self._changed:
            if self._dead or self._closing or self._draining:
                raise EngineError(self._dead or "the engine takes no more requests: it is being closed.")
            if len(self._waiting) >= self._most_waiting + self._slots - len(self._running):
                raise EngineFull(
                    f"{len(self._running)} requests are being written and {len(self._waiting)} wait; no more than "
                    f"{self._most_waiting} may. Try again later."
                )
            self._waiting.append(job)
            self._changed.notify()
        return Stream(job, self._cancel)

    def _cancel(self, job: EngineRequest) -> None:
        # Without the lock: a stream that is forgotten ends wherever the garbage collector finds it.
        self._gone.append(job)

    # ---- in the thread ----

    def _work(self) -> None:
        try:
            while self._news():
                if self._running:
                    self._hand_out(self._worker.turn())
            why = EngineError("the engine was closed.")
        except Exception as error:  # whatever a model raises: those who wait for it must not wait for ever
            why = EngineError(f"the model failed, and its engine writes no more: {type(error).__name__}: {error}")
            why.__cause__ = error
            logger.error("the model failed, and its engine writes no more: %s", type(error).__name__)
        self._end(why)

    def _news(self) -> bool:
        """Let go who left, take in who waits; sleeps while there is nothing to do. False when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self._running)
            left = {self._gone.popleft() for _ in range(len(self._gone))}
            gone = left & self._running
            self._running -= gone
            self._waiting = deque(job for job in self._waiting if job not in left)
            new = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._slots - len(self._running)))]
            self._running.update(new)
            closing = self._closing
        for job in gone:
            self._worker.drop(job)
        for job in new:
            self._worker.admit(job)
        return not closing

    def _hand_out(self, events: Iterable[tuple[EngineRequest, EngineEvent]]) -> None:
        """Each loop is woken once for all that a turn brought."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Inbox, EngineEvent]]] = {}
        with self._changed:
            num = 0
            for job, event in events:
                by_loop.setdefault(job.inbox.loop, []).append((job.inbox, event))
                num += isinstance(event, GeneratedToken)
                if not isinstance(event, GeneratedToken) or event.finish_reason:
                    self._running.discard(job)
            self._count(num)
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:  # a loop that was closed under its requests
                logger.debug("a loop was closed under %d requests; they are let go", len(items))
                self._forget([inbox for inbox, _ in items])

    def _forget(self, inboxes: list[Inbox]) -> None:
        with self._changed:
            self._gone.extend(job for job in self._running if job.inbox in inboxes)

    def _count(self, num: int) -> None:
        now = time.monotonic()
        self._tokens += num
        self._recent.append((now, num))
        while self._recent[0][0] < now - RATE_SECONDS:
            self._recent.popleft()

    def _end(self, why: EngineError) -> None:
        with self._changed:
            self._dead = str(why)
            jobs = [*self._running, *self._waiting]
            self._waiting.clear()
        self._hand_out((job, why) for job in jobs)
        self._worker.close()


def _deliver(items: list[tuple[Inbox, EngineEvent]]) -> None:
    for inbox, event in items:
        inbox.put(event)
