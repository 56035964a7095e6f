"""Servers that ours asks: a teacher on loopback that says what it is told to, and notes how it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = ["The", " teacher", " says", " so", "."]


@dataclass
class Teacher:
    url: str = ""
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextlib.contextmanager
def teacher(
    *, redirect: str = "", trouble: str = "", pause: float = 0.0, says: list[str] | None = None
) -> Iterator[Teacher]:
    """`trouble`: quote (a refusal that quotes the key), broken (a 500 with the key), cut, html, nan, slow, 429."""
    found, words = Teacher(), says or WORDS

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.heads.append({name.lower(): value for name, value in self.headers.items()})
            found.bodies.append(json.loads(body))
            key = self.headers.get("authorization", "")
            if redirect:
                self._say(307, {}, location=redirect)
            elif trouble == "quote":
                self._say(400, {"error": {"message": f"bad request with key {key} {'x' * 999}", "type": "x"}})
            elif trouble == "broken":
                self._say(500, {"error": {"message": f"key {key}"}}, **{"x-secret": key})
            elif trouble == "429":
                self._say(429, {"error": {"message": "slow down"}}, **{"retry-after": "7"})
            elif trouble == "html":
                self._send(200, b"<html>hello</html>")
            elif trouble == "slow":
                time.sleep(pause)
                self._say(200, {})
            elif found.bodies[-1].get("stream"):
                self._stream(found.bodies[-1])
            else:
                self._say(200, self._answer(found.bodies[-1]))

        def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
            text = "".join(words)
            chat = {"message": {"role": "assistant", "content": text}, "logprobs": None}
            said = chat if "messages" in body else {"text": text, "logprobs": None}
            return {
                "id": "theirs",
                "object": "chat.completion" if "messages" in body else "text_completion",
                "created": 1,
                "model": "their-own-name",
                "system_fingerprint": None,
                "choices": [{"index": 0, **said, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }

        def _stream(self, body: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            common = {"id": "theirs", "object": "chat.completion.chunk", "created": 1, "model": "their-own-name"}
            for index, word in enumerate(words):
                delta = {"content": word} if index else {"role": "assistant", "content": word}
                self._event({**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                time.sleep(pause)
                if trouble == "cut" and index == 2:
                    return
            self._event({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            if (body.get("stream_options") or {}).get("include_usage"):
                usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
                self._event({**common, "choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\r\n\r\n")

        def _event(self, value: dict[str, Any]) -> None:
            with contextlib.suppress(OSError):
                self.wfile.write(b": a comment\r\ndata: " + json.dumps(value).encode() + b"\r\n\r\n")

        def _say(self, status: int, value: Any, **headers: str) -> None:
            self._send(status, json.dumps(value).encode(), **headers)

        def _send(self, status: int, body: bytes, **headers: str) -> None:
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
