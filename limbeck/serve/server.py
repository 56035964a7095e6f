"""The socket: uvicorn's HTTP/1.1 protocol with times and counts of our own, and an end that lets answers finish.

uvicorn waits for ever for a request's head and for a client that does not read; here a slow or silent client is closed.
Where all connections are taken, the one that has been silent longest gives way: who sends nothing shuts out nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from limbeck.serve.errors import ApiError
from limbeck.serve.logs import LogLines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limbeck.serve.logs import Log
    from limbeck.serve.middleware import LimitsMiddleware
    from limbeck.serve.settings import ServeLimits, Serving

MOST_HEAD = 32 * 2**10
"""Bytes of a request's head."""
SEND_BUFFER = 256 * 2**10
"""Bytes of an answer that the system keeps for a client that does not read; then the model waits."""
TICK = 0.02


def protocol_with(limits: ServeLimits) -> type[H11Protocol]:
    """The protocol's class with these limits: uvicorn makes an instance of it for each connection."""

    class Bounded(H11Protocol):
        timer: asyncio.TimerHandle | None = None
        unread: asyncio.TimerHandle | None = None
        since = 0.0  # when it was last made, or answered

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self.since = self.loop.time()
            others = [one for one in self.connections if isinstance(one, Bounded) and one is not self]
            others = [one for one in others if not one.transport.is_closing()]
            if len(others) >= limits.max_connections:
                silent = min((one for one in others if one.is_silent), key=lambda one: one.since, default=self)
                silent._refuse(ApiError(503, "Too many connections.", code="overloaded", retry_after=1.0))
            if not self.transport.is_closing():
                self._expect_head()

        @property
        def is_silent(self) -> bool:
            """Whether no whole request of it is under way."""
            return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timers()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._head_came()
            elif self.timer is None:
                self._expect_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:
                self._head_came()
                self.since = self.loop.time()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self.unread is None:
                self.unread = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.unread is not None:
                self.unread.cancel()
                self.unread = None

        def send_400_response(self, msg: str) -> None:
            self._refuse(ApiError(400, "This is no HTTP request that can be read.", code="bad_http"))

        def _expect_head(self) -> None:
            self.timer = self.loop.call_later(limits.header_seconds, self._too_slow)

        def _head_came(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def _too_slow(self) -> None:
            self.timer = None
            if self.cycle is None or self.cycle.response_complete:
                self._refuse(ApiError(408, "The request's head did not arrive in time.", code="header_timeout"))

        def _stop_timers(self) -> None:
            for timer in (self.timer, self.unread):
                if timer is not None:
                    timer.cancel()
            self.timer = self.unread = None

        def _refuse(self, error: ApiError) -> None:
            """Answer without the application, and close."""
            body = error.encoded
            head = f"HTTP/1.1 {error.status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
            self.transport.close()

    return Bounded


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: how it ends is decided here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, proto)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


async def listen(
    gate: LimitsMiddleware, settings: Serving, bound: socket.socket, ready: Callable[[], None], asked: asyncio.Event
) -> None:
    """Serve until a stop is `asked`, then refuse new requests, let those under way finish within `drain_seconds`, and
    end."""
    log = gate.log
    handler = LogLines(log)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    config = uvicorn.Config(
        gate,
        http=protocol_with(settings.limits),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(max(settings.limits.idle_seconds, 1)),
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MOST_HEAD,
    )
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(TICK)
        ready()
        waiting: set[asyncio.Future[Any]] = {serving, asyncio.ensure_future(asked.wait())}
        _, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await drained(gate, settings.drain_seconds, log)
        for each in left - {serving}:
            each.cancel()
    finally:
        server.should_exit = True
        await serving
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True


async def drained(gate: LimitsMiddleware, seconds: float, log: Log) -> None:
    """Wait until nothing is under way, at most so long; what is then, is ended."""
    gate.draining = True
    log.event("draining", under_way=len(gate.writing))
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while gate.writing and loop.time() < until:
        await asyncio.sleep(TICK)
    if gate.writing:
        log.event("cut", "warning", under_way=len(gate.writing))
        gate.cut()
