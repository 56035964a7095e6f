"""The OpenAI-compatible server of all tests, on loopback: a perfect one, or one that does what one must never do.

`answer` makes the bytes of a response: what a model would say, or whatever a test writes. `script` sees each request,
how often the same one came before, and its number, and says what goes wrong. The server counts everything. With
`upstream` it stands in front of another server and passes on what it does not spoil.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

from tests.endpoint.fake_answers import Answer, Request, answer_of, as_json, error, key_of, read_request, words

# ---- faults ----------------------------------------------------------------------------------------------------------


STATUSES: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "429": (429, error("slow down", "rate_limit_exceeded"), {}),
    "429-after": (429, error("slow down"), {"retry-after": "1"}),
    "429-long": (429, error("slow down"), {"retry-after": "100000"}),
    "429-seven": (429, error("slow down"), {"retry-after": "7"}),
    "quota": (429, error("You exceeded your current quota", "insufficient_quota", "insufficient_quota"), {}),
    "401": (401, error("Incorrect API key provided: {key}", "invalid_api_key"), {}),
    "403": (403, error("not your model"), {}),
    "404": (404, error("The model does not exist", "model_not_found"), {}),
    "context": (400, error("maximum context length is 8 tokens", "context_length_exceeded"), {}),
    "filter-400": (400, error("filtered", "content_filter"), {}),
    "parameter": (400, error("Unsupported parameter: 'max_tokens'", "unsupported_parameter"), {}),
    "422": (422, json.dumps({"detail": [{"msg": "no"}]}).encode(), {}),
    "408": (408, b"", {}),
    "409": (409, b"", {}),
    "quote": (400, error("bad request with key Bearer {key} " + "x" * 999), {}),
    "500": (500, b"Internal Server Error", {}),
    "broken": (500, error("key {key}"), {"x-secret": "Bearer {key}"}),
    "502": (502, b"<html>bad gateway</html>", {}),
    "503": (503, error("loading"), {"retry-after": "0"}),
    "529": (529, error("overloaded", None, "overloaded_error"), {}),
    "redirect": (307, b"", {"location": "http://elsewhere.invalid/v1/chat/completions"}),
}


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Request], bytes]:
    def body(request: Request) -> bytes:
        answer = answer_of(request)
        change(answer)
        return json.dumps(answer).encode()

    return body


def _first(answer: dict[str, Any]) -> dict[str, Any]:
    return answer["choices"][0]


def _token(answer: dict[str, Any]) -> dict[str, Any]:
    return _first(answer)["logprobs"]["content"][0]


BODIES: dict[str, Callable[[Request], bytes]] = {
    "garbage": lambda request: b'{"choices": [{"mess',
    "html": lambda request: b"<!doctype html><title>Sign in to the hotel</title>",
    "empty": lambda request: b"",
    "list": lambda request: b"[1]",
    "deep": lambda request: b"[" * 100_000,
    "bad-utf8": lambda request: json.dumps(answer_of(request)).encode().replace(b"stub-1", b"stub-\xff"),
    "surrogate": lambda request: (
        json.dumps(answer_of(request)).encode().replace(b'"content": "', b'"content": "\\ud800')
    ),
    "types": _changed(lambda a: _first(a)["message"].update(content=[7])),
    "empty-choices": _changed(lambda a: a.update(choices=[])),
    "choices-null": _changed(lambda a: a.update(choices=None)),
    "too-many": _changed(lambda a: a["choices"].extend(a["choices"] * 3)),
    "hidden-error": lambda request: json.dumps({"error": {"code": 502, "message": "provider down"}}).encode(),
    "echo": _changed(lambda a: _first(a)["message"].update(content="your key is {key}")),
    "nan-logprob": _changed(lambda a: _token(a).update(logprob=float("nan"))),
    "positive-logprob": _changed(lambda a: _token(a).update(logprob=0.5)),
    "text-logprob": _changed(lambda a: _token(a).update(logprob="-0.1")),
    "no-logprobs": _changed(lambda a: _first(a).update(logprobs=None)),
    "mismatch": _changed(lambda a: _first(a)["logprobs"]["content"].pop()),
    "wrong-ids": _changed(lambda a: _first(a).update(token_ids=[1])),
    "wrong-bytes": _changed(lambda a: _token(a).update(bytes=[300])),
    # what is no fault:
    "length": _changed(lambda a: _first(a).update(finish_reason="length")),
    "filtered": _changed(
        lambda a: (_first(a).update(finish_reason="content_filter"), _first(a)["message"].update(content="half a"))
    ),
    "refusal": _changed(lambda a: _first(a)["message"].update(content=None, refusal="I will not")),
    "null-content": _changed(lambda a: _first(a)["message"].update(content=None)),
    "no-reason": _changed(lambda a: _first(a).update(finish_reason=None)),
    "usage-text": _changed(lambda a: a.update(usage={"prompt_tokens": "many"})),
    "inf-logprob": _changed(lambda a: _token(a).update(logprob=float("-inf"))),
    "reasoning": _changed(lambda a: _first(a)["message"].update(reasoning_content="let me see")),
    "other-model": _changed(lambda a: a.update(model="stub-2")),
    "other-fingerprint": _changed(lambda a: a.update(system_fingerprint="fp_b")),
    "no-usage": _changed(lambda a: a.pop("usage")),
    "fewer": _changed(lambda a: a.update(choices=a["choices"][:1])),
    "control": _changed(lambda a: _first(a)["message"].update(content="a<|im_end|>b")),
    "blank": _changed(lambda a: _first(a)["message"].update(content=" ")),
}
MALFORMED = list(BODIES)[: list(BODIES).index("length")]
LOGPROB_FAULTS = [name for name in MALFORMED if "logprob" in name or name in ("mismatch", "wrong-ids", "wrong-bytes")]
CONNECTION = ["reset", "hang", "drip", "cut", "chunk-cut"]


# ---- the server ------------------------------------------------------------------------------------------------------


@dataclass
class FakeServer:
    """Use it as a context manager: with `with` it runs in a thread of its own, with `async with` in the running loop.
    `script` returns the name of a fault, the bytes of a whole response, or None."""

    answer: Answer | bytes = words
    script: Callable[[Request], str | bytes | None] = lambda request: None
    latency: float = 0.0
    upstream: str = ""
    port: int = 0
    seen: list[Request] = field(default_factory=list)
    left: int = 0  # clients that went away while they were being answered
    counts: Counter[str] = field(default_factory=Counter)  # requests by key
    answered: Counter[str] = field(default_factory=Counter)  # whole answers by key
    faults: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    @property
    def heads(self) -> list[dict[str, str]]:
        """All that was sent above the bodies."""
        return [{name.lower(): value for name, value in request.headers} for request in self.seen]

    @property
    def keys(self) -> set[str]:
        return {head.get("authorization", "") for head in self.heads}

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [request.json() for request in self.seen]

    def __enter__(self) -> FakeServer:
        ready = threading.Event()

        async def run() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            async with self:
                ready.set()
                await self._stop.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        self._thread.start()
        assert ready.wait(30), "the server did not begin"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def __aenter__(self) -> FakeServer:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=512, limit=2**24)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._request(reader, writer):
                pass
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; returns whether the connection can be used again."""
        request = await read_request(reader)
        if request is None:
            return False
        key = key_of(request)
        request = replace(request, key=key, attempt=self.counts[key], number=self.counts.total())
        self.times.append(time.monotonic())
        self.seen.append(request)
        self.counts[request.key] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        sending = asyncio.create_task(self._send(request, writer))
        try:
            while not (await asyncio.wait({sending}, timeout=0.02))[0]:
                if reader.at_eof():
                    self.left += 1
                    return False
            return sending.result()
        finally:
            self.in_flight -= 1
            sending.cancel()

    async def _send(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(self.latency)
        async with contextlib.aclosing(self._pieces(request)) as pieces:
            async for piece in pieces:
                if not piece:
                    return False
                writer.write(piece)
                await writer.drain()
        return True

    def _pieces(self, request: Request) -> AsyncGenerator[bytes]:
        fault = self.script(request)
        if isinstance(fault, bytes):
            return _whole(fault)
        if fault is not None:
            self.faults[fault] += 1
            if fault in BODIES and fault not in MALFORMED:
                self.answered[request.key] += 1
            return spoilt(fault, request, self._perfect(request))
        if self.upstream:
            return passed_on(request, self.upstream)
        self.answered[request.key] += 1
        return self._perfect(request)

    def _perfect(self, request: Request) -> AsyncGenerator[bytes]:
        return _whole(self.answer) if isinstance(self.answer, bytes) else self.answer(request)


async def _whole(response: bytes) -> AsyncGenerator[bytes]:
    yield response


async def spoilt(fault: str, request: Request, perfect: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    secret = request.secret.encode()
    if fault in STATUSES:
        status, body, headers = STATUSES[fault]
        lines = [f"{name}: {value}".replace("{key}", request.secret) for name, value in headers.items()]
        yield as_json(body.replace(b"{key}", secret), f"{status} X", *lines)
    elif fault == "429-date":
        yield as_json(error("slow down"), "429 X", f"retry-after: {formatdate(time.time() + 2, usegmt=True)}")
    elif fault in BODIES:
        yield as_json(BODIES[fault](request).replace(b"{key}", secret))
    elif fault == "hang":
        await asyncio.sleep(3600)
    elif fault == "reset":
        raise ConnectionResetError
    else:
        head, _, body = b"".join([piece async for piece in perfect]).partition(b"\r\n\r\n")
        if fault == "drip":
            yield head + b"\r\n\r\n"
            for byte in body:
                yield bytes([byte])
                await asyncio.sleep(0.05)
        elif fault == "cut":
            yield head + b"\r\n\r\n" + body[: len(body) // 2]
        else:
            assert fault == "chunk-cut", fault
            yield b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            yield b"%x\r\n%s" % (len(body), body[:40])
        yield b""


async def passed_on(request: Request, upstream: str) -> AsyncGenerator[bytes]:
    """The request to the server behind, and whatever it answers back, byte for byte."""
    parts = urlsplit(upstream)
    kept = [f"{name}: {value}" for name, value in request.headers if name.lower() not in ("host", "connection")]
    lines = [request.line, *kept, f"host: {parts.netloc}", "connection: close", "", ""]
    behind, sender = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        sender.write("\r\n".join(lines).encode("latin-1") + request.body)
        while piece := await behind.read(65536):
            yield piece
    finally:  # also where the client left before the end
        sender.close()
    yield b""


def in_turn(*faults: str | None) -> Callable[[Request], str | None]:
    """Each request meets these faults in turn, then none."""
    return lambda request: faults[request.attempt] if request.attempt < len(faults) else None
