"""One request to an OpenAI-compatible endpoint, through the official client, and what became of it.

The client's own retries are off and its models are not used: what is retried, and what counts as an answer, is decided
here (`parse`, `status`). Redirects are not followed, so that the key goes to no other host. The key is in no
message: whatever an endpoint or an exception says is redacted before it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from limbeck.endpoint.given import given_body, read_given
from limbeck.endpoint.network import judge_network, network_errors
from limbeck.endpoint.parse import Malformed, parse, read_answer
from limbeck.endpoint.status import RequestRejected, RetryLater, hidden_error, judge
from limbeck.errors import MissingExtra, TeacherError
from limbeck.recipe import OpenAITeacher, name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from limbeck.endpoint.messages import ApiReply, ApiRequest

MOST_BYTES = 64 * 2**20
"""Largest body that is read: an answer of a hundred thousand tokens with 20 log-probs each is smaller."""

MATCH = 4
"""A run of so many characters that is also in the key is taken out of messages: providers quote keys in part."""

NO_KEY = "none"


@dataclass(frozen=True)
class Endpoint:
    """An open connection pool to one endpoint. Use it within one event loop, and close it."""

    settings: OpenAITeacher
    client: Any
    key: str = field(repr=False)

    @property
    def where(self) -> str:
        return f"{self.settings.model} at {self.settings.base_url}"

    async def ask(self, ask: ApiRequest) -> ApiReply | RetryLater | RequestRejected:
        """Send one request and read all that comes back, within `timeout_seconds`.

        Raises TeacherError, with nothing secret in it, for what every other request would meet too: a wrong key, an
        unknown model, a spent quota, a certificate that cannot be trusted, a redirect.
        """
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                status, headers, body = await self._send(ask)
        except TimeoutError:
            reason = f"no whole answer within {self.settings.timeout_seconds:g} s"
            return RetryLater("timeout", reason, billed=True)
        except Malformed as error:
            return RetryLater("malformed", self.redact(str(error)), billed=True)
        except network_errors() as error:
            return judge_network(error, self.where, self.redact)
        return self._read(ask, status, headers, body, asyncio.get_running_loop().time() - begun)

    def _read(
        self, ask: ApiRequest, status: int, headers: Any, body: bytes, seconds: float
    ) -> ApiReply | RetryLater | RequestRejected:
        if not 200 <= status < 300:
            return self.judge(status, headers, body)
        try:
            if self.key != NO_KEY and self.key.encode() in body:
                raise Malformed("the body repeats the API key")
            found = parse(body)
            if isinstance(found, dict) and not found.get("choices") and (error := hidden_error(found)):
                return self._hidden_error(error, headers, body)
            return read_given(found, ask, seconds) if ask.given else read_answer(found, ask, seconds)
        except Malformed as error:
            return RetryLater("malformed", self.redact(str(error)), billed=True)

    async def _send(self, ask: ApiRequest) -> tuple[int, Any, bytes]:
        import httpx2
        import openai

        path = "/completions" if ask.prompt is not None or ask.given else "/chat/completions"
        try:
            form = {"cast_to": httpx2.Response, "stream": True, "stream_cls": openai.AsyncStream}
            response = await self.client.post(path, body=body_of(self.settings, ask), **form)
        except openai.APIStatusError as error:
            return error.status_code, error.response.headers, error.response.content
        async with contextlib.aclosing(response):
            return response.status_code, response.headers, await _whole(response.aiter_bytes())

    def judge(self, status: int, headers: Any, body: bytes) -> RetryLater | RequestRejected:
        """`status.judge`, with nothing secret in what it returns or raises."""
        try:
            found = judge(status, headers, body, self.where)
        except TeacherError as error:
            raise TeacherError(self.redact(str(error))) from None
        if isinstance(found, RequestRejected):
            return replace(found, reason=self.redact(found.reason), doubt=self.redact(found.doubt))
        return replace(found, reason=self.redact(found.reason))

    def _hidden_error(self, error: Any, headers: Any, body: bytes) -> RetryLater | RequestRejected:
        """Some gateways send errors with status 200; their code is the status that was meant."""
        code = error.get("code") if isinstance(error, dict) else None
        if re.fullmatch("[45][0-9][0-9]", str(code)[:9]):
            return self.judge(int(str(code)), headers, body)
        about_prompt = self.judge(400, headers, body)
        if isinstance(about_prompt, RequestRejected) and about_prompt.kind != "invalid":
            return about_prompt
        said = error.get("message", error) if isinstance(error, dict) else error
        raise Malformed(f"an error with status 200: {str(said)[:200]}")

    def redact(self, text: str) -> str:
        """`text` with every piece of the key, of four characters or more, as `***`."""
        return redact(text, self.key) if self.key != NO_KEY else text

    async def close(self) -> None:
        await self.client.close()


@contextlib.asynccontextmanager
async def open_endpoint(settings: OpenAITeacher) -> AsyncIterator[Endpoint]:
    """Raises MissingExtra without the client, TeacherError without a key. Nothing is sent."""
    key = read_key(settings)
    try:
        import httpx2
        import openai
    except ImportError as error:
        raise MissingExtra("openai", "api", "a teacher behind an endpoint") from error
    timeout = httpx2.Timeout(settings.timeout_seconds, connect=settings.connect_seconds)
    limits = httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
    async with httpx2.AsyncClient(timeout=timeout, limits=limits, follow_redirects=False) as http:
        client = openai.AsyncOpenAI(
            base_url=settings.base_url, api_key=key, max_retries=0, timeout=timeout, http_client=http
        )
        if not (urlsplit(settings.base_url).hostname or "").endswith("openai.com"):
            client.organization = client.project = None  # read from the environment, and nobody else's business
        yield Endpoint(settings, client, key)


def read_key(settings: OpenAITeacher) -> str:
    """The key from its environment variable. Raises TeacherError when it is not there."""
    if settings.api_key_env is None:
        return NO_KEY
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise TeacherError(
            f"the environment variable {settings.api_key_env} is empty, and the key for {name_of(settings)} is read "
            "from it. Set it, name another one in teacher.api_key_env, or set that to null where no key is needed."
        )
    if not key.isascii() or not key.isprintable():
        raise TeacherError(f"the environment variable {settings.api_key_env} holds no key: a key is plain ASCII.")
    return key


def body_of(settings: OpenAITeacher, ask: ApiRequest) -> dict[str, Any]:
    """The request's JSON. What the recipe says in `extra_body` counts last, and null takes a key away."""
    if ask.given:
        return given_body(settings, ask)
    sampling = ask.sampling
    body: dict[str, Any] = {"model": settings.model}
    if ask.prompt is not None:
        body["prompt"] = ask.prompt
    else:
        body["messages"] = with_system(settings.system, ask.messages)
    body["temperature"] = sampling.temperature
    body[settings.max_tokens_key] = sampling.max_tokens
    optional = {
        "top_p": (sampling.top_p, sampling.top_p != 1.0),
        "n": (sampling.n, sampling.n > 1),
        "stop": (list(sampling.stop), bool(sampling.stop)),
        "seed": (ask.seed, ask.seed is not None),
        "logprobs": (True if ask.prompt is None else ask.logprobs, ask.logprobs > 0),
        "top_logprobs": (ask.logprobs, ask.logprobs > 0 and ask.prompt is None),
    }
    body |= {key: value for key, (value, sent) in optional.items() if sent}
    body |= settings.extra_body
    return {key: value for key, value in body.items() if value is not None}


