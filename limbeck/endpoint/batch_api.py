"""A provider's batch interface through the official client: a file of requests up, a file of answers down, a day later.

Only what is needed of `/v1/files` and `/v1/batches`. Calls that may have had an effect although no answer came are not
sent again blindly: a batch is looked for by its input file before it is created.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.endpoint.client import body_of
from limbeck.endpoint.messages import ApiReply
from limbeck.endpoint.parse import Malformed, parse, read_answer
from limbeck.endpoint.status import RequestRejected, RetryLater
from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from limbeck.endpoint.client import Endpoint
    from limbeck.endpoint.messages import ApiRequest

logger = logging.getLogger(__name__)

WINDOW = "24h"
ENDED = ("completed", "failed", "expired", "cancelled")
FIRST_WAIT, MOST_WAIT = 1.0, 60.0  # seconds between tries
LOOKED_AT = 100  # newest batches among which one is looked for
FULL = "token_limit_exceeded"  # the account has as many tokens enqueued as it may


@dataclass(frozen=True)
class ApiBatch:
    """What the provider says of one: `problem` why it failed as a whole; `output` and `errors` name files, "" where
    there is none."""

    id: str
    status: str
    done: int
    output: str = ""
    errors: str = ""
    problem: str = ""
    code: str = ""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


def line_of(endpoint: Endpoint, name: str, ask: ApiRequest) -> bytes:
    """The line of one request."""
    request = {"custom_id": name, "method": "POST", "url": url_of(ask), "body": body_of(endpoint.settings, ask)}
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"


def url_of(ask: ApiRequest) -> str:
    return "/v1/completions" if ask.prompt is not None else "/v1/chat/completions"


async def upload(endpoint: Endpoint, name: str, lines: bytes) -> str:
    """The provider's name of the file. Uploading it twice costs nothing."""
    made = await call(endpoint, lambda: endpoint.client.files.create(file=(f"{name}.jsonl", lines), purpose="batch"))
    return str(made.id)


async def submit(endpoint: Endpoint, name: str, file: str, url: str) -> ApiBatch:
    """The batch of an uploaded file: the one that is there already (a process died before it could write that down, or
    the answer was lost), or a new one."""

    async def make() -> Any:
        listed = await endpoint.client.batches.list(limit=LOOKED_AT)
        for found in listed.data:
            if found.input_file_id == file:
                return found
        return await endpoint.client.batches.create(
            input_file_id=file, endpoint=url, completion_window=WINDOW, metadata={"limbeck": name}
        )

    return _batch(endpoint, await call(endpoint, make))


async def look(endpoint: Endpoint, id: str) -> ApiBatch:
    return _batch(endpoint, await call(endpoint, lambda: endpoint.client.batches.retrieve(id)))


async def download(endpoint: Endpoint, file: str) -> bytes:
    async def read() -> bytes:
        return (await endpoint.client.files.content(file)).content

    return await call(endpoint, read)


def results(
    endpoint: Endpoint, lines: bytes, asks: Mapping[str, ApiRequest]
) -> Iterator[tuple[str, ApiReply | RetryLater | RequestRejected]]:
    """What became of each request of `asks` that a file of answers or of errors tells of. Lines that cannot be read, or
    are about something else, tell nothing: what is never told of is asked again.

    Raises TeacherError for what every other request would meet too.
    """
    for line in lines.splitlines():
        try:
            found = parse(line)
        except Malformed:
            continue
        name = found.get("custom_id") if isinstance(found, dict) else None
        if isinstance(name, str) and name in asks:
            yield name, _result(endpoint, found, asks[name])


def _result(endpoint: Endpoint, found: dict[str, Any], ask: ApiRequest) -> ApiReply | RetryLater | RequestRejected:
    response, error = found.get("response"), found.get("error")
    if not isinstance(response, dict):
        said = error.get("message") or error.get("code") if isinstance(error, dict) else "nothing"
        code = error.get("code") if isinstance(error, dict) else None
        kind = "server" if code in ("batch_expired", "batch_cancelled", None) else "malformed"
        return RetryLater(kind, endpoint.redact(str(said)[:300]))  # type: ignore[arg-type]
    status, body = response.get("status_code"), response.get("body")
    if not isinstance(status, int) or not 200 <= status < 300:
        return endpoint.judge(status if isinstance(status, int) else 500, {}, json.dumps(body).encode())
    try:
        return read_answer(body, ask, 0.0)
    except Malformed as problem:
        return RetryLater("malformed", endpoint.redact(str(problem)), billed=True)


def _batch(endpoint: Endpoint, found: Any) -> ApiBatch:
    counts = found.request_counts
    errors = found.errors.data if found.errors and found.errors.data else []
    return ApiBatch(
        id=str(found.id),
        status=str(found.status),
        done=(counts.completed + counts.failed) if counts else 0,
        output=found.output_file_id or "",
        errors=found.error_file_id or "",
        problem=endpoint.redact("; ".join(str(each.message) for each in errors)[:500]),
        code=str(errors[0].code) if errors else "",
    )


async def call(endpoint: Endpoint, work: Callable[[], Awaitable[Any]]) -> Any:
    """One call of the interface; what may work later is tried again for `retry_minutes`.

    Raises TeacherError: a wrong key, an endpoint without batches, or one that fails for so long.
    """
    import httpx2
    import openai

    begun, wait = asyncio.get_running_loop().time(), FIRST_WAIT
    while True:
        try:
            return await work()
        except openai.APIStatusError as error:
            found = _refusal(endpoint, error.status_code, error.response.headers, error.response.content)
        except (openai.APIConnectionError, openai.APIResponseValidationError, httpx2.HTTPError, OSError) as error:
            found = RetryLater("reset", endpoint.redact(str(error) or type(error).__name__))
        pause = max(wait, found.after or 0.0)
        if asyncio.get_running_loop().time() - begun + pause > 60.0 * endpoint.settings.retry_minutes:
            raise TeacherError(
                f"the batches of {endpoint.where} cannot be reached: {found.reason}. What was submitted goes on there; "
                "run the same command again to collect it."
            )
        logger.info("batches of %s: %s; tried again in %.1f s", endpoint.where, found.reason, pause)
        await asyncio.sleep(pause)
        wait = min(2 * wait, MOST_WAIT)


def _refusal(endpoint: Endpoint, status: int, headers: Any, body: bytes) -> RetryLater:
    if status in (404, 405):
        raise TeacherError(
            f"{endpoint.where} has no batches ({status}): not every endpoint knows /files and /batches. Set "
            "teacher.mode to live."
        )
    found = endpoint.judge(status, headers, body)
    if isinstance(found, RequestRejected):
        raise TeacherError(f"{endpoint.where} refuses the batch: {found.reason}.")
    return found
