"""A small upstream: it reads requests without any library of the proxy's, answers as the test says, and remembers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    line: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


Answer = Callable[[Request], "AsyncIterator[bytes]"]


@dataclass
class Upstream:
    """`answer` yields the bytes of a whole response, head and all; `seen` are the requests; `left` counts clients that
    went away while they were being answered."""

    answer: Answer
    port: int = 0
    seen: list[Request] = field(default_factory=list)
    left: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.converse(reader, writer)
        finally:
            self.tasks.discard(task)
            writer.close()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (request := await read_request(reader)) is not None:
                self.seen.append(request)
                gone = asyncio.create_task(reader.read(1))
                sending = asyncio.create_task(self.send(request, writer))
                try:
                    await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
                    if not sending.done():
                        self.left += 1
                        break
                    if await sending:
                        break
                finally:
                    gone.cancel()
                    sending.cancel()
                    await asyncio.wait({gone, sending})

    async def send(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection is closed afterwards: an empty piece says so."""
        async for piece in self.answer(request):
            if not piece:
                return True
            writer.write(piece)
            await writer.drain()
        return False


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


@contextlib.asynccontextmanager
async def upstream(answer: Answer | bytes) -> AsyncIterator[Upstream]:
    async def same(_request: Request) -> AsyncIterator[bytes]:
        assert isinstance(answer, bytes)
        yield answer

    running = Upstream(same if isinstance(answer, bytes) else answer)
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0, limit=2**24)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
        for task in running.tasks:
            task.cancel()
        await asyncio.sleep(0.01)


# ---- answers ---------------------------------------------------------------------------------------------------------


def plain(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def as_json(value: Any, status: str = "200 OK", *headers: str) -> bytes:
    return plain(json.dumps(value).encode(), status, "content-type: application/json", *headers)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def logprob(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []}


def choice_of(index: int, text: str, request: dict[str, Any]) -> dict[str, Any]:
    chat = "messages" in request
    choice: dict[str, Any] = {"index": index, "finish_reason": "stop", "logprobs": None}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    if request.get("logprobs"):
        words = text.split(" ")
        old = {"tokens": words, "token_logprobs": [-0.5] * len(words), "top_logprobs": None, "text_offset": []}
        choice["logprobs"] = {"content": [logprob(word) for word in words], "refusal": None} if chat else old
    return choice


USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def completion(request: dict[str, Any], text: str) -> dict[str, Any]:
    chat = "messages" in request
    return {
        "id": "chatcmpl-1" if chat else "cmpl-1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1700000000,
        "model": f"{request['model']}-2026-01-01",
        "system_fingerprint": "fp_1",
        "choices": [choice_of(index, text, request) for index in range(request.get("n") or 1)],
        "usage": USAGE,
    }


def chunks(request: dict[str, Any], text: str) -> list[dict[str, Any]]:
    """The same as a stream: the choices' words in turn, then finish reasons, then usage."""
    whole = completion(request, text)
    head = {**whole, "object": "chat.completion.chunk" if "messages" in request else "text_completion"}
    del head["usage"]
    found = []
    words = text.split(" ")
    for number, word in enumerate(words):
        piece = word if number == 0 else f" {word}"
        for choice in whole["choices"]:
            part: dict[str, Any] = {"index": choice["index"], "finish_reason": None, "logprobs": None}
            part |= {"delta": {"content": piece}} if "messages" in request else {"text": piece}
            if choice["logprobs"]:
                part["logprobs"] = {
                    name: values[number : number + 1]
                    for name, values in choice["logprobs"].items()
                    if isinstance(values, list)
                }
            found.append({**head, "choices": [part]})
    ends = [{"delta": {}} if "messages" in request else {"text": ""} for _ in whole["choices"]]
    found += [
        {**head, "choices": [{"index": index, "finish_reason": "stop", "logprobs": None, **end}]}
        for index, end in enumerate(ends)
    ]
    found.append({**head, "choices": [], "usage": USAGE})
    return found


def assistant(text: str = "Four, of course.") -> Answer:
    """A model that always says the same."""

    async def answer(request: Request) -> AsyncIterator[bytes]:
        asked = request.json()
        if asked.get("stream"):
            yield STREAM_HEAD
            for one in chunks(asked, text):
                yield chunk(event(one))
            yield chunk(event(b"[DONE]")) + b"0\r\n\r\n"
        else:
            yield as_json(completion(asked, text))

    return answer
