"""Requests of any form to an endpoint, through the official client: what probes and scoring send.

`openai.Endpoint.ask` is the road for replies. Here a body is whatever the caller wants to know about, and a refusal is
an answer too: what an endpoint does not understand is what a probe is after.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.endpoint.parse import Malformed, parse
from limbeck.endpoint.status import RetryLater, judge
from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from limbeck.endpoint.client import Endpoint

logger = logging.getLogger(__name__)

TRIES = 6
FIRST_WAIT, MOST_WAIT = 1.0, 60.0  # seconds between tries, doubling


@dataclass(frozen=True)
class RawReply:
    """`status` and the parsed body; {} where it was not JSON. `reason` says why there is no use in it, "" where there
    is."""

    status: int
    body: Any
    reason: str = ""

    @property
    def good(self) -> bool:
        return not self.reason


async def post(endpoint: Endpoint, path: str, body: dict[str, Any], *, tries: int = TRIES) -> RawReply:
    """Send one request; what may work later is tried again, at most `tries` times. A request that the endpoint does not
    understand is a Reply with a reason.

    Raises TeacherError for a wrong key, a spent quota, a redirect, or an endpoint that stays silent.
    """
    wait, reason = FIRST_WAIT, ""
    for left in range(tries, 0, -1):
        outcome = await _once(endpoint, path, body)
        if isinstance(outcome, RawReply):
            return outcome
        reason = outcome.reason
        if left > 1:
            pause = min(max(outcome.after or 0.0, wait), MOST_WAIT)
            logger.info("%s%s: %s; tried again in %.1f s", endpoint.where, path, reason, pause)
            await asyncio.sleep(pause)
            wait *= 2
    raise TeacherError(
        endpoint.redact(f"{endpoint.where} gives no answer to {path} after {tries} tries: {reason}. ")
        + "Run the same command again when it works."
    )


async def _once(endpoint: Endpoint, path: str, body: dict[str, Any]) -> RawReply | RetryLater:
    import httpx2
    import openai

    try:
        async with asyncio.timeout(endpoint.settings.timeout_seconds):
            response = await endpoint.client.post(path, body=body, cast_to=httpx2.Response)
            status, headers, content = response.status_code, response.headers, response.content
    except openai.APIStatusError as error:
        status, headers, content = error.status_code, error.response.headers, error.response.content
    except (openai.APIConnectionError, httpx2.HTTPError, httpx2.StreamError, OSError) as error:  # a timeout is one too
        return RetryLater("reset", endpoint.redact(str(error) or type(error).__name__))
    if not 200 <= status < 300:
        return _refused(endpoint, status, headers, content)
    try:
        return RawReply(status, parse(content))
    except Malformed as error:
        return RawReply(status, {}, endpoint.redact(str(error)))


def _refused(endpoint: Endpoint, status: int, headers: Any, content: bytes) -> RawReply | RetryLater:
    """What is wrong with every request ends the probe; what is wrong with this one is its answer."""
    try:
        verdict = judge(status, headers, content, endpoint.where)
    except TeacherError as error:
        if status in (401, 402, 403, 429) or 300 <= status < 400:
            raise TeacherError(endpoint.redact(str(error))) from None
        return RawReply(status, {}, endpoint.redact(str(error)))
    if isinstance(verdict, RetryLater) and status != 500:  # which is what servers say to what they did not foresee
        return verdict
    return RawReply(status, {}, endpoint.redact(verdict.reason))
