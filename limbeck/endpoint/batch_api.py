"""A provider's batch interface through the official client: a file of requests up, a file of answers down, a day later.

Only what is needed of `/v1/files` and `/v1/batches`. Calls that may have had an effect although no answer came are not
sent again blindly: a batch is looked for by its input file before it is created. A provider needs a moment until it
knows what it has just been given: what is not found, or not ready, is waited for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from limbeck.endpoint.client import body_of
from limbeck.endpoint.messages import ApiReply
from limbeck.endpoint.network import judge_network, network_errors
from limbeck.endpoint.parse import Malformed, parse, read_answer
from limbeck.endpoint.status import RequestRejected, RetryLater
from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from limbeck.endpoint.client import Endpoint
    from limbeck.endpoint.messages import ApiRequest

logger = logging.getLogger(__name__)

Read = TypeVar("Read")

WINDOW = "24h"
ENDED = ("completed", "failed", "expired", "cancelled")
STATUSES = {
    "completed": "completed complete success succeeded done finished ended",
    "failed": "failed failure error",
    "expired": "expired timeout_exceeded timeout timed_out",
    "cancelled": "cancelled canceled",
    "in_progress": "in_progress validating finalizing finalising queued running pending processing created submitted "
    "preparing cancelling canceling cancellation_requested paused scheduled starting",
}
"""Providers' words, in any case, for the states of a batch; JOB_STATE_ before them is Google's."""

FIRST_WAIT, MOST_WAIT = 1.0, 60.0  # seconds between tries
LOOKED_AT = 100  # newest batches among which one is looked for
NOT_READY = re.compile(
    r"not (?:yet )?(?:ready|found|available|processed|exist)|no such file|pending|still|try again|in progress", re.I
)
FULL = "token_limit_exceeded"  # the account has as many tokens enqueued as it may


@dataclass(frozen=True)
class ApiBatch:
    """What the provider says of one: `status` in our words, or its own where it is none of them; `problem` why it
    failed as a whole; `output` and `errors` name files, "" where there is none."""

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

    @property
    def is_understood(self) -> bool:
        return self.status in STATUSES


def line_of(endpoint: Endpoint, name: str, ask: ApiRequest) -> bytes:
    """The line of one request."""
    request = {"custom_id": name, "method": "POST", "url": url_of(ask), "body": body_of(endpoint.settings, ask)}
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"


def url_of(ask: ApiRequest) -> str:
    return "/v1/completions" if ask.prompt is not None else "/v1/chat/completions"


async def upload(endpoint: Endpoint, name: str, lines: bytes) -> str:
    """The provider's name of the file. Uploading it twice costs nothing."""

    async def make() -> bytes:
        files = endpoint.client.files.with_raw_response
        return (await files.create(file=(f"{name}.jsonl", lines), purpose="batch")).content

    return str((await call(endpoint, make, _made))["id"])


async def submit(endpoint: Endpoint, name: str, file: str, url: str) -> ApiBatch:
    """The batch of an uploaded file: the one that is there already (a process died before it could write that down, or
    the answer was lost), or a new one."""
    wanted = {"input_file_id": file, "endpoint": url, "completion_window": WINDOW, "metadata": {"limbeck": name}}

    async def make() -> bytes:
        listed = parse(await _listed(endpoint))
        there = listed.get("data") if isinstance(listed, dict) else None
        for found in there if isinstance(there, list) else ():
            if isinstance(found, dict) and found.get("input_file_id") == file:
                return json.dumps(found).encode()
        return (await endpoint.client.post("/batches", body=wanted, cast_to=_response())).content

    return _batch(endpoint, await call(endpoint, make, _made, about=f"the input file {file}"))


async def _listed(endpoint: Endpoint) -> bytes:
    import openai

    try:
        return await _get(endpoint, f"/batches?limit={LOOKED_AT}")
    except openai.APIStatusError as error:
        if error.status_code in (404, 405):
            raise _no_batches(endpoint, error.status_code) from None
        raise


async def look(endpoint: Endpoint, id: str) -> ApiBatch:
    found = await call(endpoint, lambda: _get(endpoint, f"/batches/{quote(id)}"), _made, about=f"the batch {id}")
    return _batch(endpoint, found)


async def download(endpoint: Endpoint, file: str) -> bytes:
    return await call(
        endpoint, lambda: _get(endpoint, f"/files/{quote(file)}/content"), bytes, about=f"the file {file}"
    )


async def _get(endpoint: Endpoint, path: str) -> bytes:
    return (await endpoint.client.get(path, cast_to=_response())).content


def _response() -> Any:
    import httpx2

    return httpx2.Response


def _made(body: bytes) -> dict[str, Any]:
    """What the provider says of a file or batch. Raises Malformed for what has no id."""
    found = parse(body)
    if not isinstance(found, dict) or not found.get("id"):
        raise Malformed(f"the answer names nothing that was made: {' '.join(str(found).split())[:60]}")
    return found


