"""A registry of tiny experts, and servers in front of it: real sockets on loopback, in a thread, ended by fixtures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from limbeck.experts import ExpertCard, PromptRow, Registry, Scope
from limbeck.serve import run as serve
from limbeck.serve.settings import load_serving
from tests import tiny
from tests.endpoint.fake_answers import assistant
from tests.endpoint.fake_server import FakeServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 30.0
KEY = "canary-5f1b6e0d9c2a47d8"


@dataclass
class Running:
    """A server that listens. `lines` are its log."""

    url: str
    built: serve.Built
    lines: list[str] = field(default_factory=list)
    client: Any = None

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return self.client.post(path, json=body)

    def chat(self, text: str = "Read me note 1.", model: str = "code", **more: Any) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
        return self.post("/v1/chat/completions", **{**body, **more})

    def complete(self, prompt: Any = "The rain", model: str = "code", **more: Any) -> httpx2.Response:
        body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 8}
        return self.post("/v1/completions", **{**body, **more})

    def events(self, name: str, least: int = 0) -> list[dict[str, Any]]:
        """Lines of the log of this name, once there are at least so many: an answer comes before its line."""
        until = time.monotonic() + SECONDS
        while True:
            found = [line for line in map(json.loads, list(self.lines)) if line["event"] == name]
            if len(found) >= least or time.monotonic() > until:
                return found
            time.sleep(0.01)


def teacher(fault: str | bytes | None = None, *, says: str = "The teacher says so.") -> FakeServer:
    """A server that ours asks; `fault` befalls every request."""
    return FakeServer(assistant(says), script=lambda request: fault)


@dataclass(frozen=True)
class Decided:
    """What a router says."""

    expert: str | None
    confidence: float = 0.9
    reason: str = "its words"


@dataclass
class Router:
    """Says the same of every prompt, or what `by` says of it; notes what it was asked."""

    always: Decided | None = None
    by: dict[str, Decided] = field(default_factory=dict)
    cascades: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def decide(self, prompt: str) -> Decided:
        self.asked.append(prompt)
        return self.by.get(prompt) or self.always or Decided(None, 0.1, "nobody's")


@contextlib.contextmanager
def running(registry: Path, *overrides: str, router: Any = None, **told: Any) -> Iterator[Running]:
    """A server until the block ends, which drains it. `router` stands in for a fitted one."""
    lines: list[str] = []
    settings = load_serving(None, ["port=0", "drain_seconds=2", "dtype=float32", *overrides])
    built = serve.build(registry, settings, on_message=lines.append, router=router, **told)
    at: list[str] = []
    ready, loop, asked = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        def listening(host: str, port: int) -> None:
            at.append(f"http://{host}:{port}")
            ready.set()

        try:
            loop.run_until_complete(serve.serve_until(asked, built, listening))
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(SECONDS) and at, "the server did not begin"
    try:
        with httpx2.Client(base_url=at[0], timeout=SECONDS, trust_env=False) as client:
            yield Running(at[0], built, lines, client)
    finally:
        loop.call_soon_threadsafe(asked.set)
        thread.join(SECONDS)
        assert not thread.is_alive(), "the server did not end"
        loop.close()


def expert_card(domain: str, **values: Any) -> ExpertCard:
    score = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 64}
    found: dict[str, Any] = {
        "created": "2026-11-25T10:00:00+00:00",
        "parameters": 60_000,
        "bytes": 300_000,
        "memory_bytes": 2**20,
        "tokens_per_second": 900.0,
        "machine": "a machine",
        "teacher": "smollm2-135m",
        "licence": "apache-2.0",
        "scores": {who: {"agreement": score} for who in ("student", "teacher", "twin")},
    }
    scope = Scope(domain, f"Answers about {domain}.", ("en",), (f"What is {domain}?",), ("What is love?",), chat=True)
    return ExpertCard(scope, **{**found, **values})


@pytest.fixture(scope="session")
def experts_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Any) -> Path:
    """A registry of two experts, code and weather, of different weights."""
    path = tmp_path_factory.mktemp("registry")
    registry = Registry(path)
    for seed, name in enumerate(("code", "weather")):
        rows = [PromptRow(str(index), "train", row["text"], row["topic"]) for index, row in enumerate(tiny.rows(4))]
        registry.add(name, "1.0.0", expert_card(name), tiny_folder("llama", seed=seed), prompts=rows)
    return path


@pytest.fixture(scope="module")
def server(experts_folder: Path) -> Iterator[Running]:
    with running(experts_folder) as found:
        yield found
