"""A proxy in front of a small upstream of ours; a scenario is a coroutine."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from limbeck.capture import CaptureSettings
from limbeck.capture.proxy import Proxy, serve
from tests.endpoint import fake_answers as up
from tests.endpoint.fake_server import FakeServer

KEY = "sk-canary-0123456789abcdefghij"


@dataclass
class Running:
    """A proxy, its upstream, and its store."""

    proxy: Proxy
    upstream: FakeServer
    store: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.address[1]}"

    async def settled(self, number: int, *names: str) -> dict[str, Any]:
        """The status, once so many exchanges were decided (counted under `names`, all when none are given)."""
        decided = names or ("recorded", "sampled_out", "dropped", "failed", "full", "too_large", "unreadable")
        async with asyncio.timeout(20):
            while sum((status := self.proxy.status())[name] for name in decided) < number:
                await asyncio.sleep(0.02)
        return status

    def records(self) -> list[dict[str, Any]]:
        files = sorted(self.store.glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().split(b"\n") if line]

    async def raw(self, request: bytes, *, to: int | None = None, until: bytes | None = None) -> bytes:
        """What comes back for these bytes on a connection of their own, up to its end or to `until`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", to or self.proxy.address[1])
        writer.write(request)
        try:
            async with asyncio.timeout(20):
                return await (reader.readuntil(until) if until else reader.read())
        finally:
            writer.close()


Scenario = Callable[[Running], Awaitable[None]]


@pytest.fixture
def running(tmp_path: Path) -> Callable[..., contextlib.AbstractAsyncContextManager[Running]]:
    """`async with running(answer, sample=0.5) as at:`"""

    @contextlib.asynccontextmanager
    async def run(answer: up.Answer | bytes | None = None, **settings: Any) -> AsyncIterator[Running]:
        store = tmp_path / "store"
        async with FakeServer(answer or up.assistant()) as upstream:
            told = {"upstream": upstream.root, "store": store, "port": 0, "retry_seconds": 0.2, **settings}
            async with serve(CaptureSettings(**told)) as proxy:
                yield Running(proxy, upstream, told["store"])

    return run


def post(path: str, asked: Any, *headers: str) -> bytes:
    """A request that asks for the connection to be closed, so that its answer ends where the bytes do."""
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: proxy", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chat(text: str = "What is two and two?", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def body_of(response: bytes) -> bytes:
    return response.partition(b"\r\n\r\n")[2]


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])
