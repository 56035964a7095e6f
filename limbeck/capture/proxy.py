"""The proxy: one task per client connection, which takes a request to the upstream and brings its answer back as it
comes. Nothing here looks into bodies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h11

from limbeck.capture import headers as heads
from limbeck.capture.connection import Connection
from limbeck.capture.headers import Refusal
from limbeck.capture.recorder_link import RecorderLink
from limbeck.capture.settings import parse_upstream
from limbeck.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from limbeck.capture.recorder_link import Exchange
    from limbeck.capture.settings import CaptureSettings, CaptureUpstream

CLIENT_IDLE_SECONDS = 75.0
"""How long a client may keep a connection without a request; longer than clients keep theirs, so that they close it."""

UPSTREAM_IDLE_SECONDS = 4.0
"""How long an unused connection to the upstream is kept; shorter than the 5 s of uvicorn, so that we close it."""

BURST_EVENTS = 8
"""Pieces of an answer that came together and may leave together."""

MAX_IDLE = 256
LINGER_SECONDS = 2.0
GRACE_SECONDS = 10.0
"""How long answers that are on their way may take to end when the proxy is stopped."""


class RequestRefused(Exception):
    """A request that gets no answer of the upstream's."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(status, code, message)


@dataclass
class UpstreamPool:
    """Connections to the upstream that are not in use, with the time since when."""

    upstream: CaptureUpstream
    connect_timeout: float
    tls: ssl.SSLContext | None
    idle: list[tuple[float, Connection]] = field(default_factory=list)

    async def take(self) -> Connection:
        """A connection that is still open, the one used last first, or a new one. Raises Refused."""
        while self.idle:
            since, peer = self.idle.pop()
            if not peer.has_input and time.monotonic() - since < UPSTREAM_IDLE_SECONDS:
                return peer
            peer.abort()
        return await self._connect()

    async def _connect(self) -> Connection:
        to = self.upstream
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_timeout):
                _, peer = await loop.create_connection(
                    lambda: Connection(h11.CLIENT), to.host, to.port, ssl=self.tls, happy_eyeballs_delay=0.25
                )
        except TimeoutError as error:
            reason = f"The upstream did not accept a connection in {self.connect_timeout:g} s."
            raise RequestRefused(504, "upstream_timeout", reason) from error
        except OSError as error:  # also TLS errors and names that do not resolve
            reason = error.strerror or str(error) or type(error).__name__
            raise RequestRefused(502, "upstream_unreachable", f"The upstream cannot be reached: {reason}.") from error
        return peer

    def give(self, peer: Connection) -> None:
        """Take a connection back, to be used again where HTTP allows it."""
        done = peer.http.our_state is h11.DONE and peer.http.their_state is h11.DONE
        if done and not peer.has_input and len(self.idle) < MAX_IDLE:
            peer.http.start_next_cycle()
            self.idle.append((time.monotonic(), peer))
        else:
            peer.abort()

    def close(self) -> None:
        for _, peer in self.idle:
            peer.abort()
        self.idle.clear()


