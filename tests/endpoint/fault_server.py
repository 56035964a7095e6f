"""An OpenAI-compatible server that does what one must never do, when it is told to; otherwise a perfect one.

Its answers are a function of what was asked (messages or prompt, seed, n). What goes wrong is decided per request by
`script`, which sees the request, how often the same one came before, and its number. It counts everything. With
`upstream` it stands in front of another server and passes on what it does not spoil.
"""

import asyncio
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

MODEL, FINGERPRINT = "stub-1", "fp_a"
WORDS = ["wren", "heron", "osprey", "plover", "grebe", "teal", "dunlin", "curlew", "avocet", "bittern"]


@dataclass(frozen=True)
class Seen:
    """A request: `key` of its content, how many with this key came before, and how many requests at all."""

    key: str
    attempt: int
    number: int
    path: str
    body: dict[str, Any]

    @property
    def said(self) -> str:
        """What the user asked."""
        return self.body["prompt"] if "prompt" in self.body else self.body["messages"][-1]["content"]


def key_of(body: dict[str, Any]) -> str:
    asked = [body.get(name) for name in ("messages", "prompt", "seed", "n")]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def reply_of(key: str, index: int = 0) -> str:
    digest = hashlib.sha256(f"{key}{index}".encode()).digest()
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest[: 2 + digest[31] % 6])


def answer_of(seen: Seen) -> dict[str, Any]:
    """The answer of a perfect server."""
    chat = "messages" in seen.body
    choices = []
    for index in range(seen.body.get("n", 1)):
        text = reply_of(seen.key, index)
        choice: dict[str, Any] = {"index": index, "finish_reason": "stop", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if seen.body.get("logprobs"):
            choice["logprobs"] = _chat_logprobs(text) if chat else _text_logprobs(text)
        choices.append(choice)
    prompt, completion = (
        len(json.dumps(seen.body)) // 8,
        sum(len(reply_of(seen.key, at).split()) for at in range(len(choices))),
    )
    return {
        "id": f"chatcmpl-{seen.number}",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": MODEL,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def _pieces(text: str) -> list[str]:
    return [text[: text.index(" ")], *(" " + word for word in text.split(" ")[1:])]


def _chat_logprobs(text: str) -> dict[str, Any]:
    def spelled(token: str, logp: float) -> dict[str, Any]:
        return {"token": token, "logprob": logp, "bytes": list(token.encode())}

    return {
        "content": [
            {**spelled(p, -0.1), "top_logprobs": [spelled(p, -0.1), spelled(" x", -3.0)]} for p in _pieces(text)
        ]
    }


def _text_logprobs(text: str) -> dict[str, Any]:
    pieces = _pieces(text)
    return {
        "tokens": pieces,
        "token_logprobs": [-0.1] * len(pieces),
        "top_logprobs": [{piece: -0.1, " x": -3.0} for piece in pieces],
        "text_offset": [0] * len(pieces),
    }


# ---- faults ----------------------------------------------------------------------------------------------------------


def error(message: str, code: str | None = None, type: str = "error") -> bytes:
    return json.dumps({"error": {"message": message, "type": type, "param": None, "code": code}}).encode()


STATUSES: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "429": (429, error("slow down", "rate_limit_exceeded"), {}),
    "429-after": (429, error("slow down"), {"retry-after": "1"}),
    "429-long": (429, error("slow down"), {"retry-after": "100000"}),
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
    "500": (500, b"Internal Server Error", {}),
    "502": (502, b"<html>bad gateway</html>", {}),
    "503": (503, error("loading"), {"retry-after": "0"}),
    "529": (529, error("overloaded", None, "overloaded_error"), {}),
    "redirect": (307, b"", {"location": "http://elsewhere.invalid/v1/chat/completions"}),
}


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Seen], bytes]:
    def body(seen: Seen) -> bytes:
        answer = answer_of(seen)
        change(answer)
        return json.dumps(answer).encode()

    return body


def _first(answer: dict[str, Any]) -> dict[str, Any]:
    return answer["choices"][0]


def _token(answer: dict[str, Any]) -> dict[str, Any]:
    return _first(answer)["logprobs"]["content"][0]


