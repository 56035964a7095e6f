"""What every request passes before and after the application: keys, rates, sizes, times, and a line in the log.

Plain ASGI: a streamed token passes through two function calls and no queue. The body is read here, whole and within
limits; from then on the connection is watched, and a client that goes away cancels what is done for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.serve.errors import ApiError
from limbeck.serve.limits import Keys, Rates, json_depth
from limbeck.system.net import is_loopback
from limbeck.system.units import num_bytes

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from limbeck.serve.logs import Log
    from limbeck.serve.prometheus import Metrics
    from limbeck.serve.settings import ServeLimits

OPEN = frozenset({"/", "/page.css", "/page.js", "/health"})
"""What is shown without a key: the page has no secrets in it, and balancers have no key."""

ENDPOINTS = frozenset(
    {*OPEN, "/metrics", "/openapi.json", "/v1/models", "/v1/experts", "/v1/chat/completions", "/v1/completions"}
)
WRITING = frozenset({"/v1/chat/completions", "/v1/completions"})
KEY = "limbeck.call"
DRAIN_RETRY = 5.0
SAFE = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


@dataclass(eq=False)
class RequestContext:
    """`key` names who asks. Handlers fill in the second half; `held` is closed when the answer is sent or given up."""

    method: str
    path: str
    client: str
    deadline: float = 0.0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    begun: float = field(default_factory=time.monotonic)
    key: str = ""
    held: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    status: int = 0
    code: str | None = None
    first_token: float | None = None
    model: str | None = None
    expert: str | None = None
    route: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt: Any = None
    reply: Any = None
    user: str | None = None
    cancelled: bool = False
    cut: bool = False

    def wrote(self) -> None:
        """A token is there: the first one is timed."""
        if self.first_token is None:
            self.first_token = time.monotonic() - self.begun


def call_of(request: Request) -> RequestContext:
    return request.scope[KEY]


@dataclass
class LimitsMiddleware:
    """The application behind the gate. `busy` are the calls under way: those whose body is there, for a client that
    sends none must not take another's place. `draining` refuses new ones."""

    app: ASGIApp
    keys: Keys
    limits: ServeLimits
    rates: Rates
    metrics: Metrics
    log: Log
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self.busy: dict[RequestContext, asyncio.Task[None]] = {}
        self.draining = False
        self.max_body = num_bytes(self.limits.max_body)

    @property
    def writing(self) -> list[RequestContext]:
        """Calls under way that models write for."""
        return [call for call in self.busy if call.path in WRITING]

    def cut(self) -> None:
        """End all calls under way."""
        for call, task in self.busy.items():
            call.cut = True
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        client = scope.get("client") or ("", 0)
        call = RequestContext(scope["method"], endpoint_of(scope["path"]), str(client[0]))
        call.deadline = asyncio.get_running_loop().time() + self.limits.request_seconds
        scope[KEY] = call
        sender = _Sender(call, send)
        scope["limbeck.gate"] = self
        try:
            body = await self._admitted(call, scope, receive)
            self.busy[call] = asyncio.current_task()  # type: ignore[assignment]
            asked = {**scope, "method": "GET"} if call.method == "HEAD" else scope  # its body is not sent
            await _watched(self.app, asked, body, receive, sender)
        except ApiError as error:
            call.code = error.code
            await sender.refuse(error)
        except asyncio.CancelledError:
            call.cancelled = True
            if call.cut:
                asyncio.current_task().uncancel()  # type: ignore[union-attr]
                await sender.refuse(stopping())
                return  # what was begun ends here, and its connection with it
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                return  # the client went away, and its request with it
            raise
        finally:
            await asyncio.shield(call.held.aclose())
            self.busy.pop(call, None)
            self._tell(call)

    async def _admitted(self, call: RequestContext, scope: Scope, receive: Receive) -> bytes:
        """The request's body, if it may pass. Raises ApiError."""
        headers = dict(scope["headers"])
        path = scope["path"]
        if b"transfer-encoding" in headers and (b"content-length" in headers or scope["http_version"] == "1.0"):
            raise ApiError(400, "The request says twice, or not at all, where its body ends.", code="bad_http")
        self._check_host(headers.get(b"host", b""))
        if path not in OPEN:
            who = self.keys.who(headers.get(b"authorization"))
            if who is None:
                raise ApiError(401, "A valid key is needed: Authorization: Bearer KEY.", code="invalid_api_key")
            call.key = who
        body = await self._body(headers, receive)
        if self.draining and path not in (*OPEN, "/metrics"):
            raise stopping()
        if path in WRITING and scope["method"] == "POST":
            self.rates.admit(call.key)
            if len(self.writing) >= self.limits.max_in_flight:
                raise ApiError(503, "Too many requests are under way.", code="overloaded", retry_after=1.0)
        if json_depth(body, self.limits.max_depth) > self.limits.max_depth:
            raise ApiError(400, f"The JSON nests deeper than {self.limits.max_depth} levels.", code="json_too_deep")
        return body

    def _check_host(self, host: bytes) -> None:
        """Without keys, only those who mean this machine are let in: a page of another site can make its own name lead
        here (DNS rebinding), and would be at home."""
        if self.keys.digests:
            return
        text = host.decode("latin-1").lower()
        name = (text.rpartition(":")[0] if ":" in text.rpartition("]")[2] else text).strip("[]").removesuffix(".")
        if not is_loopback(name) and name != self.host.lower():
            raise ApiError(421, "This server is not known under that name.", code="unknown_host")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_body:
            raise self._too_large()
        found = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise asyncio.CancelledError
                    found += message.get("body", b"")
                    if len(found) > self.max_body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(found)
        except TimeoutError:
            raise ApiError(
                408, f"The body did not arrive within {self.limits.body_seconds:g} s.", code="body_timeout"
            ) from None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self.max_body:,} bytes.", code="body_too_large")

    def _tell(self, call: RequestContext) -> None:
        seconds = time.monotonic() - call.begun
        self.metrics.count("limbeck_requests_total", endpoint=call.path, status=str(call.status or 499))
        self.metrics.observe("limbeck_request_seconds", seconds, endpoint=call.path)
        if call.cancelled:
            self.metrics.count("limbeck_cancelled_total")
        if call.expert:
            if call.first_token is not None:
                self.metrics.observe("limbeck_first_token_seconds", call.first_token, model=call.expert)
            self.metrics.count("limbeck_tokens_total", call.prompt_tokens, model=call.expert, kind="prompt")
            self.metrics.count("limbeck_tokens_total", call.completion_tokens, model=call.expert, kind="completion")
        self.rates.used(call.key, call.prompt_tokens + call.completion_tokens)
        self.log.request(call, seconds)


def stopping() -> ApiError:
    return ApiError(503, "The server is stopping.", code="draining", retry_after=DRAIN_RETRY)


def endpoint_of(path: str) -> str:
    """The path for counting: one of those that exist, so that clients cannot make up labels."""
    if path in ENDPOINTS:
        return path
    return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"


class _Sender:
    """Sends a response on, with headers of ours, and notes its status."""

    def __init__(self, call: RequestContext, send: Send) -> None:
        self._call, self._send = call, send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._call.status = message["status"]
            own = [(b"x-request-id", self._call.id.encode()), *SAFE]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answer with the error, unless something else was answered already."""
        if self._call.status:
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(error.encoded)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
        if error.status in (401, 408, 413) or error.code == "bad_http":  # the body was not read, or has no sure end
            headers.append((b"connection", b"close"))
        await self({"type": "http.response.start", "status": error.status, "headers": headers})
        await self({"type": "http.response.body", "body": error.encoded})


async def _watched(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Run the application on a body that was read, until it is done or the client goes away."""
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        if given:
            return given.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.ensure_future(app(scope, replay, send)), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        await work
    finally:
        leaving.cancel()
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