class Proxy:
    """The state of a running proxy: made by `serve`."""

    def __init__(self, settings: CaptureSettings, tap: RecorderLink) -> None:
        upstream = parse_upstream(settings.upstream)
        tls = ssl.create_default_context() if upstream.tls else None
        self.settings, self.upstream, self.tap = settings, upstream, tap
        self.pool = UpstreamPool(upstream, settings.connect_timeout, tls)
        self.num_requests = 0
        self.address = ("", 0)
        self.tasks: dict[Connection, asyncio.Task[None]] = {}
        self.busy: set[Connection] = set()

    def status(self) -> dict[str, Any]:
        """What `/-/status` tells: how many requests there were, and what became of the completions among them."""
        return {"requests": self.num_requests, "clients": len(self.tasks), **self.tap.status()}

    def accept(self) -> Connection:
        return Connection(h11.SERVER, self._made, self._lost)

    def _made(self, client: Connection) -> None:
        task = asyncio.get_running_loop().create_task(self._converse(client))
        self.tasks[client] = task
        task.add_done_callback(lambda _: self._done(client))

    def _done(self, client: Connection) -> None:
        del self.tasks[client]
        self.busy.discard(client)

    def _lost(self, client: Connection) -> None:
        """The client went away: whatever is done for it ends, at the upstream as well."""
        if task := self.tasks.get(client):
            task.cancel()

    # ---- a client ----

    async def _converse(self, client: Connection) -> None:
        """One request after the other."""
        try:
            while await self._one_request(client):
                pass
        except TimeoutError:
            client.abort()
        finally:
            client.close()

    async def _one_request(self, client: Connection) -> bool:
        """Whether the connection can be used again."""
        try:
            event = await client.next_event(CLIENT_IDLE_SECONDS)
        except h11.RemoteProtocolError as error:
            await self._refuse(client, Refusal(error.error_status_hint, "bad_request", f"This is no HTTP: {error}."))
            return False
        if not isinstance(event, h11.Request):
            return False  # the client has closed
        self.busy.add(client)
        self.num_requests += 1
        if event.target.startswith(heads.OWN_PREFIX):
            refused = await self._own_page(client, event)
        elif not (refused := heads.refusal(event, self.settings.max_body)):
            refused = await self._pass_on(client, event)
        if refused:
            await self._refuse(client, refused)
        self.busy.discard(client)
        if client.http.their_state is h11.SEND_BODY:  # the answer came before the question was all read
            await client.linger(LINGER_SECONDS)
        if client.http.our_state is not h11.DONE or client.http.their_state is not h11.DONE:
            return False
        client.http.start_next_cycle()
        return True

    async def _refuse(self, client: Connection, refusal: Refusal) -> None:
        """Answer in the proxy's own name, and close: the body may not have been read."""
        if client.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            client.abort()  # the answer has begun; only breaking it off tells that it is not whole
            return
        self._send_json(client, refusal.status, refusal.body, close=True)
        await client.linger(LINGER_SECONDS)

    def _send_json(self, client: Connection, status: int, body: bytes, *, close: bool) -> None:
        headers = [(b"Content-Type", b"application/json"), (b"Content-Length", str(len(body)).encode())]
        if close:
            headers.append((b"Connection", b"close"))
        client.send(h11.Response(status_code=status, headers=headers))
        client.send(h11.Data(data=body))
        client.send(h11.EndOfMessage())
        client.flush()

    async def _own_page(self, client: Connection, request: h11.Request) -> Refusal | None:
        while isinstance(await client.next_event(self.settings.timeout), h11.Data):
            pass
        pages = {b"/-/health": {"ok": True}, b"/-/status": self.status()}
        page = pages.get(request.target.partition(b"?")[0])
        if request.method != b"GET" or page is None:
            return Refusal(404, "not_found", "Here are GET /-/health and GET /-/status.")
        self._send_json(client, 200, json.dumps(page).encode(), close=False)
        return None

    # ---- a request ----

    async def _pass_on(self, client: Connection, request: h11.Request) -> Refusal | None:
        """Take a request to the upstream and its answer back. A refusal when the upstream gives none."""
        exchange = self.tap.begin(request)
        whole = False
        try:
            async with self._upstream() as upstream:
                response = await self._send_request(client, upstream, request, exchange)
                if exchange:
                    exchange.answered(response)
                whole = await self._bring_back(client, upstream, response, exchange)
        except RequestRefused as error:
            return error.refusal
        finally:
            self.tap.finish(exchange, whole=whole)
        if not whole:
            client.close() if client.http.their_http_version == b"1.1" else client.abort()
        return None

    @contextlib.asynccontextmanager
    async def _upstream(self) -> AsyncIterator[Connection]:
        """A connection, kept when the exchange went well and broken off when it did not: that cancels it there."""
        peer = await self.pool.take()
        try:
            yield peer
        except BaseException:
            peer.abort()
            raise
        self.pool.give(peer)

    async def _send_request(
        self, client: Connection, upstream: Connection, request: h11.Request, exchange: Exchange | None
    ) -> h11.Response:
        """Head and body as they come. The head of the answer, which may come before everything is sent."""
        upstream.send(heads.request_for(request, self.upstream))
        passed = 0
        while isinstance(event := await self._next_part(client, upstream), h11.Data):
            passed += len(event.data)
            if passed > self.settings.max_body:
                raise RequestRefused(*heads.too_large(self.settings.max_body))
            if exchange:
                exchange.asked(bytes(event.data))
            upstream.send(event)
        if isinstance(event, h11.Response):
            return event
        upstream.send(h11.EndOfMessage())
        upstream.flush()
        while (response := await self._head(upstream, wait=True)) is None:
            pass
        return response

    async def _next_part(self, client: Connection, upstream: Connection) -> h11.Event:
        """What comes next of the request, or the head of the answer if that is there first. When the client must be
        waited for, what it has said already is sent."""
        try:
            event = client.ready_event()
            if event is None:
                await self._drain(upstream)
                if upstream.has_input and (response := await self._head(upstream, wait=False)):
                    return response
                event = await client.next_event(self.settings.timeout)
        except h11.RemoteProtocolError as error:
            raise RequestRefused(400, "bad_request", f"The request's body is broken: {error}.") from error
        except TimeoutError as error:
            raise RequestRefused(408, "request_timeout", "The request's body did not come to its end.") from error
        assert isinstance(event, h11.Data | h11.EndOfMessage)
        return event

    async def _drain(self, upstream: Connection) -> None:
        try:
            await upstream.drain(self.settings.timeout, or_input=True)
        except TimeoutError as error:
            raise self._silent() from error

    async def _head(self, upstream: Connection, *, wait: bool) -> h11.Response | None:
        """The head of the answer; None when what came was none yet."""
        try:
            event = await upstream.next_event(self.settings.timeout) if wait else upstream.ready_event()
        except h11.RemoteProtocolError as error:
            raise RequestRefused(502, "upstream_closed", f"The upstream's answer is no HTTP: {error}.") from error
        except TimeoutError as error:
            raise self._silent() from error
        if isinstance(event, h11.ConnectionClosed):
            raise RequestRefused(502, "upstream_closed", "The upstream closed the connection without an answer.")
        return event if isinstance(event, h11.Response) else None

    def _silent(self) -> RequestRefused:
        reason = f"The upstream gave no answer in {self.settings.timeout:g} s."
        return RequestRefused(504, "upstream_timeout", reason)

    async def _bring_back(
        self, client: Connection, upstream: Connection, response: h11.Response, exchange: Exchange | None
    ) -> bool:
        """Head and body as they come; whether the body came to its end."""
        seconds = self.settings.timeout
        client.send(heads.response_for(response))
        try:
            while True:
                if (event := upstream.ready_event()) is None:
                    await client.drain(seconds)
                    event = await upstream.next_event(seconds)
                if not isinstance(event, h11.Data):
                    break
                if exchange:
                    exchange.replied(bytes(event.data))
                client.send(event)
                if client.num_unsent >= BURST_EVENTS:
                    await client.drain(seconds)
        except (h11.RemoteProtocolError, TimeoutError):
            return False
        client.send(h11.EndOfMessage())
        client.flush()
        return True