BODIES: dict[str, Callable[[Seen], bytes]] = {
    "garbage": lambda seen: b'{"choices": [{"mess',
    "html": lambda seen: b"<!doctype html><title>Sign in to the hotel</title>",
    "empty": lambda seen: b"",
    "list": lambda seen: b"[1]",
    "deep": lambda seen: b"[" * 100_000,
    "bad-utf8": lambda seen: json.dumps(answer_of(seen)).encode().replace(b"stub-1", b"stub-\xff"),
    "surrogate": lambda seen: json.dumps(answer_of(seen)).encode().replace(b'"content": "', b'"content": "\\ud800'),
    "types": _changed(lambda a: _first(a)["message"].update(content=[7])),
    "empty-choices": _changed(lambda a: a.update(choices=[])),
    "choices-null": _changed(lambda a: a.update(choices=None)),
    "too-many": _changed(lambda a: a["choices"].extend(a["choices"] * 3)),
    "null-content": _changed(lambda a: _first(a)["message"].update(content=None)),
    "no-reason": _changed(lambda a: _first(a).update(finish_reason=None)),
    "usage-text": _changed(lambda a: a.update(usage={"prompt_tokens": "many"})),
    "hidden-error": lambda seen: json.dumps({"error": {"code": 502, "message": "provider down"}}).encode(),
    "echo": _changed(lambda a: _first(a)["message"].update(content="your key is {key}")),
    "nan-logprob": _changed(lambda a: _token(a).update(logprob=float("nan"))),
    "inf-logprob": _changed(lambda a: _token(a).update(logprob=float("-inf"))),
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
class FaultServer:
    """Use it as a context manager; it runs in a thread of its own. `script` returns the name of a fault, or None."""

    script: Callable[[Seen], str | None] = lambda seen: None
    latency: float = 0.0
    upstream: str = ""
    counts: Counter[str] = field(default_factory=Counter)  # requests by key
    answered: Counter[str] = field(default_factory=Counter)  # whole answers by key
    faults: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)  # what was sent as Authorization
    heads: list[dict[str, str]] = field(default_factory=list)  # all that was sent above the bodies
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""

    def __enter__(self) -> "FaultServer":
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; returns whether the connection can be used again."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        self.times.append(time.monotonic())
        self.keys.add(headers.get("authorization", ""))
        self.heads.append(headers)
        body = json.loads(raw or b"{}")
        key = key_of(body)
        seen = Seen(key, self.counts[key], self.counts.total(), lines[0].split(" ")[1], body)
        self.counts[key] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            fault = self.script(seen)
            if fault is None and self.upstream:
                return await self._pass_on(head, raw, writer)
            if fault is None:
                self.answered[key] += 1
                return await self._send(writer, 200, json.dumps(answer_of(seen)).encode())
            self.faults[fault] += 1
            return await self._spoil(fault, seen, headers.get("authorization", ""), writer)
        finally:
            self.in_flight -= 1

    async def _spoil(self, fault: str, seen: Seen, authorization: str, writer: asyncio.StreamWriter) -> bool:
        secret = authorization.removeprefix("Bearer ").encode()
        if fault in STATUSES:
            status, body, headers = STATUSES[fault]
            return await self._send(writer, status, body.replace(b"{key}", secret), headers)
        if fault == "429-date":
            after = {"retry-after": formatdate(time.time() + 2, usegmt=True)}
            return await self._send(writer, 429, error("slow down"), after)
        if fault in BODIES:
            if fault not in MALFORMED:
                self.answered[seen.key] += 1
            return await self._send(writer, 200, BODIES[fault](seen).replace(b"{key}", secret))
        good = json.dumps(answer_of(seen)).encode()
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "drip":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(good))
            for byte in good:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        if fault == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(good))
            writer.write(good[: len(good) // 2])
            await writer.drain()
            writer.close()
        if fault == "chunk-cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n%s" % (len(good), good[:40]))
            await writer.drain()
            writer.close()
        return False  # reset: the connection is aborted

    async def _send(self, writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str] = {}) -> bool:  # noqa: B006
        extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return True

    async def _pass_on(self, head: bytes, raw: bytes, writer: asyncio.StreamWriter) -> bool:
        """The request to the server behind, and whatever it answers back, byte for byte."""
        parts = urlsplit(self.upstream)
        lines = [
            line for line in head.split(b"\r\n") if line and not line.lower().startswith((b"host:", b"connection:"))
        ]
        lines += [b"host: " + parts.netloc.encode(), b"connection: close"]
        behind, sender = await asyncio.open_connection(parts.hostname, parts.port)
        sender.write(b"\r\n".join(lines) + b"\r\n\r\n" + raw)
        while chunk := await behind.read(65536):
            writer.write(chunk)
            await writer.drain()
        sender.close()
        return False


def in_turn(*faults: str | None) -> Callable[[Seen], str | None]:
    """Each request meets these faults in turn, then none."""
    return lambda seen: faults[seen.attempt] if seen.attempt < len(faults) else None
