"""Tokens as they are written become what clients read: whole answers or server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from limbeck.errors import EngineError, EngineFull
from limbeck.serve.errors import ApiError
from limbeck.system.sse import DONE, event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from starlette.types import Receive, Scope, Send

    from limbeck.engine.api import Scored, Writing
    from limbeck.serve.middleware import RequestContext
    from limbeck.serve.pool import LoadedExpert
    from limbeck.types import GeneratedToken

LEAST_LOGP = -9999.0
"""What stands for minus infinity, which JSON does not have; as OpenAI's API has it."""
LAST_WORDS = 1.0
"""Seconds that an error at the end of a stream may take to be sent."""


@dataclass(frozen=True)
class Envelope:
    """What every piece of one answer begins with."""

    kind: str  # "chat.completion" or "text_completion"
    model: str
    fingerprint: str | None
    limbeck: dict[str, Any]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {**self._values(self.kind), "choices": choices, "usage": usage, "limbeck": self.limbeck}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = f"{self.kind}.chunk" if self.kind.startswith("chat") else self.kind
        return event({**self._values(kind), "choices": choices, **more})

    def content(self, index: int, text: str, *, usage: bool) -> bytes:
        """A chunk of a chat that is text alone: most chunks are, so only the text is encoded anew."""
        rest = ',"usage":null}' if usage else "}"
        choice = f'{{"index":{index},"delta":{{"content":{json.dumps(text)}}},"logprobs":null,"finish_reason":null}}'
        return f'{self._begin},"choices":[{choice}]{rest}\n\n'.encode()

    @cached_property
    def _begin(self) -> str:
        return "data: " + json.dumps(self._values(f"{self.kind}.chunk"), separators=(",", ":"))[:-1]

    def _values(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.kind.startswith("chat") else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def usage_of(num_prompt: int, num_reply: int) -> dict[str, int]:
    return {"prompt_tokens": num_prompt, "completion_tokens": num_reply, "total_tokens": num_prompt + num_reply}


# ---- log-probs -------------------------------------------------------------------------------------------------------


def _finite(logp: float) -> float:
    return logp if math.isfinite(logp) else LEAST_LOGP


def chat_logprob(opened: LoadedExpert, written: GeneratedToken) -> dict[str, Any]:
    """One entry of `logprobs.content`."""
    tops = [_shown(opened, token, logp) for token, logp in written.top]
    return {**_shown(opened, written.id, written.logp), "top_logprobs": tops}


def _shown(opened: LoadedExpert, token: int, logp: float) -> dict[str, Any]:
    value = opened.bytes_of(token)
    return {
        "token": opened.text_of(token),
        "logprob": _finite(logp),
        "bytes": None if value is None else list(value),
    }


class TextLogprobs:
    """The log-probs of /v1/completions: four lists side by side. `top_logprobs` holds the token itself as well."""

    def __init__(self, opened: LoadedExpert, offset: int = 0) -> None:
        self._opened, self._offset = opened, offset
        self.value: dict[str, list[Any]] = {}
        self.take()

    def take(self) -> dict[str, list[Any]]:
        """What was added since the last time."""
        found, self.value = self.value, {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        return found

    def add(self, token: int, logp: float | None, top: Sequence[tuple[int, float]]) -> None:
        text = self._opened.text_of(token)
        found: dict[str, float] = {}
        for each, value in [*top, *([] if logp is None else [(token, logp)])]:
            found.setdefault(self._opened.text_of(each), _finite(value))
        self.value["tokens"].append(text)
        self.value["token_logprobs"].append(None if logp is None else _finite(logp))
        self.value["top_logprobs"].append(None if logp is None else found)
        self.value["text_offset"].append(self._offset)
        value = self._opened.bytes_of(token)
        self._offset += len(text if value is None else value.decode("utf-8", "ignore"))

    def add_scored(self, ids: Sequence[int], scored: Scored) -> None:
        for place, token in enumerate(ids):
            logp = float(scored.logp_T[place])
            self.add(int(token), None if place == 0 else logp, scored.top[place])


# ---- replies under way -----------------------------------------------------------------------------------------------


async def again(heard: Sequence[tuple[int, GeneratedToken]]) -> AsyncGenerator[tuple[int, GeneratedToken]]:
    """Tokens that were kept back, as if they came now."""
    for one in heard:
        yield one


async def merged(writings: Sequence[Writing], call: RequestContext) -> AsyncGenerator[tuple[int, GeneratedToken]]:
    """Tokens of several replies, each with its reply's index, as they come. Raises ApiError when an engine fails."""
    try:
        if len(writings) == 1:
            async for written in writings[0]:
                call.wrote()
                call.completion_tokens += 1
                yield 0, written
            return
        async with contextlib.aclosing(_together(writings)) as together:
            async for index, written in together:
                call.wrote()
                call.completion_tokens += 1
                yield index, written
    except EngineError as error:
        raise engine_refusal(error) from error


async def _together(writings: Sequence[Writing]) -> AsyncGenerator[tuple[int, GeneratedToken]]:
    queue: asyncio.Queue[tuple[int, GeneratedToken | EngineError | None]] = asyncio.Queue(maxsize=4 * len(writings))

    async def pump(index: int, writing: Writing) -> None:
        try:
            async for written in writing:
                await queue.put((index, written))
            await queue.put((index, None))
        except EngineError as error:
            await queue.put((index, error))

    tasks = [asyncio.create_task(pump(index, writing)) for index, writing in enumerate(writings)]
    try:
        left = len(tasks)
        while left:
            index, found = await queue.get()
            if isinstance(found, EngineError):
                raise found
            if found is None:
                left -= 1
            else:
                yield index, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def engine_refusal(error: EngineError) -> ApiError:
    if isinstance(error, EngineFull):
        return ApiError(503, str(error), code="overloaded", retry_after=1.0)
    return ApiError(503, f"The model failed: {error}", code="engine_failed", retry_after=1.0)


class EventStream(Response):
    """Server-sent events. An error that comes too late for a status is sent as an event, and no [DONE] follows."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], call: RequestContext, headers: dict[str, str]) -> None:
        self._events, self._call = events, call
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._call.deadline):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async with contextlib.aclosing(self._events) as events:
                    async for piece in events:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": f"data: {DONE}\n\n".encode(), "more_body": False})
        except TimeoutError:
            await self._fail(send, timed_out())
        except ApiError as error:
            await self._fail(send, error)

    async def _fail(self, send: Send, error: ApiError) -> None:
        self._call.code = error.code
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await send({"type": "http.response.body", "body": event(error.body), "more_body": False})


def timed_out(found: str = "The answer took longer than this server allows.") -> ApiError:
    return ApiError(503, found, code="timeout", retry_after=1.0)
