"""One connection and its HTTP/1.1 state, towards a client or towards the upstream.

`h11` decides what is valid HTTP; here are bytes, time-outs and flow control. Events that are sent are gathered until
`flush`, so that a head and its body leave in one packet.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import h11

from limbeck.capture.headers import HEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

READ_AHEAD = 256 * 2**10
"""Bytes that may lie here unread before the sender is told to wait."""

HttpEvent = h11.Event | type[h11.PAUSED]


class Connection(asyncio.Protocol):
    """`on_made` and `on_lost` are called once each; one coroutine at a time may wait on a peer."""

    transport: asyncio.Transport

    def __init__(
        self,
        role: type[h11.CLIENT] | type[h11.SERVER],
        on_made: Callable[[Connection], object] | None = None,
        on_lost: Callable[[Connection], object] | None = None,
    ) -> None:
        self.http = h11.Connection(role, max_incomplete_event_size=HEAD_BYTES)
        self.lost = False  # the connection is gone, in both directions
        self.ended = False  # nothing more will be received
        self._made, self._gone = on_made, on_lost
        self._received: list[bytes] = []
        self._num_received = 0
        self._unsent: list[bytes] = []
        self._reading = self._writable = True
        self._waiter: asyncio.Future[None] | None = None

    # ---- called by asyncio ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self._made:
            self._made(self)

    def data_received(self, data: bytes) -> None:
        self._received.append(data)
        self._num_received += len(data)
        if self._num_received > READ_AHEAD and self._reading:
            self._reading = False
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.ended = self._writable = True
        self._wake()
        if self._gone:
            self._gone(self)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- called by whoever owns the connection ----

    @property
    def has_input(self) -> bool:
        return bool(self._received) or self.ended

    def ready_event(self) -> HttpEvent | None:
        """The next HTTP event in what has been received; None when it is not all there. Raises h11.RemoteProtocolError
        for what is no HTTP or ends too early."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if not self.has_input:
                return None
            self.http.receive_data(self._take())
        return event  # type: ignore[return-value]

    async def next_event(self, seconds: float) -> HttpEvent:
        """As `ready_event`, but waits for it. Raises TimeoutError after `seconds` without a byte. A client that waits
        for permission to send its body is given it."""
        while (event := self.ready_event()) is None:
            if self.http.they_are_waiting_for_100_continue:
                self.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
                self.flush()
            await self._wait(seconds)
        return event

    async def read(self, seconds: float) -> bytes:
        """What has been received; waits for something; b"" at the end. Raises TimeoutError."""
        while not self.has_input:
            await self._wait(seconds)
        return self._take()

    def _take(self) -> bytes:
        data = self._received[0] if len(self._received) == 1 else b"".join(self._received)
        self._received.clear()
        self._num_received = 0
        if not self._reading and not self.lost:
            self._reading = True
            self.transport.resume_reading()
        return data

    def send(self, event: h11.Event) -> None:
        """Raises h11.LocalProtocolError for what HTTP does not allow here, such as more bytes than were announced."""
        if data := self.http.send(event):
            self._unsent.append(data)

    @property
    def num_unsent(self) -> int:
        return len(self._unsent)

    def flush(self) -> None:
        if self._unsent:
            if not self.lost:
                self.transport.write(b"".join(self._unsent))
            self._unsent.clear()

    async def drain(self, seconds: float, *, or_input: bool = False) -> None:
        """Wait until more may be written; with `or_input` also until something was received. Raises TimeoutError."""
        self.flush()
        while not self._writable and not (or_input and self.has_input):
            await self._wait(seconds)

    async def _wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._expire)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _expire(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    def close(self) -> None:
        """Send what is left, then close."""
        self.flush()
        self.transport.close()

    def abort(self) -> None:
        """Close at once, so that the other side can tell that something is missing."""
        self._unsent.clear()
        self.transport.abort()

    async def linger(self, seconds: float) -> None:
        """Close after an answer that the other side may not have read because it is still sending: closing on unread
        bytes would reset the connection, and the answer would be lost."""
        self.flush()
        if self.lost:
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        try:
            async with asyncio.timeout(seconds):
                while await self.read(seconds):
                    pass
        except TimeoutError:
            pass
        self.transport.close()