def with_system(system: str | None, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A conversation with the recipe's system prompt. Many templates refuse a second system message, so that one of
    the conversation's own becomes the second part of the recipe's."""
    first = messages[0] if messages else {}
    if system is None:
        return list(messages)
    if first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": system}, *messages]
    own = first.get("content") or ""
    if isinstance(own, str):
        joined: Any = f"{system}\n\n{own}" if own else system
    else:
        joined = [{"type": "text", "text": f"{system}\n\n"}, *own]
    return [{**first, "content": joined}, *messages[1:]]


def redact(text: str, key: str) -> str:
    """`text` without any run of MATCH characters or more that is also in `key`."""
    size = min(MATCH, len(key))
    pieces = {key[at : at + size] for at in range(len(key) - size + 1)}
    hidden = [False] * len(text)
    for at in range(len(text) - size + 1):
        if text[at : at + size] in pieces:
            hidden[at : at + size] = [True] * size
    out = ["***" if secret and (at == 0 or not hidden[at - 1]) else "" if secret else char
           for at, (char, secret) in enumerate(zip(text, hidden, strict=True))]  # fmt: skip
    return "".join(out)


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    found = bytearray()
    async for chunk in chunks:
        found += chunk
        if len(found) > MOST_BYTES:
            raise Malformed(f"the body is longer than {MOST_BYTES:,} bytes")
    return bytes(found)
