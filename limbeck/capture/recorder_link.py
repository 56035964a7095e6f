"""The proxy's end of the recorder: which exchanges are kept, how many may wait, and what became of them.

Nothing here waits for the recorder. An exchange is given to a pipe of bounded length, or dropped and counted. A
recorder that dies is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.capture import headers
from limbeck.capture.exchange import pack
from limbeck.errors import RunDirError, StoreError

if TYPE_CHECKING:
    import h11

    from limbeck.capture.settings import CaptureSettings

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 20.0
"""How long the recorder may take to write what waits, when the proxy ends."""

START_SECONDS = 30.0
END_SECONDS = 1.0


@dataclass
class Exchange:
    """One request for completions and its answer, as bytes, while it passes. Nothing is gathered unless `sampled`."""

    meta: dict[str, Any]
    limit_request: int
    limit_reply: int
    begun: float
    sampled: bool = True
    request: list[bytes] = field(default_factory=list)
    reply: list[bytes] = field(default_factory=list)
    num_request: int = 0
    num_reply: int = 0
    first_byte: float | None = None

    def asked(self, data: bytes) -> None:
        self.num_request += len(data)
        if self.sampled and self.num_request <= self.limit_request:
            self.request.append(data)

    def answered(self, response: h11.Response) -> None:
        self.meta["status"] = response.status_code
        for name in ("content-type", "content-encoding"):
            self.meta[name] = (headers.first(response.headers, name.encode()) or b"").decode("latin-1")

    def replied(self, data: bytes) -> None:
        if self.first_byte is None:
            self.first_byte = time.monotonic()
        self.num_reply += len(data)
        if self.sampled and self.num_reply <= self.limit_reply:
            self.reply.append(data)

    @property
    def is_large(self) -> bool:
        return self.num_request > self.limit_request or self.num_reply > self.limit_reply


@dataclass
class Counts:
    """What became of the requests for completions that were answered 2xx. Each is counted once, in one of the first
    eight; `waiting` have not been decided yet. `cut` is the share of `recorded` whose answer ended too early."""

    recorded: int = 0
    sampled_out: int = 0
    dropped: int = 0  # the recorder could not keep up, or died with them
    failed: int = 0  # the store could not be written
    full: int = 0  # the store had reached its limit
    too_large: int = 0
    unreadable: int = 0  # no completion could be read out of it
    waiting: int = 0
    cut: int = 0


class RecorderLink:
    """Between `start` and `close`; `counts` and `trouble` (a sentence, or "") may be read at any time."""

    def __init__(self, settings: CaptureSettings) -> None:
        self.counts = Counts()
        self.trouble = ""
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._decided = 0  # exchanges that this recorder process has told the fate of
        self._offered = 0  # exchanges that it was given

    async def start(self) -> None:
        """Start the recorder. Raises RunDirError when the folder is in use, StoreError when it cannot be written."""
        told = await self._spawn()
        if "refused" in told:
            await self._end()
            raise (RunDirError if told["in_use"] else StoreError)(told["refused"])
        self._keeper = asyncio.create_task(self._keep())

    async def _spawn(self) -> dict[str, Any]:
        settings = self._settings
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "limbeck.capture.recorder"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # a traceback could quote what must not be written anywhere
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for the proxy; the recorder ends when the pipe does
        )
        self._offered = self._decided = 0
        assert self._process.stdin is not None
        self._process.stdin.write(pack(asdict(settings) | {"store": str(settings.store.absolute())}, b"", b""))
        try:
            async with asyncio.timeout(START_SECONDS):
                return await self._hear() or {"refused": "the recorder ended at once.", "in_use": False}
        except TimeoutError:
            return {"refused": f"the recorder did not start in {START_SECONDS:.0f} s.", "in_use": False}

    async def _hear(self) -> dict[str, Any] | None:
        """The recorder's next word; None when it has ended."""
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    async def _keep(self) -> None:
        """Hear what the recorder tells, and start it again when it has died."""
        while True:
            while self._process is not None and (told := await self._hear()) is not None:
                self._count(told)
            logger.warning("the recorder ended; what it had not written is lost (%d)", self._offered - self._decided)
            self._forget()
            await self._end()
            self.trouble = self.trouble or "the recorder died and is started again."
            await asyncio.sleep(self._settings.retry_seconds)
            try:
                self.trouble = (await self._spawn()).get("refused", "")
            except OSError as error:
                self.trouble = f"the recorder cannot be started: {error.strerror}."
            logger.info("the recorder was started again%s", f": {self.trouble}" if self.trouble else "")
            if self.trouble:
                await self._end()

    def _count(self, told: dict[str, Any]) -> None:
        self.trouble = told.pop("trouble")
        self._decided += sum(number for name, number in told.items() if name != "cut")
        for name, number in told.items():
            setattr(self.counts, name, getattr(self.counts, name) + number)
        self.counts.waiting = self._offered - self._decided

    def _forget(self) -> None:
        """What a dead recorder had not told of is lost."""
        self.counts.dropped += self._offered - self._decided
        self._offered = self._decided = self.counts.waiting = 0

    async def _end(self) -> None:
        """Wait for a recorder that has no more to say; kill one that does not leave."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
        except TimeoutError:
            # Not process.kill(): it looks first whether the process has ended, and so takes that news from asyncio.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()

    # ---- exchanges ----

    def begin(self, request: h11.Request) -> Exchange | None:
        """An exchange to be filled; None when this request is not recorded."""
        if not headers.is_recorded(request):
            return None
        id = headers.named_id(request) or uuid.uuid4().hex
        conversation = headers.first(request.headers, headers.CONVERSATION_HEADER)
        meta = {
            "id": id,
            "time": time.time(),
            "conversation": conversation.decode("utf-8", "replace") if conversation else "",
            "path": request.target.partition(b"?")[0].decode("latin-1"),
            "request-encoding": (headers.first(request.headers, b"content-encoding") or b"").decode("latin-1"),
            "tags": headers.tags(request),
            "secrets": headers.secrets(request),
        }
        settings = self._settings
        sampled = is_sampled(meta["conversation"] or id, settings.sample)
        return Exchange(meta, settings.keep_request, settings.keep_reply, time.monotonic(), sampled)

    def finish(self, exchange: Exchange | None, *, whole: bool) -> None:
        """Give an exchange to the recorder, if it is one to keep. `whole`: the answer came to its end."""
        if exchange is None or not 200 <= exchange.meta.get("status", 0) < 300:
            return
        meta = exchange.meta
        if not exchange.sampled:
            self.counts.sampled_out += 1
        elif exchange.is_large:
            self.counts.too_large += 1
        else:
            meta["whole"] = whole
            meta["first_byte"] = (exchange.first_byte or time.monotonic()) - exchange.begun
            meta["seconds"] = time.monotonic() - exchange.begun
            self._offer(pack(meta, b"".join(exchange.request), b"".join(exchange.reply)))

    def _offer(self, frame: bytes) -> None:
        pipe = self._process.stdin if self._process else None
        room = self._settings.max_pending
        if pipe is None or pipe.is_closing() or pipe.transport.get_write_buffer_size() + len(frame) > room:
            self.counts.dropped += 1
            return
        self._offered += 1
        self.counts.waiting = self._offered - self._decided
        pipe.write(frame)

    def status(self) -> dict[str, Any]:
        return {**asdict(self.counts), "trouble": self.trouble}

    async def close(self) -> None:
        """Let the recorder write what waits, for at most CLOSE_SECONDS."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        process = self._process
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    while (told := await self._hear()) is not None:
                        self._count(told)
        self._forget()
        await self._end()


def is_sampled(key: str, share: float) -> bool:
    """The same answer for the same key, in every run and on every machine; true for `share` of all keys."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2.0**64