@contextlib.asynccontextmanager
async def serve(settings: CaptureSettings) -> AsyncIterator[Proxy]:
    """A proxy that runs for the life of the context; its address is `proxy.address`. At the end no more connections are
    taken, answers on their way have GRACE_SECONDS, and the recorder writes what waits.

    Raises CaptureError when the address cannot be used, RunDirError when the store is in use, StoreError when it cannot
    be written.
    """
    tap = RecorderLink(settings)
    await tap.start()
    try:
        proxy = Proxy(settings, tap)
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(proxy.accept, settings.host, settings.port, backlog=1024)
        except OSError as error:
            raise CaptureError(
                f"{settings.host}:{settings.port} cannot be used: {error.strerror}. Choose another --port."
            ) from error
        proxy.address = server.sockets[0].getsockname()[:2]
        try:
            yield proxy
        finally:
            server.close()
            await _finish(proxy)
    finally:
        await tap.close()


async def _finish(proxy: Proxy) -> None:
    """Let answers end; break off those that do not."""
    for client, task in list(proxy.tasks.items()):
        if client not in proxy.busy:
            task.cancel()
    end = time.monotonic() + GRACE_SECONDS
    while proxy.busy and time.monotonic() < end:
        await asyncio.sleep(0.02)
    left = list(proxy.tasks.items())
    for client, task in left:
        task.cancel()
        client.abort()
    await asyncio.gather(*(task for _, task in left), return_exceptions=True)
    proxy.pool.close()