def results(
    endpoint: Endpoint, lines: bytes, asks: Mapping[str, ApiRequest]
) -> Iterator[tuple[str, ApiReply | RetryLater | RequestRejected]]:
    """What became of each request of `asks` that a file of answers or of errors tells of. Lines that cannot be read, or
    are about something else, tell nothing: what is never told of is asked again."""
    for line in lines.splitlines():
        try:
            found = parse(line)
        except Malformed:
            continue
        name = found.get("custom_id") if isinstance(found, dict) else None
        if isinstance(name, str) and name in asks:
            yield name, _result(endpoint, found, asks[name])


def _result(endpoint: Endpoint, found: dict[str, Any], ask: ApiRequest) -> ApiReply | RetryLater | RequestRejected:
    """A line's status is about its request alone: the batch was taken."""
    response, error = found.get("response"), found.get("error")
    if not isinstance(response, dict):
        code = error.get("code") if isinstance(error, dict) else None
        if code in ("batch_expired", "batch_cancelled", None):
            return RetryLater("server", endpoint.redact(str(error)[:300]))
        return _refused(endpoint, 400, {"error": error})
    body, status = response.get("body", response), response.get("status_code", 200)
    if isinstance(status, str) and status.isdecimal():
        status = int(status[:4])
    if not isinstance(status, int) or not 200 <= status < 300:
        return _refused(endpoint, status if isinstance(status, int) else 500, body)
    try:
        return read_answer(parse(body.encode(errors="replace")) if isinstance(body, str) else body, ask, 0.0)
    except Malformed as problem:
        return RetryLater("malformed", endpoint.redact(str(problem)), billed=True)


def _refused(endpoint: Endpoint, status: int, body: Any) -> RetryLater | RequestRejected:
    try:
        return endpoint.judge(status, {}, json.dumps(body).encode())
    except TeacherError as error:
        return RequestRejected("refused", str(error))


def _batch(endpoint: Endpoint, found: dict[str, Any]) -> ApiBatch:
    counts, told = found.get("request_counts"), found.get("errors")
    listed = told.get("data") if isinstance(told, dict) else told
    errors = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    done = [counts.get(name) for name in ("completed", "failed")] if isinstance(counts, dict) else []
    return ApiBatch(
        id=str(found["id"]),
        status=_status(str(found.get("status") or "")),
        done=sum(number for number in done if isinstance(number, int)),
        output=str(found.get("output_file_id") or found.get("output_file") or ""),
        errors=str(found.get("error_file_id") or found.get("error_file") or ""),
        problem=endpoint.redact("; ".join(str(each.get("message")) for each in errors)[:500]),
        code=str(errors[0].get("code")) if errors else "",
    )


def _status(told: str) -> str:
    key = re.sub(r"[\W_]", "", told.lower()).removeprefix("jobstate")
    known = (status for status, words in STATUSES.items() if key in words.replace("_", "").split())
    return next(known, told)


async def call(
    endpoint: Endpoint, work: Callable[[], Awaitable[bytes]], read: Callable[[bytes], Read], *, about: str = ""
) -> Read:
    """One call of the interface; what may work later is tried again for `retry_minutes`. `about` names what is asked
    for, which the endpoint made itself: it is waited for where it is not found. "" for the interface as such.

    Raises TeacherError: a wrong key, an endpoint without batches, or one that fails for so long.
    """
    import openai

    begun, wait = asyncio.get_running_loop().time(), FIRST_WAIT
    while True:
        try:
            return read(await work())
        except openai.APIStatusError as error:
            found = _refusal(endpoint, error.status_code, error.response.headers, error.response.content, about)
        except Malformed as error:
            found = RetryLater("malformed", endpoint.redact(str(error)))
        except network_errors() as error:
            found = judge_network(error, endpoint.where, endpoint.redact)
        pause = max(wait, found.after or 0.0)
        if asyncio.get_running_loop().time() - begun + pause > 60.0 * endpoint.settings.retry_minutes:
            raise TeacherError(
                f"the batches of {endpoint.where} cannot be used: {found.reason}. What was submitted goes on there; "
                "run the same command again to collect it."
            )
        logger.info("batches of %s: %s; tried again in %.1f s", endpoint.where, found.reason, pause)
        await asyncio.sleep(pause)
        wait = min(2 * wait, MOST_WAIT)


def _no_batches(endpoint: Endpoint, status: int) -> TeacherError:
    return TeacherError(
        f"{endpoint.where} has no batches ({status}): not every endpoint knows /files and /batches. Set teacher.mode "
        "to live."
    )


def _refusal(endpoint: Endpoint, status: int, headers: Any, body: bytes, about: str) -> RetryLater:
    if status in (404, 405) and not about:
        raise _no_batches(endpoint, status)
    said = endpoint.redact(" ".join(body[:200].decode(errors="replace").split()))
    if status == 404:
        return RetryLater("server", f"{about} is not found there ({status}: {said})")
    found = endpoint.judge(status, headers, body)
    if isinstance(found, RetryLater):
        return found
    if about and NOT_READY.search(found.reason):
        return RetryLater("server", f"{about} is not ready ({found.reason})")
    raise TeacherError(found.doubt or f"{endpoint.where} refuses the batch: {found.reason}.")
