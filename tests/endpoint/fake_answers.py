"""Requests to an OpenAI-compatible server, and the bytes of perfect answers to them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

MODEL, FINGERPRINT = "stub-1", "fp_a"
WORDS = ["wren", "heron", "osprey", "plover", "grebe", "teal", "dunlin", "curlew", "avocet", "bittern"]


@dataclass(frozen=True)
class Request:
    """`key` is of its content, `attempt` counts those of this key that came before, `number` all that came before."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes
    key: str = ""
    attempt: int = 0
    number: int = 0

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]

    @property
    def said(self) -> str:
        """What the user asked."""
        asked = self.json()
        return asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]

    @property
    def secret(self) -> str:
        return (self.header("authorization") or "").removeprefix("Bearer ")

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    line, *lines = head[:-4].split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (one.partition(":") for one in lines)]
    named = {name.lower(): value for name, value in headers}
    body = b""
    if named.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(named.get("content-length", 0)))
    return Request(line, headers, body)


# ---- bytes of answers ------------------------------------------------------------------------------------------------


def plain(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def as_json(value: Any, status: str = "200 OK", *headers: str) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return plain(body, status, "content-type: application/json", *headers)


def error(message: str, code: str | None = None, type: str = "error") -> bytes:
    return json.dumps({"error": {"message": message, "type": type, "param": None, "code": code}}).encode()


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


# ---- what a model says -----------------------------------------------------------------------------------------------

Answer = Callable[[Request], AsyncGenerator[bytes]]
"""The bytes of a whole response, head and all; an empty piece closes the connection."""

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def key_of(request: Request | dict[str, Any]) -> str:
    """Of what is asked, however it is asked; of the bytes where they are no question."""
    try:
        body = request.json() if isinstance(request, Request) else request
        asked = [body.get(name) for name in ("messages", "prompt", "seed", "n")]
    except (ValueError, AttributeError):
        asked = [request.body.decode("latin-1")]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def reply_of(key: str, index: int = 0) -> str:
    digest = hashlib.sha256(f"{key}{index}".encode()).digest()
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest[: 2 + digest[31] % 6])


def pieces_of(text: str) -> list[str]:
    first, *words = text.split(" ")
    return [first, *(f" {word}" for word in words)]


def _logprobs(text: str, chat: bool) -> dict[str, Any]:
    def spelled(token: str, logp: float) -> dict[str, Any]:
        return {"token": token, "logprob": logp, "bytes": list(token.encode())}

    pieces = pieces_of(text)
    if chat:
        tops = [spelled(" x", -3.0)]
        return {"content": [{**spelled(p, -0.1), "top_logprobs": [spelled(p, -0.1), *tops]} for p in pieces]}
    return {
        "tokens": pieces,
        "token_logprobs": [-0.1] * len(pieces),
        "top_logprobs": [{piece: -0.1, " x": -3.0} for piece in pieces],
        "text_offset": [0] * len(pieces),
    }


def completion(asked: dict[str, Any], *texts: str, model: str | None = None) -> dict[str, Any]:
    """The answer to a request whose choices say `texts` (one text: all say the same)."""
    chat, choices = "messages" in asked, []
    for index in range(asked.get("n") or 1):
        text = texts[index % len(texts)]
        choice: dict[str, Any] = {"index": index, "finish_reason": "stop", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if asked.get("logprobs"):
            choice["logprobs"] = _logprobs(text, chat)
        choices.append(choice)
    return {
        "id": "chatcmpl-1" if chat else "cmpl-1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": model or f"{asked['model']}-2026-01-01",
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": USAGE,
    }


def chunks(asked: dict[str, Any], text: str) -> list[dict[str, Any]]:
    """The same as a stream: the choices' words in turn, then finish reasons, then usage."""
    whole, chat = completion(asked, text), "messages" in asked
    head = {**whole, "object": "chat.completion.chunk" if chat else "text_completion"}
    del head["usage"]
    found = []
    for number, piece in enumerate(pieces_of(text)):
        for choice in whole["choices"]:
            part: dict[str, Any] = {"index": choice["index"], "finish_reason": None, "logprobs": None}
            part |= {"delta": {"content": piece}} if chat else {"text": piece}
            if choice["logprobs"]:
                part["logprobs"] = {name: values[number : number + 1] for name, values in choice["logprobs"].items()}
            found.append({**head, "choices": [part]})
    end = {"finish_reason": "stop", "logprobs": None, **({"delta": {}} if chat else {"text": ""})}
    found += [{**head, "choices": [{"index": choice["index"], **end}]} for choice in whole["choices"]]
    return [*found, {**head, "choices": [], "usage": USAGE}]


def assistant(text: str = "Four, of course.") -> Answer:
    """A model that always says the same. In its streams stand comments between the events."""

    async def answer(request: Request) -> AsyncGenerator[bytes]:
        asked = request.json()
        if asked.get("stream"):
            yield STREAM_HEAD
            for one in chunks(asked, text):
                yield chunk(b": a comment\n" + event(one))
            yield chunk(event(b"[DONE]")) + b"0\r\n\r\n"
        else:
            yield as_json(completion(asked, text))

    return answer


def answer_of(request: Request) -> dict[str, Any]:
    """Words that depend on the question, the seed and n alone, with as many tokens as there are words."""
    asked = request.json()
    texts = [reply_of(request.key, index) for index in range(asked.get("n") or 1)]
    prompt, reply = len(request.body) // 8, sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
    return completion(asked, *texts, model=MODEL) | {"id": f"chatcmpl-{request.number}", "usage": usage}


async def words(request: Request) -> AsyncGenerator[bytes]:
    yield as_json(answer_of(request))
