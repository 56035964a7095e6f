"""Other servers: the teacher that requests fall back to, and vLLM or llama.cpp servers that run an expert.

Where requests go is in the settings alone, never in a request. Redirects are not followed and proxies of the
environment not used, so that prompts and the key go to no other host. What another server says of itself is not
passed on: its errors become ours, without its key, its headers or its address.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.endpoint.client import redact
from limbeck.errors import MissingExtra, RecipeError
from limbeck.serve.errors import ApiError, bad
from limbeck.serve.responses import Envelope
from limbeck.system.sse import DONE, data_of, event, split_events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from limbeck.serve.middleware import RequestContext
    from limbeck.serve.prometheus import Metrics
    from limbeck.serve.settings import Upstream, UpstreamPrices

logger = logging.getLogger(__name__)

MOST_BYTES = 16 * 2**20
"""Of an answer, and of one event of a stream."""
SHOWN = 300
"""Characters of another server's own words in an error of ours."""
PASSED = frozenset(
    {
        *("messages", "prompt", "n", "seed", "temperature", "top_p", "stop", "max_tokens", "max_completion_tokens"),
        *("logprobs", "top_logprobs", "echo"),
    }
)
"""What is passed on: nothing that says who asks."""


@dataclass(frozen=True)
class UpstreamModel:
    """One model of another server. `name` is what it is called here, `model` there."""

    name: str
    url: str
    model: str
    key: str = field(default="", repr=False)
    connect_seconds: float = 5.0
    read_seconds: float = 120.0
    prices: UpstreamPrices | None = None

    @classmethod
    def of(cls, settings: Upstream) -> UpstreamModel:
        """The teacher. Raises RecipeError where its key is not in the environment."""
        key = os.environ.get(settings.api_key_env, "").strip() if settings.api_key_env else ""
        if settings.api_key_env and not (key and key.isascii() and key.isprintable()):
            raise RecipeError(
                f"the environment variable {settings.api_key_env} holds no key, and upstream.api_key_env names it. Set "
                "it, or set upstream.api_key_env=null where no key is needed."
            )
        seconds = (settings.connect_seconds, settings.read_seconds)
        return cls(settings.model, settings.url, settings.model, key, *seconds, settings.prices)

    def cost(self, usage: dict[str, Any]) -> float:
        if self.prices is None:
            return 0.0
        tokens = (_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
        return (tokens[0] * self.prices.input + tokens[1] * self.prices.output) / 1e6


@dataclass
class UpstreamModels:
    """The connections to all of them. Use within one event loop, and close."""

    metrics: Metrics
    _client: Any = None
    _without_usage: set[str] = field(default_factory=set)

    @property
    def client(self) -> Any:
        if self._client is None:
            try:
                import httpx2
            except ImportError as error:
                raise MissingExtra("httpx2", "serve", "asking another server") from error
            self._client = httpx2.AsyncClient(follow_redirects=False, trust_env=False)
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    @contextlib.asynccontextmanager
    async def _sent(self, remote: UpstreamModel, path: str, body: dict[str, Any]) -> AsyncIterator[Any]:
        """The response, once its head says that all is well. Raises ApiError."""
        import httpx2

        timeout = httpx2.Timeout(remote.read_seconds, connect=remote.connect_seconds)
        headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {remote.key}"} if remote.key else {})}
        try:
            url = f"{remote.url.rstrip('/')}{path}"
            async with self.client.stream("POST", url, json=body, headers=headers, timeout=timeout) as response:
                if response.status_code != 200:
                    raise _refusal(remote, response.status_code, response.headers, await _read(response))
                yield response
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            logger.info("the server of %s did not answer: %s", remote.name, type(error).__name__)
            self.metrics.count("limbeck_upstream_requests_total", model=remote.name, result="unreachable")
            raise _unavailable(remote, f"did not answer ({type(error).__name__})") from error
        except ApiError as error:
            self.metrics.count("limbeck_upstream_requests_total", model=remote.name, result=str(error.status))
            raise

    async def whole(
        self, remote: UpstreamModel, path: str, sent: dict[str, Any], head: Envelope, call: RequestContext
    ) -> dict[str, Any]:
        """A whole answer, under our name and with our reason. Raises ApiError."""
        body = {**_passed(sent), "model": remote.model}
        async with self._sent(remote, path, body) as response:
            found = _object(await _read(response), remote)
        if not isinstance(found.get("choices"), list):
            raise _malformed(remote)
        call.wrote()
        self._spent(remote, found.get("usage"), call)
        self.metrics.count("limbeck_upstream_requests_total", model=remote.name, result="answered")
        return {**found, "model": head.model, "limbeck": head.limbeck}

    async def events(
        self, remote: UpstreamModel, path: str, sent: dict[str, Any], head: Envelope, call: RequestContext
    ) -> AsyncGenerator[bytes]:
        """The events of a streamed answer, each read and written anew, without the last `[DONE]`. Raises ApiError."""
        wants_usage = bool((sent.get("stream_options") or {}).get("include_usage"))
        usage: Any = None
        first: dict[str, Any] = {"limbeck": head.limbeck}
        ends: dict[Any, bool] = {}  # by choice: some servers send no [DONE] behind the last one
        async with self._stream(remote, path, {**_passed(sent), "model": remote.model, "stream": True}) as response:
            try:
                async for data in _data(response, remote):
                    if data.strip() == DONE:
                        ends = {None: True}
                        break
                    found = _object(data.encode(), remote)
                    if found.get("error"):
                        raise _malformed(remote)
                    usage = found.get("usage") or usage
                    ends |= {index: end or ends.get(index, False) for index, end in _ends(found).items()}
                    if found.get("choices"):
                        call.wrote()
                    elif not wants_usage:
                        continue
                    if not wants_usage:
                        found.pop("usage", None)
                    yield event({**found, "model": head.model, **first})
                    first = {}
            finally:  # what was written is paid for, however it ended
                self._spent(remote, usage, call)
            if not ends or not all(ends.values()):
                raise ApiError(503, f"The answer of {remote.name} was cut off.", code="upstream_unavailable")
        self.metrics.count("limbeck_upstream_requests_total", model=remote.name, result="answered")

    @contextlib.asynccontextmanager
    async def _stream(self, remote: UpstreamModel, path: str, body: dict[str, Any]) -> AsyncIterator[Any]:
        """As `_sent`, asking for the usage too; a server that does not know how to be asked is asked without."""
        async with contextlib.AsyncExitStack() as held:
            response = None
            if remote.name not in self._without_usage:
                try:
                    asked = {**body, "stream_options": {"include_usage": True}}
                    response = await held.enter_async_context(self._sent(remote, path, asked))
                except ApiError as error:
                    if error.code != "upstream_refused" or "stream_options" not in error.message:
                        raise
                    logger.warning("%s does not tell the usage of streams, which are not counted", remote.name)
                    self._without_usage.add(remote.name)
            if response is None:
                response = await held.enter_async_context(self._sent(remote, path, body))
            yield response

    def _spent(self, remote: UpstreamModel, usage: Any, call: RequestContext) -> None:
        usage = usage if isinstance(usage, dict) else {}
        call.prompt_tokens += _count(usage.get("prompt_tokens"))
        call.completion_tokens += _count(usage.get("completion_tokens"))
        if remote.prices is not None:
            self.metrics.count("limbeck_upstream_cost_total", remote.cost(usage), model=remote.name)


def _passed(sent: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sent.items() if key in PASSED and value is not None}


async def _read(response: Any) -> bytes:
    found = bytearray()
    async for part in response.aiter_bytes():
        found += part
        if len(found) > MOST_BYTES:
            raise ApiError(503, "The answer of the other server is too long.", code="upstream_malformed")
    return bytes(found)


async def _data(response: Any, remote: UpstreamModel) -> AsyncIterator[str]:
    """The data of each event; the last one may lack its blank line."""
    rest = b""
    async for part in response.aiter_bytes():
        found, rest = split_events(rest + part)
        if len(rest) > MOST_BYTES:
            raise _malformed(remote)
        for data in found:
            yield data
    if (data_of(rest) or "").strip() == DONE:
        yield DONE


def _object(text: bytes, remote: UpstreamModel) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise _malformed(remote) from None
    if not isinstance(found, dict):
        raise _malformed(remote)
    return found


def _unavailable(remote: UpstreamModel, what: str) -> ApiError:
    return ApiError(503, f"The server of {remote.name} {what}.", code="upstream_unavailable", retry_after=5.0)


def _malformed(remote: UpstreamModel) -> ApiError:
    return ApiError(503, f"The server of {remote.name} sent no answer that can be read.", code="upstream_malformed")


def _refusal(remote: UpstreamModel, status: int, headers: Any, body: bytes) -> ApiError:
    """Its refusal as ours: a wrong request is the client's affair, a wrong key or a redirect is not."""
    said = ""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        said = str(json.loads(body)["error"]["message"])[:SHOWN]
    said = redact(said, remote.key) if remote.key else said
    if status in (400, 413, 422):
        return bad(f"The server of {remote.name} refuses this request: {said or status}", code="upstream_refused")
    if status == 429:
        after = headers.get("retry-after", "")
        wait = min(float(after), 3600.0) if after.isascii() and after.isdecimal() else 5.0
        return ApiError(
            429, f"The server of {remote.name} is asked too often.", code="rate_limit_exceeded", retry_after=wait
        )
    return _unavailable(remote, f"refuses to answer ({status})")


def _count(value: Any) -> int:
    """Tokens that a server says were used; 0 where it says nothing that is a number."""
    sound = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**53
    return int(value) if sound else 0


def _ends(chunk: dict[str, Any]) -> dict[Any, bool]:
    """Of each choice in a chunk, whether it ends there."""
    choices = chunk.get("choices")
    choices = [one for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []
    return {str(one.get("index")): bool(one.get("finish_reason")) for one in choices}
